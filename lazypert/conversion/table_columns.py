"""Columns of tables of cells, in dtypes that obs can have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert.errors import SourceFormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OBJECTS = {"boolean": "boolean", "integer": "Int64", "floating": "float64", "mixed-integer-float": "float64"}
"""Dtype for columns of Python objects, by what pandas infers that they hold."""

_NULLABLE = {"b": "boolean", "i": "Int64", "u": "UInt64"}


def storable(table: str, name: str, column: pd.Series[Any]) -> Any:
    """Return the values of a column in a dtype that obs can have.

    Parameters
    ----------
    table, name
        What messages call the table, and the name of the column.

    Returns
    -------
    (n_rows,) Categorical, nullable array, array of numbers, or object array of text and None.

    Raises
    ------
    SourceFormatError
        If the column holds anything but text, categories, numbers and booleans.
    """
    if isinstance(column.dtype, pd.ArrowDtype):
        column = column.convert_dtypes(dtype_backend="numpy_nullable")
    dtype, values = column.dtype, column.array
    if isinstance(values, pd.Categorical):
        _check_categories(table, name, values.categories)
        return values
    if isinstance(dtype, pd.StringDtype):
        return _as_text(column)
    if pd.api.types.is_object_dtype(dtype):
        kind = pd.api.types.infer_dtype(column, skipna=True)
        if kind == "string":
            return _as_text(column)
        if kind == "empty":  # no value at all
            return np.full(len(column), np.nan)
        if kind in _OBJECTS:
            column = column.astype(_OBJECTS[kind])
            return column.to_numpy() if _OBJECTS[kind] == "float64" else column.array
        raise _unsupported(table, name, f"{kind} values")
    if isinstance(values, pd.arrays.IntegerArray | pd.arrays.BooleanArray | pd.arrays.FloatingArray):
        return values
    numbers = column.to_numpy()
    if numbers.dtype.kind not in "fiub" or numbers.dtype.itemsize > 8:
        raise _unsupported(table, name, f"{pd.api.types.infer_dtype(column)} values ({dtype})")
    return numbers.astype(np.float32) if numbers.dtype == np.float16 else numbers


def take_rows(values: pd.Series[Any], rows: NDArray[np.integer]) -> Any:
    """(n_cells,) values of a column for each cell, missing where its row is -1.

    `nullable` says which dtype a column needs for that.
    """
    if not len(values):
        return pd.Series([None] * len(rows), dtype=values.dtype).array
    taken = pd.Series(values.array).array.take(rows, allow_fill=bool((rows < 0).any()))
    is_plain = isinstance(taken, pd.arrays.NumpyExtensionArray) and not isinstance(taken.dtype, pd.StringDtype)
    return taken.to_numpy() if is_plain else taken


def nullable(frame: pd.DataFrame) -> pd.DataFrame:
    """Convert integer and boolean columns to pandas' nullable dtypes, so that cells may lack a value."""
    plain = {name: dtype for name, dtype in frame.dtypes.items() if isinstance(dtype, np.dtype)}
    return frame.astype({name: _NULLABLE[dtype.kind] for name, dtype in plain.items() if dtype.kind in _NULLABLE})


def _as_text(column: pd.Series[Any]) -> NDArray[Any]:
    text: NDArray[Any] = column.to_numpy(dtype=object, na_value=None, copy=True)  # the caller keeps theirs
    text[np.asarray(pd.isna(text))] = None
    return text


def _check_categories(table: str, name: str, categories: pd.Index[Any]) -> None:
    is_numeric = np.asarray(categories).dtype.kind in "fiub"
    if len(categories) and not is_numeric and pd.api.types.infer_dtype(categories) != "string":
        raise _unsupported(table, name, f"categories of {pd.api.types.infer_dtype(categories)}")


def _unsupported(table: str, name: str, kind: str) -> SourceFormatError:
    return SourceFormatError(
        f"{table} has the column {name!r} of {kind}, expected text, categories, numbers or booleans. Convert it, such "
        f"as with frame[{name!r}].astype(str), or drop it. Nothing was written."
    )
