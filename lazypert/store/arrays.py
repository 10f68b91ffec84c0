"""Text and dense arrays of a store, read with Zarr; a missing file is an error, never fill values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.machine import raise_machine_error
from lazypert.store.damage import store_damaged
from lazypert.store.format import COLUMN_CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lazypert.store.byte_reader import ByteReader


class StringArray:
    """A one-dimensional array of strings, read by ranges."""

    dtype = np.dtype(object)

    def __init__(self, reader: ByteReader, array: Any, path: str) -> None:
        self._reader, self._array, self._path = reader, array, path

    def __repr__(self) -> str:
        return f"StringArray({self._path!r}, {len(self):,} strings)"

    def __len__(self) -> int:
        return int(self._array.shape[0])

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read strings ``start`` to ``stop`` as an object array.

        Raises
        ------
        StoreDamagedError
            If a shard is missing or cannot be decoded.
        """
        shard = self._array.shards[0]
        if len(self) <= COLUMN_CHUNK:
            self._reader.hold([f"{self._path}/c/0"])
        keys = [f"{self._path}/c/{number}" for number in range(start // shard, -(-stop // shard))]
        return np.asarray(read_checked(self._reader, keys, lambda: self._array[start:stop]), dtype=object)


class DenseArray:
    """A dense (cell, feature) array, stored in chunks of rows and indexed axis by axis."""

    ndim = 2

    def __init__(self, reader: ByteReader, array: Any, path: str) -> None:
        self._reader, self._array, self._path = reader, array, path

    def __repr__(self) -> str:
        return f"DenseArray({self._path!r}, {self.shape[0]:,} cells x {self.shape[1]:,} features, {self.dtype})"

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of cells and features."""
        n_cells, n_features = self._array.shape
        return int(n_cells), int(n_features)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the stored values."""
        return np.dtype(self._array.dtype)

    @property
    def chunks(self) -> tuple[int, int]:
        """Rows and columns of one chunk."""
        rows, columns = self._array.chunks
        return int(rows), int(columns)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        rows = key[0] if isinstance(key, tuple) else key
        rows = np.arange(*rows.indices(self.shape[0])) if isinstance(rows, slice) else np.atleast_1d(rows)
        keys = [f"{self._path}/c/{number}/0" for number in np.unique(rows // self.chunks[0])]
        self._reader.hold(keys)
        return np.asarray(read_checked(self._reader, keys, lambda: self._array.oindex[key]))

    @property
    def oindex(self) -> DenseArray:
        """The array itself, as its axes are always indexed independently."""
        return self


def read_checked(reader: ByteReader, keys: list[str], read: Callable[[], Any]) -> Any:
    """Read with Zarr after checking that all files exist; Zarr would show fill values for a missing one.

    Parameters
    ----------
    keys
        Every file that is read from.
    read
        Reads from them with Zarr.

    Raises
    ------
    StoreDamagedError
        If a file is missing or cannot be decoded.
    MachineError
        If the machine cannot read it.
    """
    for key in keys:
        if reader.size(key) is None:
            raise store_damaged(key, "the file is missing")
    try:
        found = read()
    except (ValueError, RuntimeError, TypeError, IndexError, OverflowError, OSError) as error:
        reader.check()
        raise_machine_error(keys[0], error)
        raise store_damaged(keys[0] if len(keys) == 1 else f"{keys[0]} to {keys[-1]}", str(error)) from error
    if keys:
        reader.size(keys[-1])  # raises if a local store was replaced meanwhile
    return found
