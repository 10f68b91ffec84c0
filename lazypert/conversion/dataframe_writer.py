"""AnnData's dataframes: every kind of column in its encoding, written piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from lazypert.errors import SourceFormatError
from lazypert.store.format import TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lazypert.conversion.store_writer import StoreWriter

_RESERVED = {"", ".", "..", "_index", "zarr.json", TABLES.rpartition("/")[2]}
_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}


class Pieces(Protocol):
    """(n,) values of one dtype that come piece by piece, each from a multiple of ``COLUMN_SHARD`` on."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def has_missing(self) -> bool:
        """Whether any value is missing."""
        ...


@dataclass(frozen=True)
class Whole:
    """Values that are all there: one piece."""

    values: Any

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        yield self.values

    def has_missing(self) -> bool:
        """Whether any value is missing."""
        return bool(np.any(pd.isna(self.values)))


def write_frame(writer: StoreWriter, path: str, index: Pieces, columns: list[str]) -> None:
    """Create an AnnData dataframe group and its index; columns follow with `write_column`."""
    attrs: dict[str, Any] = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
    writer.group(path, {**attrs, "column-order": list(columns)})
    _write(writer, f"{path}/_index", index, [_Part("", "string", None, lambda values: values)])


def write_column(writer: StoreWriter, frame: str, name: str, values: Pieces) -> None:
    """Write one column of a dataframe, in AnnData's encoding for its type.

    Raises
    ------
    SourceFormatError
        When the column's name cannot be that of a Zarr array.
    """
    if name in _RESERVED or "/" in name:
        raise SourceFormatError(
            f"A column of {frame} is named {name!r}, which cannot be the name of a Zarr array. "
            "Rename the column in the source. No store was made."
        )
    path = f"{frame}/{name}"
    _write(writer, path, values, _parts(writer, path, values))


@dataclass(frozen=True, slots=True)
class _Part:
    """An array that a column is made of, and how to take its values from the column's."""

    below: str
    dtype: Any
    attrs: dict[str, Any] | None
    take: Callable[[Any], Any]


def _write(writer: StoreWriter, path: str, values: Pieces, parts: list[_Part]) -> None:
    arrays = [writer.pieces(path + part.below, part.dtype, len(values), part.attrs) for part in parts]
    start = 0
    for piece in values:
        for part, write in zip(parts, arrays, strict=True):
            write(start, part.take(_plain(piece)))
        start += len(piece)
    assert start == len(values), (path, start)


def _plain(values: Any) -> Any:
    """Numbers as NumPy has them, whatever pandas wraps them in."""
    if isinstance(values, pd.Series):
        values = values.array
    if isinstance(values, pd.arrays.NumpyExtensionArray) and not isinstance(values.dtype, pd.StringDtype):
        return values.to_numpy()
    return values


def _parts(writer: StoreWriter, path: str, values: Pieces) -> list[_Part]:
    """Arrays of a column, by its first piece; groups and categories are written here."""
    first = _plain(next(iter(values)))
    if isinstance(first, pd.Categorical):
        return _categorical(writer, path, first)
    if isinstance(first, pd.arrays.IntegerArray | pd.arrays.BooleanArray):
        kind, dtype = "boolean" if first.dtype.kind == "b" else "integer", first.dtype.numpy_dtype
        writer.group(path, {"encoding-type": f"nullable-{kind}", "encoding-version": "0.1.0"})
        held = _Part("/values", dtype, _ARRAY, lambda piece: piece.to_numpy(dtype=dtype, na_value=0))
        return [held, _Part("/mask", "bool", _ARRAY, _is_missing)]
    if isinstance(first, pd.arrays.FloatingArray):  # AnnData has no nullable floats; NaN says the same
        return [_Part("", "f8", _ARRAY, lambda piece: piece.to_numpy(dtype=np.float64, na_value=np.nan))]
    if isinstance(first, np.ndarray) and first.dtype.kind in "fiub":
        return [_Part("", first.dtype, _ARRAY, lambda piece: piece)]
    return _text(writer, path, values, getattr(first, "dtype", None))


def _is_missing(values: Any) -> Any:
    return np.asarray(pd.isna(values))


def _text(writer: StoreWriter, path: str, values: Pieces, kind: Any) -> list[_Part]:
    nullable = isinstance(kind, pd.StringDtype)
    if not nullable and not values.has_missing():
        return [_Part("", "string", None, lambda piece: piece)]
    nan = nullable and kind.na_value is not pd.NA
    attrs = {"encoding-type": "nullable-string-array", "encoding-version": "0.1.0", "na-value": "NaN" if nan else "NA"}
    writer.group(path, attrs)
    held = _Part("/values", "string", None, lambda piece: np.where(_is_missing(piece), "", np.asarray(piece, object)))
    return [held, _Part("/mask", "bool", _ARRAY, _is_missing)]


def _categorical(writer: StoreWriter, path: str, first: pd.Categorical) -> list[_Part]:
    attrs = {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": bool(first.ordered)}
    writer.group(path, attrs)
    categories = np.asarray(first.categories)
    if categories.dtype.kind in "fiub":
        writer.array(f"{path}/categories", categories, _ARRAY)
    else:
        writer.strings(f"{path}/categories", categories.astype(object))
    n = len(categories)
    dtype = "i1" if n < 2**7 else "i2" if n < 2**15 else "i4"
    return [_Part("/codes", dtype, _ARRAY, lambda piece: piece.codes)]
