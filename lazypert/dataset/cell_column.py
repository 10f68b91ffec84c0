"""Coordinates along ``cell``, read from the store when their values are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pandas as pd
from numpy.lib.mixins import NDArrayOperatorsMixin

from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import DTypeLike, NDArray

    from lazypert.store.columns import LazyColumn

_MAX_KEPT_BYTES = 16 * 1024**2
"""A column of at most this many bytes is kept in memory once it is read."""

_CELLS_AT_ONCE = 1_048_576
"""Cells whose values are in memory together where a function is applied to each of them."""

_TEXT_BYTES = 64
"""Approximate memory of one distinct string, beside its pointer."""

_IN_PLACE = {"byteswap", "fill", "itemset", "partition", "put", "resize", "setfield", "setflags", "sort"}
"""Methods of NumPy arrays that a column does not have, because they change the array."""


class CellColumn(NDArrayOperatorsMixin):
    """A column of the current cells, as an array that xarray leaves in the store.

    xarray computes all Dask and backend arrays of a DataArray at once, coordinates included, so that
    ``ds.X.sum("gene").compute()`` would read every cell name. It takes other arrays with NumPy's protocols for
    arrays in memory and leaves them alone. Selecting cells selects rows and reads nothing. Everything else reads
    the values of these rows and goes on with a NumPy array, or with a lazy Dask array where one is involved.

    Parameters
    ----------
    column
        The column of the whole store.
    rows
        Store rows of the cells: a range, or (n,) int64 in any order, repeats allowed.
    is_text
        Whether every value is a string object of its own, unlike labels, which are shared.
    """

    ndim = 1

    def __init__(self, column: LazyColumn, rows: range | NDArray[np.int64] | None = None, *, is_text: bool) -> None:
        self.column, self.is_text = column, is_text
        self.rows = range(column.length) if rows is None else rows
        self._values: NDArray[Any] | None = None

    def __repr__(self) -> str:
        return f"CellColumn({len(self):,} cells, {self.dtype}; read when used)"

    def _repr_inline_(self, max_width: int) -> str:
        """Show a coordinate in the repr of a Dataset, without reading it."""
        return "..."[:max_width]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Any]:
        return iter(np.asarray(self))

    @property
    def shape(self) -> tuple[int]:
        """One dimension, ``cell``."""
        return (len(self),)

    @property
    def size(self) -> int:
        """Number of cells."""
        return len(self)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the values; object for text and labels."""
        return self.column.dtype

    @property
    def nbytes(self) -> int:
        """Approximate memory of the values in bytes, once they are read."""
        return len(self) * (self.dtype.itemsize + (_TEXT_BYTES if self.is_text else 0))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        values = self._read()
        if copy and values is self._values:
            values = values.copy()
        return values if dtype is None else values.astype(dtype, copy=False)

    def _read(self) -> NDArray[Any]:
        if self._values is not None:
            return self._values
        values = self.column[_as_slice(self.rows) if isinstance(self.rows, range) else self.rows]
        if self.nbytes <= _MAX_KEPT_BYTES:
            self._values = values
        return values

    def __getitem__(self, key: Any) -> Any:
        parts = tuple(part for part in key if part is not Ellipsis) if isinstance(key, tuple) else (key,)
        if not parts:
            return self
        if any(part is None for part in parts):  # a new axis, which xarray adds to compare the column with a matrix
            return (np.asarray(self) if self.nbytes <= _MAX_KEPT_BYTES else self.to_dask())[key]
        (selected,) = parts
        if isinstance(selected, slice):
            rows = self.rows[selected]
        else:
            rows = self._take_rows(np.asarray(selected))
            if rows.ndim == 0 and Ellipsis not in (key if isinstance(key, tuple) else ()):
                return self.column[rows][()]  # a scalar; with an ellipsis an array without dimensions, as in NumPy
            if rows.ndim != 1:
                return self.column[rows]
        return CellColumn(self.column, rows, is_text=self.is_text)

    def _take_rows(self, positions: NDArray[Any]) -> NDArray[np.int64]:
        """Store rows of cells by position or mask."""
        if not isinstance(self.rows, range):
            return np.asarray(self.rows[positions])
        if positions.dtype == bool:
            positions = np.flatnonzero(positions)
        n = len(self.rows)
        if positions.size and not -n <= positions.min() <= positions.max() < n:
            raise IndexError(f"cell: got {positions.min()} to {positions.max()}, expected positions of {n:,} cells.")
        if positions.dtype.kind in "iu" and self.rows == range(self.column.length) and not (positions < 0).any():
            return np.asarray(positions, np.int64)  # not copied, so that all columns share the rows
        return self.rows.start + self.rows.step * np.where(positions < 0, positions + n, positions).astype(np.int64)

    def __setitem__(self, key: Any, value: Any) -> None:
        raise ConfigError(
            "A column of the store cannot be changed in place. Assign a new one: "
            "ds.assign_coords(name=('cell', values))."
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> CellColumn:
        return self  # nothing can change it

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_values": None}  # a worker reads what it needs

    def __getattr__(self, name: str) -> Any:
        """Return a method of NumPy arrays, which reads the values when it is called."""
        if name.startswith("_") or name in _IN_PLACE or not callable(getattr(np.ndarray, name, None)):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return lambda *args, **options: getattr(np.asarray(self), name)(*args, **options)

    def to_dask(self) -> da.Array:
        """Make a lazy Dask array; nothing is read."""
        rows, whole = self.rows, self.column.to_dask()
        return whole[_as_slice(rows)] if isinstance(rows, range) else whole[rows]

    def __ne__(self, other: Any) -> Any:
        if other is self:  # how xarray looks for missing values in arrays of objects that are not NumPy's
            return pd.isna(np.asarray(self))
        return super().__ne__(other)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if method == "__call__" and not options and not _has_dask(inputs) and self._is_alone(inputs):
            return self._by_element(ufunc, inputs, by_label=ufunc in (np.equal, np.not_equal))
        return getattr(ufunc, method)(*_materialise(inputs, is_lazy=_has_dask(inputs)), **options)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        if function is np.isin and args[0] is self and not _has_column((args[1:], options)):
            return self._by_element(function, args, by_label=True, **options)
        is_lazy = _has_dask((args, options))
        return function(*_materialise(args, is_lazy=is_lazy), **_materialise(options, is_lazy=is_lazy))

    def _is_alone(self, inputs: tuple[Any, ...]) -> bool:
        """Whether all other inputs of a function are scalars."""
        return all(value is self or isinstance(value, str) or np.ndim(value) == 0 for value in inputs)

    def _by_element(self, function: Any, args: tuple[Any, ...], *, by_label: bool, **options: Any) -> NDArray[Any]:
        """Apply a function of each element, a bounded number at a time: a mask takes one byte per cell.

        Parameters
        ----------
        by_label
            Whether it is enough to apply it to the labels of a categorical column, missing ones included.
        """

        def apply(values: Any) -> Any:
            return function(*(values if arg is self else arg for arg in args), **options)

        column, labels, parts = self, self.column.labels, []
        if by_label and labels is not None and self.column.codes is not None:
            of_label = apply(labels)
            column = CellColumn(self.column.codes, self.rows, is_text=False)
        for start in range(0, max(1, len(self)), _CELLS_AT_ONCE):
            values = column[start : start + _CELLS_AT_ONCE]._read()
            parts.append(apply(values) if column is self else of_label[values])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _as_slice(rows: range) -> slice:
    return slice(rows.start, rows.stop if rows.stop >= 0 else None, rows.step)


def _has_dask(values: Any) -> bool:
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, tuple | list):
        return isinstance(values, da.Array)
    return any(_has_dask(value) for value in values)


def _has_column(values: Any) -> bool:
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, tuple | list):
        return isinstance(values, CellColumn | da.Array)
    return any(_has_column(value) for value in values)


def _materialise(values: Any, *, is_lazy: bool) -> Any:
    """Replace columns, also in nested arguments, by their values, or by Dask arrays if the result is lazy."""
    if isinstance(values, CellColumn):
        return values.to_dask() if is_lazy else np.asarray(values)
    if isinstance(values, dict):
        return {name: _materialise(value, is_lazy=is_lazy) for name, value in values.items()}
    if isinstance(values, tuple | list):
        return type(values)(_materialise(value, is_lazy=is_lazy) for value in values)
    return values
