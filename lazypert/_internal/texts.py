"""Texts as bytes: many strings in two arrays, without a Python object for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.kernels import kernel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Texts:
    """(n,) texts.

    Attributes
    ----------
    data
        UTF-8 bytes of all texts, one after another.
    bounds
        (n + 1,) int64: text ``i`` is ``data[bounds[i] : bounds[i + 1]]``.
    """

    data: NDArray[np.uint8]
    bounds: NDArray[np.int64]

    @classmethod
    def of(cls, values: Any) -> Texts:
        """Encode (n,) strings; other values are replaced by their text."""
        strings: list[str] = values.tolist() if isinstance(values, np.ndarray) else list(values)
        try:
            text = "".join(strings)
        except TypeError:
            strings = [str(value) for value in strings]
            text = "".join(strings)
        data = text.encode()
        parts: Sequence[Any] = strings if len(data) == len(text) else [string.encode() for string in strings]
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        return cls(np.frombuffer(data, np.uint8), bounds_of(lengths))

    @classmethod
    def concatenate(cls, parts: Sequence[Texts]) -> Texts:
        """Put texts one after another."""
        lengths = [part.lengths for part in parts]
        return cls(
            np.concatenate([np.empty(0, np.uint8), *(part.data for part in parts)]),
            bounds_of(np.concatenate([np.empty(0, np.int64), *lengths])),
        )

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __repr__(self) -> str:
        return f"Texts({len(self):,} texts, {len(self.data):,} bytes)"

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) bytes of each text."""
        return np.diff(self.bounds)

    def take(self, order: NDArray[np.integer]) -> Texts:
        """Return the texts at some positions."""
        bounds = bounds_of(self.lengths[order])
        data = np.empty(int(bounds[-1]), np.uint8)
        _take(self.data, self.bounds, order, bounds, data)
        return Texts(data, bounds)

    def put(self, positions: NDArray[np.integer], bounds: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy every text to the place of its position among others.

        Parameters
        ----------
        positions
            (n,) position of each text.
        bounds, out
            Bounds and bytes of those others, as in `Texts`.
        """
        _put(self.data, self.bounds, positions, bounds, out)

    def with_lengths(self, first: int, last: int, n_texts: int) -> NDArray[np.uint8]:
        """Encode some of the texts in Zarr's codec ``vlen-utf8``: their number, and each after its length.

        Parameters
        ----------
        first, last
            The texts ``first`` to ``last``, exclusive.
        n_texts
            Texts in all: the missing ones are empty.
        """
        out = np.zeros(4 + 4 * n_texts + int(self.bounds[last] - self.bounds[first]), np.uint8)
        out[:4] = np.frombuffer(np.array(n_texts, "<u4").tobytes(), np.uint8)
        _with_lengths(self.data, self.bounds, first, last, out)
        return out


def bounds_of(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """(n + 1,) int64 bounds of parts that have the given lengths and follow one another."""
    bounds = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=bounds[1:])
    return bounds


@kernel
def _take(data: Any, bounds: Any, order: Any, out_bounds: Any, out: Any) -> None:
    for i in range(len(order)):
        start, position = bounds[order[i]], out_bounds[i]
        for k in range(out_bounds[i + 1] - position):
            out[position + k] = data[start + k]


@kernel
def _put(data: Any, bounds: Any, positions: Any, out_bounds: Any, out: Any) -> None:
    for i in range(len(positions)):
        start, position = bounds[i], out_bounds[positions[i]]
        for k in range(bounds[i + 1] - start):
            out[position + k] = data[start + k]


@kernel
def _with_lengths(data: Any, bounds: Any, first: Any, last: Any, out: Any) -> None:
    position = 4
    for i in range(first, last):
        length = bounds[i + 1] - bounds[i]
        for byte in range(4):
            out[position + byte] = (length >> (8 * byte)) & 255
        position += 4
        for k in range(length):
            out[position + k] = data[bounds[i] + k]
        position += length
