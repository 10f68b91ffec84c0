"""obs columns of a store, read by pieces or lazily with Dask, and grouping by any of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from lazypert.store.format import COLUMN_CHUNK, COLUMN_SHARD

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lazypert.store.sharded_array import ShardedArray
    from lazypert.store.store import Store


@dataclass(frozen=True)
class LazyColumn:
    """A column of a store that is read by pieces: what Dask and xarray take for an array.

    Attributes
    ----------
    length
        Number of cells.
    dtype
        Of the values shown.
    read
        Gives the values ``start`` to ``stop``; picklable.
    """

    length: int
    dtype: np.dtype[Any]
    read: Callable[[int, int], NDArray[Any]]
    ndim = 1

    @property
    def shape(self) -> tuple[int]:
        """One dimension, ``cell``."""
        return (self.length,)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        rows = key[0] if isinstance(key, tuple) else key
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.length)
            if step > 0:
                return self.read(start, max(start, stop))[::step]
            rows = np.arange(start, stop, step)
        rows = np.asarray(rows)
        if not rows.size:
            return np.empty(rows.shape, dtype=self.dtype)
        wanted, back = np.unique(rows, return_inverse=True)
        # Rows that share a chunk cost one read of it; far ones are read on their own.
        breaks = np.flatnonzero(np.diff(wanted) > COLUMN_CHUNK) + 1
        parts = [self.read(int(near[0]), int(near[-1]) + 1)[near - near[0]] for near in np.split(wanted, breaks)]
        # One row alone (no dimension) must stay an array: a text taken out of one is no array.
        return np.concatenate(parts)[back.reshape(-1)].reshape(rows.shape)

    def to_dask(self) -> da.Array:
        """Lazy array of one chunk a shard; nothing is read."""
        return da.from_array(
            self, chunks=min(COLUMN_SHARD, max(1, self.length)), asarray=False, meta=np.empty(0, self.dtype)
        )


def numeric_column(array: ShardedArray) -> LazyColumn:
    """Numbers as they are stored."""
    return LazyColumn(len(array), array.dtype, array.read)


def open_column(store: Store, path: str) -> LazyColumn:
    """Values of a column: of a categorical its labels.

    A missing value shows as None among texts and labels, as NaN among numbers.
    """
    kind = store.encoding(path)
    if kind == "categorical":
        return decode_categories(numeric_column(store.sharded(f"{path}/codes")), store.categories(path))
    if kind == "string-array":
        text = store.text(path)
        return LazyColumn(len(text), text.dtype, text.read)
    if kind.startswith("nullable-"):
        below = f"{path}/values"
        values = open_column(store, below) if "string" in kind else numeric_column(store.sharded(below))
        dtype = np.dtype("f8" if kind == "nullable-integer" else object)
        read = partial(_read_nullable, values, numeric_column(store.sharded(f"{path}/mask")), dtype)
        return LazyColumn(values.length, dtype, read)
    return numeric_column(store.sharded(path))


def decode_categories(codes: LazyColumn, categories: NDArray[Any]) -> LazyColumn:
    """Labels in place of codes."""
    missing = np.nan if categories.dtype.kind in "iuf" else None
    table = np.array([*categories, missing], dtype="f8" if missing is not None else object)
    return LazyColumn(codes.length, table.dtype, partial(_read_decoded, codes, table))


def _read_decoded(codes: LazyColumn, table: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
    return table[codes.read(start, stop)]  # the last entry is what code -1 picks


def _read_nullable(values: LazyColumn, mask: LazyColumn, dtype: np.dtype[Any], start: int, stop: int) -> NDArray[Any]:
    out = values.read(start, stop).astype(dtype)
    out[mask.read(start, stop)] = np.nan if dtype.kind == "f" else None
    return out
