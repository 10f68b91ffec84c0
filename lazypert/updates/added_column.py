"""Values of a table's column, in the order of a store's cells and in a dtype that AnnData writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OBJECTS = {"boolean": "boolean", "integer": "Int64", "floating": "float64", "mixed-integer-float": "float64"}
"""Dtype for columns of Python objects, by what pandas infers that they hold."""


def column_values(name: str, column: pd.Series[Any], row: NDArray[np.int64]) -> Any:
    """Return the values of a column for the cells of a store.

    Text becomes categorical if labels repeat, as AnnData writes it. Cells without a row get a missing value: no
    category, NaN for floats, and NA for integers, booleans and text.

    Parameters
    ----------
    name
        Name of the column, for errors.
    row
        (n_obs,) row of the column for each cell, -1 for none.

    Returns
    -------
    (n_obs,) NumPy array, Categorical or nullable array.

    Raises
    ------
    ConfigError
        If the column holds anything but text, numbers and booleans.
    """
    values = _known_dtype(name, column)
    if isinstance(values, pd.Categorical):
        _check_categories(name, values.categories)
        codes = _take(np.asarray(values.codes), row, -1)
        return pd.Categorical.from_codes(codes, dtype=values.dtype)
    if isinstance(values, np.ndarray) and values.dtype.kind == "O":
        return _text_values(values, row)
    is_missing = row < 0
    if not isinstance(values, np.ndarray):
        return pd.api.extensions.take(values, row, allow_fill=True)
    if values.dtype.kind == "f" or not is_missing.any():
        return _take(values, row, np.nan)
    nullable = pd.arrays.BooleanArray if values.dtype.kind == "b" else pd.arrays.IntegerArray
    return nullable(_take(values, row, 0), is_missing)


def _take(values: NDArray[Any], row: NDArray[np.int64], fill: Any) -> NDArray[Any]:
    is_missing = row < 0
    if not len(values):
        return np.full(len(row), fill, dtype=values.dtype)
    taken = values[row]  # row -1 takes the last value, which is then replaced
    if is_missing.any():
        taken[is_missing] = fill
    return taken


def _known_dtype(name: str, column: pd.Series[Any]) -> Any:
    """Return a column as a Categorical, a nullable array, an array of numbers, or an object array of text and None."""
    if isinstance(column.dtype, pd.ArrowDtype):
        column = column.convert_dtypes(dtype_backend="numpy_nullable")
    dtype = column.dtype
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
        raise _unsupported(name, kind)
    values = column.array
    known = (pd.Categorical, pd.arrays.IntegerArray, pd.arrays.BooleanArray, pd.arrays.FloatingArray)
    if isinstance(values, known):
        return values
    numbers = column.to_numpy()
    if numbers.dtype.kind not in "fiub" or numbers.dtype.itemsize > 8:
        raise _unsupported(name, str(dtype))
    return numbers.astype(np.float32) if numbers.dtype == np.float16 else numbers


def _as_text(column: pd.Series[Any]) -> NDArray[Any]:
    text: NDArray[Any] = column.to_numpy(dtype=object, na_value=None, copy=True)  # the caller keeps theirs
    text[np.asarray(pd.isna(text))] = None
    return text


def _text_values(values: NDArray[Any], row: NDArray[np.int64]) -> Any:
    codes, labels = pd.factorize(values, sort=True)
    codes = _take(codes, row, -1)
    used = np.unique(codes[codes >= 0])
    if len(used) < len(row):
        renumbered = np.full(len(labels) + 1, -1)
        renumbered[used] = np.arange(len(used))
        return pd.Categorical.from_codes(renumbered[codes], np.asarray(labels, dtype=object)[used])
    return _take(values, row, None)


def _check_categories(name: str, categories: pd.Index[Any]) -> None:
    is_numeric = categories.dtype.kind in "fiub" if isinstance(categories.dtype, np.dtype) else False
    if len(categories) and not is_numeric and pd.api.types.infer_dtype(categories) != "string":
        raise _unsupported(name, f"categories of {pd.api.types.infer_dtype(categories)}")


def _unsupported(name: str, kind: str) -> ConfigError:
    return ConfigError(
        f"table: got the column {name!r} of {kind} values, expected text, categories, numbers or booleans. Convert it, "
        f"such as with table[{name!r}].astype(str), or choose others with columns=[...]. Nothing was changed."
    )
