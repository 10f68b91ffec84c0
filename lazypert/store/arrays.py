"""Text and dense arrays of a store that refuse to invent missing chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.errors import StoreDamagedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lazypert.store.byte_reader import ByteReader


class TextArray:
    """An array of strings that refuses to invent them: a missing shard is an error, not empty text."""

    dtype = np.dtype(object)

    def __init__(self, reader: ByteReader, array: Any, path: str) -> None:
        self._reader, self._array, self._path = reader, array, path

    def __len__(self) -> int:
        return int(self._array.shape[0])

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Strings ``start`` to ``stop``, as an object array."""
        shard = self._array.shards[0]
        keys = [f"{self._path}/c/{number}" for number in range(start // shard, -(-stop // shard))]
        return np.asarray(_careful(self._reader, keys, lambda: self._array[start:stop]), dtype=object)


class DenseArray:
    """A dense (cell, feature) array in row chunks, with the same refusal: no chunk is made up."""

    ndim = 2

    def __init__(self, reader: ByteReader, array: Any, path: str) -> None:
        self._reader, self._array, self._path = reader, array, path

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and features."""
        n, width = self._array.shape
        return int(n), int(width)

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored."""
        return np.dtype(self._array.dtype)

    @property
    def chunks(self) -> tuple[int, int]:
        """Rows and columns that are stored together."""
        rows, width = self._array.chunks
        return int(rows), int(width)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        rows = key[0] if isinstance(key, tuple) else key
        rows = np.arange(*rows.indices(self.shape[0])) if isinstance(rows, slice) else np.atleast_1d(rows)
        keys = [f"{self._path}/c/{number}/0" for number in np.unique(rows // self.chunks[0])]
        return np.asarray(_careful(self._reader, keys, lambda: self._array.oindex[key]))

    @property
    def oindex(self) -> DenseArray:
        """Itself: its axes are indexed one by one."""
        return self


def _careful(reader: ByteReader, keys: list[str], read: Callable[[], Any]) -> Any:
    """Read with Zarr, which shows zeros or empty text where a file is missing, once all files are there."""
    for key in keys:
        if reader.size(key) is None:
            raise _damaged(key, "the file is missing")
    try:
        return read()
    except (ValueError, RuntimeError, TypeError, IndexError, OverflowError, OSError) as error:
        raise _damaged(keys[0] if len(keys) == 1 else f"{keys[0]} to {keys[-1]}", str(error)) from error


def _damaged(key: str, what: str) -> StoreDamagedError:
    return StoreDamagedError(
        f"The store is damaged at {key}: {what}. "
        "Run lazypert.verify(store) to list all damage, and convert the source again."
    )
