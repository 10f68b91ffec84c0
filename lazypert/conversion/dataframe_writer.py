"""Writing AnnData dataframes: every kind of column in its encoding, slice by slice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from lazypert._internal.paths import is_entry_name
from lazypert.errors import SourceFormatError
from lazypert.store.format import TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lazypert.conversion.array_writer import ArrayWriter

RESERVED_NAMES = ("_index", TABLES.rpartition("/")[2])
"""Names inside obs that columns cannot have."""

_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}


def is_column_name(name: str) -> bool:
    """Whether text can be the name of a column of a store."""
    return name not in RESERVED_NAMES and is_entry_name(name)


class ColumnValues(Protocol):
    """(n,) values of one dtype, iterated in slices that start at multiples of ``COLUMN_SHARD``."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def has_missing(self) -> bool:
        """Whether any value is missing."""
        ...


@dataclass(frozen=True)
class InMemoryColumn:
    """Values that are all in memory: a single slice."""

    values: Any

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        yield self.values

    def has_missing(self) -> bool:
        """Whether any value is missing."""
        return bool(np.any(pd.isna(self.values)))


def write_frame(writer: ArrayWriter, path: str, index: ColumnValues, columns: list[str]) -> None:
    """Create an AnnData dataframe group and its index; the columns follow with `write_column`."""
    attrs: dict[str, Any] = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
    writer.group(path, {**attrs, "column-order": list(columns)})
    _write_arrays(writer, f"{path}/_index", index, [_ColumnArray("", "string", None, lambda values: values)])


def write_column(writer: ArrayWriter, frame: str, name: str, values: ColumnValues) -> None:
    """Write one column of a dataframe, in AnnData's encoding for its type.

    Raises
    ------
    SourceFormatError
        If the column's name cannot be the name of a Zarr array.
    """
    if not is_column_name(name):
        raise SourceFormatError(
            f"A column of {frame} is named {name!r}, which cannot be the name of a Zarr array. "
            "Rename the column in the source. No store was made."
        )
    path = f"{frame}/{name}"
    _write_arrays(writer, path, values, _create_column(writer, path, values))


@dataclass(frozen=True, slots=True)
class _ColumnArray:
    """One of the arrays that encode a column.

    Attributes
    ----------
    suffix
        Its path, appended to the column's.
    encode
        Turns a slice of the column into the array's values.
    """

    suffix: str
    dtype: Any
    attrs: dict[str, Any] | None
    encode: Callable[[Any], Any]


def _write_arrays(writer: ArrayWriter, path: str, values: ColumnValues, arrays: list[_ColumnArray]) -> None:
    writes = [writer.column(path + array.suffix, array.dtype, len(values), array.attrs) for array in arrays]
    start = 0
    for slice_ in values:
        for array, write in zip(arrays, writes, strict=True):
            write(start, array.encode(_unwrap(slice_)))
        start += len(slice_)
    assert start == len(values), (path, start)


def _unwrap(values: Any) -> Any:
    """NumPy numbers without their pandas wrapper; other values as they are."""
    if isinstance(values, pd.Series):
        values = values.array
    if isinstance(values, pd.arrays.NumpyExtensionArray) and not isinstance(values.dtype, pd.StringDtype):
        return values.to_numpy()
    return values


def _create_column(writer: ArrayWriter, path: str, values: ColumnValues) -> list[_ColumnArray]:
    """Choose the arrays of a column from its first slice; write the group and categories, if it has any."""
    first = _unwrap(next(iter(values)))
    if isinstance(first, pd.Categorical):
        return _create_categorical(writer, path, first)
    if isinstance(first, pd.arrays.IntegerArray | pd.arrays.BooleanArray):
        kind, dtype = "boolean" if first.dtype.kind == "b" else "integer", first.dtype.numpy_dtype
        writer.group(path, {"encoding-type": f"nullable-{kind}", "encoding-version": "0.1.0"})
        filled = _ColumnArray("/values", dtype, _ARRAY, lambda values: values.to_numpy(dtype=dtype, na_value=0))
        return [filled, _ColumnArray("/mask", "bool", _ARRAY, _is_missing)]
    if isinstance(first, pd.arrays.FloatingArray):  # AnnData has no nullable floats, so missing values become NaN
        return [_ColumnArray("", "f8", _ARRAY, lambda values: values.to_numpy(dtype=np.float64, na_value=np.nan))]
    if isinstance(first, np.ndarray) and first.dtype.kind in "fiub":
        return [_ColumnArray("", first.dtype, _ARRAY, lambda values: values)]
    return _create_text(writer, path, values, getattr(first, "dtype", None))


def _is_missing(values: Any) -> Any:
    return np.asarray(pd.isna(values))


def _create_text(writer: ArrayWriter, path: str, values: ColumnValues, dtype: Any) -> list[_ColumnArray]:
    is_nullable = isinstance(dtype, pd.StringDtype)
    if not is_nullable and not values.has_missing():
        return [_ColumnArray("", "string", None, lambda values: values)]
    na_value = "NaN" if is_nullable and dtype.na_value is not pd.NA else "NA"
    writer.group(path, {"encoding-type": "nullable-string-array", "encoding-version": "0.1.0", "na-value": na_value})
    filled = _ColumnArray(
        "/values", "string", None, lambda values: np.where(_is_missing(values), "", np.asarray(values, object))
    )
    return [filled, _ColumnArray("/mask", "bool", _ARRAY, _is_missing)]


def _create_categorical(writer: ArrayWriter, path: str, first: pd.Categorical) -> list[_ColumnArray]:
    attrs = {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": bool(first.ordered)}
    writer.group(path, attrs)
    categories = np.asarray(first.categories)
    if categories.dtype.kind in "fiub":
        writer.array(f"{path}/categories", categories, _ARRAY)
    else:
        writer.strings(f"{path}/categories", categories.astype(object))
    n = len(categories)
    dtype = "i1" if n < 2**7 else "i2" if n < 2**15 else "i4"
    return [_ColumnArray("/codes", dtype, _ARRAY, lambda values: values.codes)]
