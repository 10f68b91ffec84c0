"""AnnData's obs and var tables, in every encoding since AnnData 0.5, read by column and by row range.

Opening a table looks at shapes and attributes only, and records where the values of each column are.
The result is a small picklable `Frame`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert.converter import is_entry_name
from lazypert_converters._tree import Array, Group, join

if TYPE_CHECKING:
    from numpy.typing import NDArray


_DATAFRAME_ENCODINGS = {("dataframe", "0.1.0"), ("dataframe", "0.2.0")}
_ARRAY_ENCODINGS = {("", ""), ("array", "0.2.0"), ("string-array", "0.2.0")}
_CATEGORICAL = ("categorical", "0.2.0")
_NULLABLE_KINDS = {
    ("nullable-integer", "0.1.0"): "iu",
    ("nullable-boolean", "0.1.0"): "b",
    ("nullable-string-array", "0.1.0"): "",
}
_OLD_CATEGORIES, _UNS_SUFFIX = "__categories", "_categories"
_RESERVED_NAMES = ("_index", "__lazypert__")
_CODES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Column:
    """Where the values of a column are.

    Attributes
    ----------
    values
        Path of the array of values, or of the codes of a categorical.
    field
        Name of the column within an array of records; empty elsewhere.
    labels
        Path of the categories of a categorical; None for other columns.
    mask
        Path of the mask of a nullable column; None for other columns.
    na_is_nan
        Whether missing text is NaN, as in pandas 3, rather than NA.
    """

    values: str
    field: str = ""
    labels: str | None = None
    ordered: bool = False
    mask: str | None = None
    na_is_nan: bool = False


@dataclass(frozen=True)
class Frame:
    """A table: its length, its index, and its columns in file order."""

    where: str
    length: int
    index: Column
    columns: dict[str, Column]
    not_carried: tuple[str, ...]


def open_frame(root: Group, where: str) -> Frame:
    """Check a table's structure and lengths. Reads no values, except for codes written by AnnData before 0.7."""
    node = root.child(where)
    if isinstance(node, Array):
        return _open_records(root, node)
    if node.encoding not in _DATAFRAME_ENCODINGS:
        raise node.fault(f"is {node.encoding_text}", "a dataframe of version 0.1.0 or 0.2.0")
    for name in ("_index", "column-order"):
        if name not in node.attributes():
            raise node.fault(f"has no attribute {name!r}", "the attributes '_index' and 'column-order'")
    index_name, names = str(node.attribute("_index")), _column_order(node)
    index = _open_column(root, node, index_name)
    if isinstance(index, str):
        raise node.fault(f"has an index, {index_name!r}, that is {index}", "an array of names")
    length = _values_of(root, index).vector().shape[0]
    columns, not_carried = {}, []
    for name in names:
        column = _bad_name(name) or _open_column(root, node, name)
        if isinstance(column, str):
            not_carried.append(f"{where}/{name}: {column}")
        else:
            _check_lengths(root, column, length)
            columns[name] = column
    known = {name.split("/")[0] for name in (*names, index_name, _OLD_CATEGORIES)}
    not_carried += [f"{where}/{name}: not listed in column-order" for name in node.names() if name not in known]
    return Frame(where, length, index, columns, tuple(not_carried))


def read_column(root: Group, column: Column, start: int = 0, stop: int | None = None) -> Any:
    """(stop - start,) values: a NumPy array, a Categorical with all categories, or a nullable array."""
    array = _values_of(root, column)
    values = array.read(start, stop)
    if column.labels is not None:
        return _categorical(array, values, _read_labels(root, column.labels), column.ordered)
    if column.mask is None:
        return values
    mask = root.array(column.mask).read(start, stop)
    with array.reading():
        if array.kind == "text":
            dtype = pd.StringDtype(na_value=np.nan) if column.na_is_nan else pd.StringDtype("python")
            values[mask] = None
            return pd.array(values, dtype=dtype)
        nullable = pd.arrays.BooleanArray if values.dtype.kind == "b" else pd.arrays.IntegerArray
        return nullable(values, mask)


