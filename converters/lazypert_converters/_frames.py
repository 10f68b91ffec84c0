"""AnnData's tables, obs and var, in every encoding since AnnData 0.5, read by column and in pieces.

Opening a table looks at shapes and attributes only and says where each column's values are; a
`Frame` is a small value that can be pickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert_converters._tree import Array, Group, join

if TYPE_CHECKING:
    from numpy.typing import NDArray


DATAFRAME = {("dataframe", "0.1.0"), ("dataframe", "0.2.0")}
_PLAIN = {("", ""), ("array", "0.2.0"), ("string-array", "0.2.0")}
_CATEGORICAL = ("categorical", "0.2.0")
_NULLABLE = {
    ("nullable-integer", "0.1.0"): "iu",
    ("nullable-boolean", "0.1.0"): "b",
    ("nullable-string-array", "0.1.0"): "",
}
_OLD_CATEGORIES, _IN_UNS = "__categories", "_categories"
_CANNOT_BE_STORED = ("", ".", "..", "zarr.json", "_index")
_AT_ONCE = 1 << 20  # codes looked at together


@dataclass(frozen=True)
class Column:
    """Where the values of a column are.

    Attributes
    ----------
    values
        Path of the array of values, or of a categorical's codes.
    field
        Name of the column in an array of records; empty elsewhere.
    labels
        Path of a categorical's categories; None for other columns.
    mask
        Path of the mask of a nullable column; None for other columns.
    na_is_nan
        Whether a missing text is NaN, as pandas 3 has it, and not NA.
    """

    values: str
    field: str = ""
    labels: str | None = None
    ordered: bool = False
    mask: str | None = None
    na_is_nan: bool = False


@dataclass(frozen=True)
class Frame:
    """A table: its length, its index, and its columns in the file's order."""

    where: str
    length: int
    index: Column
    columns: dict[str, Column]
    not_carried: tuple[str, ...]


def open_frame(root: Group, where: str) -> Frame:
    """Look at a table's structure and lengths; no values are read, but for codes of AnnData before 0.7."""
    node = root.child(where)
    if isinstance(node, Array):
        return _open_records(root, node)
    if node.encoding not in DATAFRAME:
        raise node.fault(f"is encoded as {_named(node.encoding)}", "a dataframe of version 0.1.0 or 0.2.0")
    for name in ("_index", "column-order"):
        if name not in node.attributes():
            raise node.fault(f"has no attribute {name!r}", "the attributes '_index' and 'column-order'")
    key, names = str(node.attribute("_index")), _column_order(node)
    index = _column(root, node, key)
    if isinstance(index, str):
        raise node.fault(f"has an index, {key!r}, that is {index}", "an array of names")
    length = _length(root, index)
    columns, not_carried = {}, []
    for name in names:
        _check_name(node, name)
        column = _column(root, node, name)
        if isinstance(column, str):
            not_carried.append(f"{where}/{name}: {column}")
        else:
            _check_lengths(root, column, length)
            columns[name] = column
    listed = {name.split("/")[0] for name in (*names, key, _OLD_CATEGORIES)}
    not_carried += [f"{where}/{name}: not in column-order" for name in node.names() if name not in listed]
    return Frame(where, length, index, columns, tuple(not_carried))


def read_column(root: Group, column: Column, start: int = 0, stop: int | None = None) -> Any:
    """(stop - start,) values: a NumPy array, a Categorical with all categories, or a nullable array."""
    array = _array(root, column)
    values = array.read(start, stop)
    if column.labels is not None:
        return _categorical(array, values, _labels(root, column.labels), column.ordered)
    if column.mask is None:
        return values
    mask = root.array(column.mask).read(start, stop)
    with array.reading():
        if array.kind == "text":
            dtype = pd.StringDtype(na_value=np.nan) if column.na_is_nan else pd.StringDtype("python")
            values[mask] = None
            return pd.array(values, dtype=dtype)
        kind = pd.arrays.BooleanArray if values.dtype.kind == "b" else pd.arrays.IntegerArray
        return kind(values, mask)


