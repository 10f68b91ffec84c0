"""Writing AnnData dataframes: every kind of column in its encoding, slice by slice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert._internal.paths import is_entry_name
from lazypert._internal.texts import Texts
from lazypert.errors import SourceFormatError
from lazypert.store.format import TABLES

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lazypert.conversion.array_writer import ArrayWriter, Template, TextTemplate
    from lazypert.store.format import Grid

RESERVED_NAMES = ("_index", TABLES.rpartition("/")[2])
"""Names inside obs that columns cannot have."""

TEXT = "text"
"""Name of the texts of a column among its encoded arrays."""

_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}


def is_column_name(name: str) -> bool:
    """Whether text can be the name of a column of a store."""
    return name not in RESERVED_NAMES and is_entry_name(name)


def write_frame(writer: ArrayWriter, path: str, index: Any, columns: list[str]) -> None:
    """Create an AnnData dataframe group and write its index; the columns follow with `write_column`."""
    create_frame(writer, path, columns)
    writer.strings(f"{path}/_index", index)


def create_frame(writer: ArrayWriter, path: str, columns: list[str]) -> None:
    """Create an AnnData dataframe group, without its index and columns."""
    attrs: dict[str, Any] = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
    writer.group(path, {**attrs, "column-order": list(columns)})


def write_column(writer: ArrayWriter, frame: str, name: str, values: Any) -> None:
    """Write one column of a dataframe, in AnnData's encoding for its type.

    Raises
    ------
    SourceFormatError
        If the column's name cannot be the name of a Zarr array.
    """
    check_column_name(frame, name)
    values, path = _unwrap(values), f"{frame}/{name}"
    for array in _describe(writer, path, values, has_missing=bool(np.any(is_missing(values)))):
        writer.column(path + array.suffix, array.dtype, len(values), array.attrs)(0, array.encode(values))


def check_column_name(frame: str, name: str) -> None:
    """Raise `SourceFormatError` if a column's name cannot be the name of a Zarr array."""
    if not is_column_name(name):
        raise SourceFormatError(
            f"A column of {frame} is named {name!r}, which cannot be the name of a Zarr array. "
            "Rename the column in the source. No store was made."
        )


def create_column(
    writer: ArrayWriter, path: str, head: Any, grid: Grid, *, has_missing: bool
) -> dict[str, Template | TextTemplate]:
    """Create the arrays of a column, whose existing shards stay.

    Parameters
    ----------
    head
        Some of its values, or none, in the dtype of all of them.
    has_missing
        Whether any text is missing.

    Returns
    -------
    Templates by the names that `encode_column` uses.
    """
    templates: dict[str, Template | TextTemplate] = {}
    for array in _describe(writer, path, _unwrap(head), has_missing=has_missing):
        where = path + array.suffix
        if array.dtype == "string":
            templates[TEXT] = writer.text_template(where, grid, array.attrs, keep=True)
        else:
            templates[array.suffix] = writer.template(where, array.dtype, grid, array.attrs, keep=True)
    return templates


def encode_column(values: Any) -> dict[str, Any]:
    """Encode (n,) values of a column as its arrays in the store.

    Returns
    -------
    (n,) numbers by the suffix of the array's path; or for text, ``"/mask"``, whether they are missing, and `Texts` as
    `TEXT`.
    """
    if isinstance(values, Texts):  # none of them missing
        return {"/mask": np.zeros(len(values), bool), TEXT: values}
    values = _unwrap(values)
    if _is_text(values):
        missing = is_missing(values)
        return {"/mask": missing, TEXT: Texts.of(np.where(missing, "", np.asarray(values, object)))}
    return {array.suffix: np.asarray(array.encode(values)) for array in _arrays(values, has_missing=False)}


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


def _unwrap(values: Any) -> Any:
    """NumPy numbers without their pandas wrapper; other values as they are."""
    if isinstance(values, pd.Series):
        values = values.array
    if isinstance(values, pd.arrays.NumpyExtensionArray) and not isinstance(values.dtype, pd.StringDtype):
        return values.to_numpy()
    return values


def is_missing(values: Any) -> NDArray[np.bool_]:
    """(n,) whether each value is missing."""
    return np.asarray(pd.isna(values))


def _is_text(values: Any) -> bool:
    is_number = isinstance(values, np.ndarray) and values.dtype.kind in "fiub"
    masked = pd.arrays.IntegerArray | pd.arrays.BooleanArray | pd.arrays.FloatingArray
    return not is_number and not isinstance(values, pd.Categorical | masked)


def _describe(writer: ArrayWriter, path: str, values: Any, *, has_missing: bool) -> list[_ColumnArray]:
    """Return the arrays of a column; write the group and categories, if it has any."""
    dtype = getattr(values, "dtype", None)
    if isinstance(values, pd.Categorical):
        _write_categories(writer, path, values)
    elif isinstance(values, pd.arrays.IntegerArray | pd.arrays.BooleanArray):
        kind = "boolean" if values.dtype.kind == "b" else "integer"
        writer.group(path, {"encoding-type": f"nullable-{kind}", "encoding-version": "0.1.0"})
    elif _is_text(values) and (has_missing or isinstance(dtype, pd.StringDtype)):
        is_nan = isinstance(dtype, pd.StringDtype) and dtype.na_value is not pd.NA
        kind, na_value = "nullable-string-array", "NaN" if is_nan else "NA"
        writer.group(path, {"encoding-type": kind, "encoding-version": "0.1.0", "na-value": na_value})
    return _arrays(values, has_missing=has_missing)


def _arrays(values: Any, *, has_missing: bool) -> list[_ColumnArray]:
    """Choose the arrays of a column."""
    if isinstance(values, pd.Categorical):
        n = len(values.categories)
        dtype = "i1" if n < 2**7 else "i2" if n < 2**15 else "i4"
        return [_ColumnArray("/codes", dtype, _ARRAY, lambda values: values.codes)]
    mask = _ColumnArray("/mask", "bool", _ARRAY, is_missing)
    if isinstance(values, pd.arrays.IntegerArray | pd.arrays.BooleanArray):
        dtype = values.dtype.numpy_dtype
        return [
            _ColumnArray("/values", dtype, _ARRAY, lambda values: values.to_numpy(dtype=dtype, na_value=0)),
            mask,
        ]
    if isinstance(values, pd.arrays.FloatingArray):  # AnnData has no nullable floats, so missing values become NaN
        return [_ColumnArray("", "f8", _ARRAY, lambda values: values.to_numpy(dtype=np.float64, na_value=np.nan))]
    if not _is_text(values):
        return [_ColumnArray("", values.dtype, _ARRAY, lambda values: values)]
    if not has_missing and not isinstance(getattr(values, "dtype", None), pd.StringDtype):
        return [_ColumnArray("", "string", None, lambda values: values)]
    return [
        _ColumnArray(
            "/values", "string", None, lambda values: np.where(is_missing(values), "", np.asarray(values, object))
        ),
        mask,
    ]


def _write_categories(writer: ArrayWriter, path: str, values: pd.Categorical) -> None:
    attrs = {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": bool(values.ordered)}
    writer.group(path, attrs)
    categories = np.asarray(values.categories)
    if categories.dtype.kind in "fiub":
        writer.array(f"{path}/categories", categories, _ARRAY)
    else:
        writer.strings(f"{path}/categories", categories.astype(object))