def read_names(root: Group, frame: Frame, start: int = 0, stop: int | None = None) -> NDArray[Any]:
    """(stop - start,) index of a table as text, whatever its dtype in the file."""
    values = read_column(root, frame.index, start, stop)
    is_missing = np.asarray(pd.isna(values))
    if is_missing.any():
        raise root.tree.fault(
            frame.index.values, f"has no name at row {start + int(np.argmax(is_missing))}", "a name for each row"
        )
    if not isinstance(values, np.ndarray):
        values = np.asarray(values, dtype=object)
    return values if values.dtype == object else np.asarray(pd.Index(values).astype(str), dtype=object)


def read_frame(root: Group, frame: Frame) -> pd.DataFrame:
    """Read an entire table, indexed by name; text columns have dtype object in every version of pandas."""
    index = pd.Index(read_names(root, frame), dtype=object)
    columns = {}
    for name, column in frame.columns.items():
        values = read_column(root, column)
        dtype = object if isinstance(values, np.ndarray) and values.dtype == object else None
        columns[name] = pd.Series(values, index=index, dtype=dtype)
    return pd.DataFrame(columns, index=index)


def _column_order(node: Group) -> list[str]:
    listed = node.attribute("column-order")
    names = listed if isinstance(listed, list) else [listed] if isinstance(listed, str) else []
    if not all(isinstance(name, str) for name in names):
        raise node.fault(f"lists columns that are not text, {names!r}", "names")
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise node.fault(f"lists the column {repeated[0]!r} more than once", "a different name for each column")
    return names


def _bad_name(name: str) -> str | None:
    """Say why a column cannot be copied if its name cannot be that of an array in a store."""
    if name not in _RESERVED_NAMES and is_entry_name(name):
        return None
    return f"{name!r} cannot be the name of a column of a store (rename it to keep it)"


def _open_column(root: Group, frame: Group, name: str) -> Column | str:
    """Find the values of a column, or say why they cannot be copied."""
    node = frame.child(name)
    where = join(frame.where, name)
    if isinstance(node, Array):
        if node.encoding not in _ARRAY_ENCODINGS:
            return _unknown_encoding(node)
        if "categories" in node.attributes():  # AnnData 0.7
            return _open_old_categorical(root, frame, node)
        if not _is_plain(node):
            return f"an array of shape {node.shape} and dtype {node.dtype}, which cannot be a column of a store"
        return Column(where)
    if node.encoding == _CATEGORICAL:
        codes, labels = node.array("codes"), join(where, "categories")
        _check_codes(codes)
        _check_labels(root, labels)
        return Column(join(where, "codes"), labels=labels, ordered=bool(node.attribute("ordered", False)))
    if node.encoding in _NULLABLE_KINDS:
        return _open_nullable(node)
    return _unknown_encoding(node)


def _unknown_encoding(node: Array | Group) -> str:
    return f"{node.encoding_text}, which lazypert does not support"


def _is_plain(array: Array) -> bool:
    return len(array.shape) == 1 and array.kind in ("number", "text")


def _open_old_categorical(root: Group, frame: Group, node: Array) -> Column:
    _check_codes(node)
    reference = str(node.attribute("categories"))
    # An object reference is a path from the root; text is a path from the table.
    labels = reference.strip("/") if reference.startswith("/") else join(frame.where, reference)
    ordered = root.child(labels).attribute("ordered", False)
    _check_labels(root, labels)
    return Column(node.where, labels=labels, ordered=bool(ordered))


def _open_nullable(node: Group) -> Column:
    kinds = _NULLABLE_KINDS[node.encoding]
    values, mask = node.array("values").vector(), node.array("mask").vector()
    if values.kind != ("number" if kinds else "text") or (kinds and values.dtype.kind not in kinds):
        raise values.fault(f"is of dtype {values.dtype}", f"values of a {node.encoding[0]}")
    if mask.dtype.kind != "b":
        raise mask.fault(f"is of dtype {mask.dtype}", "booleans")
    return Column(values.where, mask=mask.where, na_is_nan=node.attribute("na-value", "NA") == "NaN")


def _check_codes(codes: Array) -> None:
    codes.vector()
    if codes.kind != "number" or codes.dtype.kind not in "iu":
        raise codes.fault(f"is of dtype {codes.dtype}", "integer codes of categories")


def _check_labels(root: Group, where: str) -> None:
    """Check that a node can hold categories; reads values only if they are nullable."""
    node = root.child(where)
    if isinstance(node, Group):
        _read_nullable_labels(root, node)
    else:
        _check_label_array(node)


