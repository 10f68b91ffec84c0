"""obs columns of a store, read by ranges or lazily with Dask."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pandas as pd

from lazypert.store.content_checks import check_codes
from lazypert.store.format import COLUMN_CHUNK, COLUMN_SHARD

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lazypert.store.sharded_array import ShardedArray
    from lazypert.store.store import Store


@dataclass(frozen=True)
class LazyColumn:
    """A column of a store that is read when it is indexed; Dask and xarray accept it as an array.

    Attributes
    ----------
    length
        Number of cells.
    dtype
        Dtype of the values.
    read
        Reads the values ``start`` to ``stop``; picklable.
    codes, labels
        Of a categorical column: its codes, and the labels that they stand for, with the missing value last.
    """

    length: int
    dtype: np.dtype[Any]
    read: Callable[[int, int], NDArray[Any]]
    codes: LazyColumn | None = None
    labels: NDArray[Any] | None = None
    ndim = 1

    def __repr__(self) -> str:
        return f"LazyColumn({self.length:,} cells, {self.dtype})"

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
        unique, inverse = np.unique(rows, return_inverse=True)
        # Rows of a shard that are less than a chunk apart share a read; others are read separately, within bounds.
        breaks = np.flatnonzero((np.diff(unique) > COLUMN_CHUNK) | (np.diff(unique // COLUMN_SHARD) > 0)) + 1
        values = [self.read(int(near[0]), int(near[-1]) + 1)[near - near[0]] for near in np.split(unique, breaks)]
        # A single row (no dimension) must stay an array: indexing with an integer would give a str.
        return np.concatenate(values)[inverse.reshape(-1)].reshape(rows.shape)

    def to_dask(self) -> da.Array:
        """Lazy Dask array with one chunk per shard; nothing is read."""
        return da.from_array(
            self, chunks=min(COLUMN_SHARD, max(1, self.length)), asarray=False, meta=np.empty(0, self.dtype)
        )


def open_column(store: Store, path: str) -> LazyColumn:
    """Open an obs column, such as ``"obs/batch"``: its values, or the labels of a categorical column.

    Missing values become None in text and labels, and NaN in numbers.
    """
    encoding = store.encoding(path)
    if encoding == "categorical":
        categories = store.read_categories(path)
        return decode_categories(category_codes(store, path, len(categories)), categories)
    if encoding == "string-array":
        text = store.open_strings(path)
        return LazyColumn(len(text), text.dtype, text.read)
    if encoding.startswith("nullable-"):
        values_path = f"{path}/values"
        is_text = "string" in encoding
        values = open_column(store, values_path) if is_text else numeric_column(store.open_array(values_path))
        dtype = np.dtype("f8" if encoding == "nullable-integer" else object)
        read = partial(_read_nullable, values, numeric_column(store.open_array(f"{path}/mask")), dtype)
        return LazyColumn(values.length, dtype, read)
    return numeric_column(store.open_array(path))


def take_column(store: Store, path: str, rows: NDArray[np.integer]) -> Any:
    """Read rows of an obs column as pandas would hold it: an array, a Categorical or a nullable array.

    Parameters
    ----------
    rows
        (n,) store rows in any order, repeats allowed.
    """
    encoding = store.encoding(path)
    if encoding == "categorical":
        return store.categorical(path, category_codes(store, path)[rows])
    if encoding in ("nullable-integer", "nullable-boolean"):
        values, mask = (numeric_column(store.open_array(f"{path}/{part}"))[rows] for part in ("values", "mask"))
        return (pd.arrays.BooleanArray if encoding == "nullable-boolean" else pd.arrays.IntegerArray)(values, mask)
    values = open_column(store, path)[rows]
    return pd.array(values, dtype=store.text_dtype(path)) if encoding == "nullable-string-array" else values


def numeric_column(array: ShardedArray) -> LazyColumn:
    """Make a column of the numbers in an array, as they are stored."""
    return LazyColumn(len(array), array.dtype, array.read)


def category_codes(store: Store, path: str, n_categories: int | None = None) -> LazyColumn:
    """Make a column of the codes of a categorical column, as they are stored; each is checked when it is read."""
    array = store.open_array(f"{path}/codes")
    n_labels = store.n_categories(path) if n_categories is None else n_categories
    return LazyColumn(len(array), array.dtype, partial(_read_codes, array, n_labels))


def code_column(store: Store, path: str) -> LazyColumn:
    """Make a column of codes as int32: they are stored as int8 if they fit, which would wrap in arithmetic."""
    codes = category_codes(store, path)
    return LazyColumn(codes.length, np.dtype(np.int32), partial(_read_as_int32, codes))


def decode_categories(codes: LazyColumn, categories: NDArray[Any]) -> LazyColumn:
    """Make a column of labels from a column of codes."""
    dtype = _decoded_dtype(categories)
    labels = np.empty(len(categories) + 1, dtype=dtype)
    labels[:-1] = categories
    labels[-1] = np.nan if dtype.kind == "f" else None
    return LazyColumn(codes.length, labels.dtype, partial(_read_decoded, codes, labels), codes, labels)


def _decoded_dtype(categories: NDArray[Any]) -> np.dtype[Any]:
    """Dtype that holds every category exactly, and a missing value."""
    kind = categories.dtype.kind
    if kind == "f":
        return categories.dtype
    is_exact = kind in "iu" and not (categories.astype("f8").astype(object) != categories.astype(object)).any()
    return np.dtype("f8" if is_exact else object)


def _read_codes(array: ShardedArray, n_labels: int, start: int, stop: int) -> NDArray[Any]:
    return check_codes(array.path, array.read(start, stop), n_labels)


def _read_as_int32(codes: LazyColumn, start: int, stop: int) -> NDArray[np.int32]:
    return codes.read(start, stop).astype(np.int32)


def _read_decoded(codes: LazyColumn, labels: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
    return labels[codes.read(start, stop)]  # code -1 selects the last entry, the missing value


def _read_nullable(values: LazyColumn, mask: LazyColumn, dtype: np.dtype[Any], start: int, stop: int) -> NDArray[Any]:
    out = values.read(start, stop).astype(dtype)
    out[mask.read(start, stop)] = np.nan if dtype.kind == "f" else None
    return out