def read_names(root: Group, frame: Frame, start: int = 0, stop: int | None = None) -> NDArray[Any]:
    """(stop - start,) index of a table as text, whatever it is in the file."""
    values = read_column(root, frame.index, start, stop)
    absent = np.asarray(pd.isna(values))
    if absent.any():
        raise root.tree.fault(
            frame.index.values, f"has no name at row {start + int(np.argmax(absent))}", "a name for each row"
        )
    if not isinstance(values, np.ndarray):
        values = np.asarray(values, dtype=object)
    return values if values.dtype == object else np.asarray(pd.Index(values).astype(str), dtype=object)


def read_frame(root: Group, frame: Frame) -> pd.DataFrame:
    """Read a whole table, indexed by name; text columns are of dtype object under every pandas."""
    index = pd.Index(read_names(root, frame), dtype=object)
    columns = {}
    for name, column in frame.columns.items():
        values = read_column(root, column)
        dtype = object if isinstance(values, np.ndarray) and values.dtype == object else None
        columns[name] = pd.Series(values, index=index, dtype=dtype)
    return pd.DataFrame(columns, index=index)


def _column_order(node: Group) -> list[str]:
    order = node.attribute("column-order")
    names = order if isinstance(order, list) else [order] if isinstance(order, str) else []
    if not all(isinstance(name, str) for name in names):
        raise node.fault(f"lists columns that are not text, {names!r}", "names")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise node.fault(f"lists the column {twice[0]!r} more than once", "a name for each column")
    return names


def _check_name(node: Group | Array, name: str) -> None:
    if name in _CANNOT_BE_STORED or "/" in name:
        raise node.fault(
            f"has a column named {name!r}, which cannot be the name of an array in a store",
            "a name without slashes that is no part of a path",
            f"Rename it: adata.{node.where.split('/')[-1]}.rename(columns={{{name!r}: ...}}).",
        )


def _column(root: Group, frame: Group, name: str) -> Column | str:
    """Where a column's values are, or why they cannot be carried."""
    node = frame.child(name)
    where = join(frame.where, name)
    if isinstance(node, Array):
        if node.encoding not in _PLAIN:
            return f"encoded as {_named(node.encoding)}, which is not known here"
        if "categories" in node.attributes():  # AnnData 0.7
            return _old_categorical(root, frame, node)
        if len(node.shape) != 1 or node.kind not in ("number", "text"):
            return f"an array of shape {node.shape} and dtype {node.dtype}, which no column of a store can hold"
        return Column(where)
    if node.encoding == _CATEGORICAL:
        codes, labels = node.array("codes"), join(where, "categories")
        _check_codes(codes)
        _labels(root, labels, head=True)
        return Column(join(where, "codes"), labels=labels, ordered=bool(node.attribute("ordered", False)))
    if node.encoding in _NULLABLE:
        return _nullable(node)
    return f"encoded as {_named(node.encoding)}, which is not known here"


def _old_categorical(root: Group, frame: Group, node: Array) -> Column:
    _check_codes(node)
    place = str(node.attribute("categories"))
    # A reference is a path from the root; text is a path from the table.
    labels = place.strip("/") if place.startswith("/") else join(frame.where, place)
    ordered = root.child(labels).attribute("ordered", False)
    _labels(root, labels, head=True)
    return Column(node.where, labels=labels, ordered=bool(ordered))


def _nullable(node: Group) -> Column | str:
    kinds = _NULLABLE[node.encoding]
    values, mask = node.array("values").vector(), node.array("mask").vector()
    if values.kind != ("number" if kinds else "text") or (kinds and values.dtype.kind not in kinds):
        raise values.fault(f"is of dtype {values.dtype}", f"values of a {node.encoding[0]}")
    if mask.dtype.kind != "b":
        raise mask.fault(f"is of dtype {mask.dtype}", "booleans")
    return Column(values.where, mask=mask.where, na_is_nan=node.attribute("na-value", "NA") == "NaN")


def _check_codes(codes: Array) -> None:
    codes.vector()
    if codes.kind != "number" or codes.dtype.kind not in "iu":
        raise codes.fault(f"is of dtype {codes.dtype}", "codes of categories, which are integers")