def _check_label_array(node: Array) -> None:
    if len(node.shape) > 1 or node.kind not in ("number", "text"):
        raise node.fault(f"is an array of shape {node.shape} and dtype {node.dtype}", "categories")


def _read_labels(root: Group, where: str) -> NDArray[Any]:
    """(n_categories,) categories of a column."""
    node = root.child(where)
    if isinstance(node, Group):
        return _read_nullable_labels(root, node)
    _check_label_array(node)
    return np.atleast_1d(node.read())


def _read_nullable_labels(root: Group, node: Group) -> NDArray[Any]:
    if node.encoding not in _NULLABLE_KINDS:
        raise node.fault(f"is {node.encoding_text}", "categories")
    values = read_column(root, _open_nullable(node))
    if values.isna().any():
        raise node.fault("has a missing value", "categories, none of them missing")
    dtype = values.dtype.numpy_dtype if not isinstance(values.dtype, pd.StringDtype) else object
    return np.asarray(values, dtype=dtype)


def _categorical(array: Array, codes: NDArray[Any], labels: Any, ordered: bool) -> pd.Categorical:
    wrong = np.flatnonzero((codes < -1) | (codes >= len(labels)))
    if len(wrong):
        raise array.fault(
            f"holds the code {int(codes[wrong[0]])}", f"codes from -1 to {len(labels) - 1}, one per category"
        )
    with array.reading():
        dtype = object if labels.dtype == object else None
        return pd.Categorical.from_codes(codes, pd.Index(labels, dtype=dtype), ordered=ordered)


def _values_of(root: Group, column: Column) -> Array:
    array = root.array(column.values)
    return array.field(column.field) if column.field else array


def _check_lengths(root: Group, column: Column, length: int) -> None:
    for where in (column.values, *([column.mask] if column.mask else [])):
        array = root.array(where)
        if array.shape[0] != length:
            raise array.fault(f"has {array.shape[0]:,} values", f"{length:,}, one per row of the index")


def _open_records(root: Group, node: Array) -> Frame:
    """Open a table written by AnnData before 0.7: an array of records whose first field is the index."""
    if node.kind != "record":
        raise node.fault(f"is an array of dtype {node.dtype}", "a dataframe")
    node.vector()
    index, *names = node.dtype.names or ("",)
    fields = {name: node.field(name) for name in (index, *names)}
    columns, not_carried = {}, []
    for name in names:
        if (reason := _bad_name(name)) is not None:
            not_carried.append(f"{node.where}/{name}: {reason}")
        elif _is_plain(fields[name]):
            columns[name] = Column(node.where, name)
        else:
            not_carried.append(
                f"{fields[name].where}: of dtype {node.dtype[name]}, which cannot be a column of a store"
            )
    if not _is_plain(fields[index]):
        raise fields[index].fault(f"is of dtype {node.dtype[index]}", "an index of names")
    columns = {name: _with_labels(root, column) for name, column in columns.items()}
    return Frame(node.where, node.shape[0], Column(node.where, index), columns, tuple(not_carried))


def _with_labels(root: Group, column: Column) -> Column:
    """Find the categories of codes in ``uns`` as AnnData does: by column name, provided that all codes fit."""
    if "/" in column.values or "." in column.values or "uns" not in root.names():  # raw.var has no categories
        return column
    uns = root.child("uns")
    if not isinstance(uns, Group):
        return column
    keys = [key for key in uns.names() if key.endswith(_UNS_SUFFIX) and key.replace(_UNS_SUFFIX, "") == column.field]
    codes = _values_of(root, column)
    if not keys or codes.dtype.kind not in "iu":
        return column
    labels = join("uns", keys[-1])
    n_labels = len(_read_labels(root, labels))
    for start in range(0, codes.shape[0], _CODES_AT_ONCE):
        if (codes.read(start, start + _CODES_AT_ONCE) >= n_labels).any():
            return column  # the categories belong to the column of the same name in the other table
    return Column(column.values, column.field, labels=labels)


def labels_in_uns(frames: list[Frame]) -> set[str]:
    """Names of the entries of ``uns`` that hold the categories of a column."""
    return {c.labels.removeprefix("uns/") for f in frames for c in f.columns.values() if c.labels and c.field}
