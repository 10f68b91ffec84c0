"""Values of a table's column, in the order of a store's cells and in a dtype that AnnData writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert.conversion.table_columns import storable

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
    SourceFormatError
        If the column holds anything but text, numbers and booleans.
    """
    values = storable("the table", name, column)
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
    taken = values[row]  # row -1 takes the last value, which is then replaced
    if is_missing.any():
        taken[is_missing] = fill
    return taken


def _text_values(values: NDArray[Any], row: NDArray[np.int64]) -> Any:
    codes, labels = pd.factorize(values, sort=True)
    codes = _take(codes, row, -1)
    used = np.unique(codes[codes >= 0])
    if len(used) < len(row):
        renumbered = np.full(len(labels) + 1, -1)
        renumbered[used] = np.arange(len(used))
        return pd.Categorical.from_codes(renumbered[codes], np.asarray(labels, dtype=object)[used])
    return _take(values, row, None)