def _labels(root: Group, where: str, *, head: bool = False) -> Any:
    """Categories of a column; with `head`, only looks at what they are."""
    node = root.child(where)
    if isinstance(node, Group):
        column = _nullable(node) if node.encoding in _NULLABLE else None
        if not isinstance(column, Column):
            raise node.fault(f"is encoded as {_named(node.encoding)}", "categories")
        values = read_column(root, column)
        if values.isna().any():
            raise node.fault("has a missing value", "categories, none of them missing")
        dtype = values.dtype.numpy_dtype if not isinstance(values.dtype, pd.StringDtype) else object
        return np.asarray(values, dtype=dtype)
    if len(node.shape) > 1 or node.kind not in ("number", "text"):
        raise node.fault(f"is an array of shape {node.shape} and dtype {node.dtype}", "categories")
    return np.empty(0) if head else np.atleast_1d(node.read())


def _categorical(array: Array, codes: NDArray[Any], labels: Any, ordered: bool) -> pd.Categorical:
    wrong = np.flatnonzero((codes < -1) | (codes >= len(labels)))
    if len(wrong):
        raise array.fault(
            f"holds the code {int(codes[wrong[0]])}", f"codes from -1 to {len(labels) - 1}, one a category"
        )
    with array.reading():
        dtype = object if labels.dtype == object else None
        return pd.Categorical.from_codes(codes, pd.Index(labels, dtype=dtype), ordered=ordered)


def _array(root: Group, column: Column) -> Array:
    array = root.array(column.values)
    return array.field(column.field) if column.field else array


def _length(root: Group, column: Column) -> int:
    return _array(root, column).vector().shape[0]


def _check_lengths(root: Group, column: Column, length: int) -> None:
    for where in (column.values, *([column.mask] if column.mask else [])):
        array = root.array(where)
        if array.shape[0] != length:
            raise array.fault(f"has {array.shape[0]:,} values", f"{length:,}, one a row of the index")


def _named(encoding: tuple[str, str]) -> str:
    kind, version = encoding
    return f"{kind!r} {version}".strip() if kind else "nothing that is named"


def _open_records(root: Group, node: Array) -> Frame:
    """Open a table of AnnData before 0.7: an array of records, the first field the index."""
    if node.kind != "record":
        raise node.fault(f"is an array of dtype {node.dtype}", "a dataframe")
    node.vector()
    index, *names = node.dtype.names or ("",)
    fields = {name: node.field(name) for name in (index, *names)}
    columns, not_carried = {}, []
    for name in names:
        _check_name(node, name)
        field = fields[name]
        if len(field.shape) != 1 or field.kind not in ("number", "text"):
            not_carried.append(f"{field.where}: of dtype {node.dtype[name]}, which no column of a store can hold")
        else:
            columns[name] = Column(node.where, name)
    if fields[index].kind not in ("number", "text") or len(fields[index].shape) != 1:
        raise fields[index].fault(f"is of dtype {node.dtype[index]}", "an index of names")
    columns = {name: _with_labels(root, column) for name, column in columns.items()}
    return Frame(node.where, node.shape[0], Column(node.where, index), columns, tuple(not_carried))


def _with_labels(root: Group, column: Column) -> Column:
    """Find the categories of codes in ``uns``, as AnnData does: by the column's name, if all codes fit."""
    if "/" in column.values or "." in column.values or "uns" not in root.names():  # raw.var has none
        return column
    uns = root.child("uns")
    if not isinstance(uns, Group):
        return column
    keys = [key for key in uns.names() if key.endswith(_IN_UNS) and key.replace(_IN_UNS, "") == column.field]
    codes = _array(root, column)
    if not keys or codes.dtype.kind not in "iu":
        return column
    labels = join("uns", keys[-1])
    n = len(_labels(root, labels))
    for start in range(0, codes.shape[0], _AT_ONCE):
        if (codes.read(start, start + _AT_ONCE) >= n).any():
            return column  # the categories are of the other table's column of that name
    return Column(column.values, column.field, labels=labels)


def used_in_uns(frames: list[Frame]) -> set[str]:
    """Entries of ``uns`` that are the categories of a column."""
    return {c.labels.removeprefix("uns/") for f in frames for c in f.columns.values() if c.labels and c.field}
