"""One value a cell, of one file or several, in the order of the store, within bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert.screen.labels import join_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from lazypert.converter import ScreenReader

READ_STEP = 131_072
"""Cells that are read at once: few, as a text takes 100 bytes and most of these go into another piece."""


@dataclass(frozen=True)
class Reordered:
    """Values that are read in the order of the files and handed out in that of the store.

    Where all of them do not fit, they are read once for every piece that is handed out.

    Attributes
    ----------
    read
        Gives the values of cells ``start`` to ``stop`` in the order of the files.
    destination
        (n,) row in the store of each cell.
    step
        Cells of a piece that is handed out.
    """

    read: Callable[[int, int], Any]
    destination: NDArray[np.integer]
    step: int

    def __len__(self) -> int:
        return len(self.destination)

    def __iter__(self) -> Iterator[Any]:
        for begin in range(0, max(1, len(self)), self.step):
            end = min(len(self), begin + self.step)
            parts: list[Any] = []
            places: list[NDArray[np.integer]] = []
            for start, values in self._source():
                to = self.destination[start : start + len(values)]
                chosen = np.flatnonzero((to >= begin) & (to < end))
                if len(chosen) or not parts:
                    parts.append(values[chosen])
                    places.append(to[chosen] - begin)
            back = np.empty(end - begin, dtype=np.int64)
            back[np.concatenate(places)] = np.arange(end - begin)
            yield _concat(parts)[back]

    def _source(self) -> Iterator[tuple[int, Any]]:
        for start in range(0, max(1, len(self)), READ_STEP):
            yield start, self.read(start, min(len(self), start + READ_STEP))

    def has_missing(self) -> bool:
        """Whether any value is missing."""
        return any(bool(np.any(pd.isna(values))) for _, values in self._source())


def _concat(parts: Sequence[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    return pd.concat([pd.Series(part) for part in parts], ignore_index=True).array


def joined(readers: Sequence[ScreenReader], name: str | None) -> Callable[[int, int], Any]:
    """Reader of an obs column (None: of the cell names) of several files as if they were one.

    Cells of a file that lacks the column have no value there; pieces have one dtype.
    """
    bounds = np.cumsum([0, *(reader.n_obs for reader in readers)])
    heads: list[Any] = []
    dtype: Any = None
    if name is not None and len(readers) > 1:
        given = [r.obs_column(name, 0, min(1, r.n_obs)) if name in r.obs_columns else None for r in readers]
        heads = [None if head is None else head[:0] for head in given]
        dtype = join_columns(given, [min(1, r.n_obs) for r in readers]).dtype

    def of_file(number: int, start: int, stop: int) -> Any:
        reader = readers[number]
        if name is None:
            return reader.obs_names(start, stop)
        if len(readers) == 1:
            return reader.obs_column(name, start, stop)
        parts, lengths = list(heads), [0] * len(readers)
        lengths[number] = stop - start
        if parts[number] is not None:
            parts[number] = reader.obs_column(name, start, stop)
        values = join_columns(parts, lengths)
        return values if values.dtype == dtype else values.astype(dtype)

    def read(start: int, stop: int) -> Any:
        parts = [
            of_file(i, max(start - first, 0), min(stop, last) - first)
            for i, (first, last) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
            if max(start, first) < min(stop, last) or (start == stop == first)
        ]
        return _concat(parts) if len(parts) > 1 else parts[0]

    return read
