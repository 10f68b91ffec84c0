"""Objects in memory as trees, laid out as AnnData lays out files, so that the readers of files read them too."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert_converters._tree import Array, Group, Tree, join, kind_of, native

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert.errors import SourceFormatError

_ADVICE = "Correct the object, and convert it again."
_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
_STRINGS = {"encoding-type": "string-array", "encoding-version": "0.2.0"}


@dataclass(frozen=True, eq=False)
class ObjectTree(Tree):
    """A tree of objects in memory.

    Attributes
    ----------
    path
        What messages call the object.
    content
        The root.
    """

    path: Path
    format: str
    content: ObjectGroup

    @contextmanager
    def root(self) -> Iterator[ObjectGroup]:
        """The root: there is nothing to open."""
        yield self.content.placed(self, "")

    def fault(self, where: str, got: str, expected: str, advice: str = _ADVICE) -> SourceFormatError:
        """Make the error for a part of the object."""
        return super().fault(where, got, expected, _ADVICE if advice.startswith("The file") else advice)


class ObjectGroup(Group):
    """A group of objects."""

    def __init__(self, children: dict[str, Array | Group], attributes: dict[str, Any] | None = None) -> None:
        self._children, self._attributes = children, attributes or {}

    def placed(self, tree: Tree, where: str) -> ObjectGroup:
        """The same group at a path of a tree."""
        group = ObjectGroup(self._children, self._attributes)
        group.tree, group.where = tree, where
        return group

    def attributes(self) -> dict[str, Any]:
        """All attributes."""
        return self._attributes

    def names(self) -> list[str]:
        """Names of the children."""
        return [*self._children]

    def child(self, name: str) -> Array | Group:
        """The array or group at a path relative to this group."""
        first, _, rest = (name, "", "") if name in self._children else name.strip("/").partition("/")
        node = self._children.get(first)
        if node is None:
            raise self.tree.fault(join(self.where, first), "is missing", "an array or a group")
        if not isinstance(node, ObjectArray | ObjectGroup):
            return node
        placed = node.placed(self.tree, join(self.where, first))
        return placed.child(rest) if rest and isinstance(placed, ObjectGroup) else placed


class ObjectArray(Array):
    """An array in memory, or one that a function returns part by part.

    Parameters
    ----------
    values
        The array. A function's may be empty; only its dtype and shape count.
    fetch
        Returns rows `start` to `stop`; None to slice `values`.
    """

    chunks = None

    def __init__(
        self,
        values: Any,
        attributes: dict[str, Any] | None = None,
        *,
        fetch: Callable[[int, int], Any] | None = None,
        length: int | None = None,
    ) -> None:
        self._values, self._attributes, self._fetch = values, attributes or {}, fetch
        self.dtype = values.dtype if isinstance(values.dtype, np.dtype) else np.dtype(object)
        self.shape = values.shape if length is None else (length, *values.shape[1:])
        is_text = self.dtype.kind == "O" and pd.api.types.infer_dtype(values, skipna=False) in ("string", "empty")
        self.kind = "text" if is_text else kind_of(self.dtype)

    def placed(self, tree: Tree, where: str) -> ObjectArray:
        """The same array at a path of a tree."""
        array = object.__new__(ObjectArray)
        array.__dict__.update(self.__dict__)
        array.tree, array.where = tree, where
        return array

    def attributes(self) -> dict[str, Any]:
        """All attributes."""
        return self._attributes

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows `start` to `stop` of the array; the object's own memory if it is contiguous."""
        if self.shape == ():
            return np.asarray(self._values)
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        with self.reading():
            values = self._values[start:stop] if self._fetch is None else self._fetch(start, stop)
            return np.array(values, dtype=object) if self.kind == "text" else native(np.asarray(values))

    def tile(self, rows: slice, cols: slice) -> NDArray[Any]:
        """A rectangle of a two-dimensional array."""
        return native(np.asarray(self._values[rows, cols]))

    def read_field(self, name: str, start: int, stop: int | None) -> NDArray[Any]:
        """Rows `start` to `stop` of one field of a record array."""
        return native(np.asarray(self._values[name][start:stop]))

    def unwritten(self) -> list[tuple[int, int]]:
        """Nothing: all values are in memory."""
        return []

    @property
    def scratch_bytes(self) -> int:
        """0, as nothing is decompressed."""
        return 0


def frame_node(frame: Any) -> ObjectGroup:
    """A DataFrame, or AnnData's lazy table (Dataset2D), as AnnData's dataframe group."""
    names, column = _lazy_columns(frame) if hasattr(frame, "ds") else _columns(frame)
    children: dict[str, Array | Group] = {"_index": column(None)}
    for name in names:
        children.setdefault(str(name), column(name))
    attributes = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index", "column-order": names}
    return ObjectGroup(children, attributes)


def matrix_children(matrix: Any) -> ObjectGroup:
    """A CSR or CSC matrix of SciPy as AnnData's group of three arrays."""
    arrays = {name: ObjectArray(getattr(matrix, name)) for name in ("data", "indices", "indptr")}
    return ObjectGroup({**arrays}, sparse_attributes(matrix.format, matrix.shape))


def sparse_attributes(layout: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Attributes of the group of a sparse matrix."""
    return {"encoding-type": f"{layout}_matrix", "encoding-version": "0.1.0", "shape": [int(n) for n in shape]}


def opaque(value: Any) -> ObjectGroup:
    """An object of which only the type is known."""
    return ObjectGroup({}, {"encoding-type": type(value).__name__})


def _columns(frame: pd.DataFrame) -> tuple[list[str], Callable[[str | None], Array | Group]]:
    def column(name: str | None) -> Array | Group:
        values = frame.index if name is None else frame[name]
        if isinstance(values, pd.DataFrame):  # a repeated name, which `open_frame` refuses
            values = values.iloc[:, 0]
        return _column_node(values.array, None, len(frame))

    return [*frame.columns], column


def _lazy_columns(table: Any) -> tuple[list[str], Callable[[str | None], Array | Group]]:
    key = table.ds.attrs.get("indexing_key")
    names = [str(name) for name in table.ds.data_vars if name != key]
    n_rows = int(table.shape[0])
    index = table.true_index if table.true_index_dim != table.index_dim else table.index

    def column(name: str | None) -> Array | Group:
        if name is None:
            return _column_node(index.array, None, n_rows)

        dtype = table[name].dtype

        def fetch(start: int, stop: int) -> Any:
            values = table[[name]].iloc[start:stop].to_memory()[name].array
            if isinstance(dtype, pd.CategoricalDtype):  # the part has only the categories that occur in it
                return pd.Categorical(values, categories=dtype.categories, ordered=dtype.ordered)
            return values

        return _column_node(fetch(0, min(1, n_rows)), fetch, n_rows)

    return names, column


def _column_node(head: Any, fetch: Callable[[int, int], Any] | None, length: int) -> Array | Group:
    """A column of pandas as the arrays that encode it.

    Parameters
    ----------
    head
        All values, or with `fetch` the first of them, which have the same dtype.
    """

    def part(encode: Callable[[Any], Any], attributes: dict[str, Any]) -> ObjectArray:
        read = None if fetch is None else lambda start, stop: encode(fetch(start, stop))
        return ObjectArray(encode(head), attributes, fetch=read, length=length)

    if isinstance(head, pd.Categorical):
        categories = np.asarray(head.categories)
        labels = ObjectArray(categories, _STRINGS if categories.dtype.kind in "OU" else _ARRAY)
        codes = part(lambda values: values.codes, _ARRAY)
        attributes = {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": bool(head.ordered)}
        return ObjectGroup({"codes": codes, "categories": labels}, attributes)
    if isinstance(head, pd.arrays.IntegerArray | pd.arrays.BooleanArray):
        kind, dtype = ("boolean" if head.dtype.kind == "b" else "integer"), head.dtype.numpy_dtype
        values = part(lambda values: values.to_numpy(dtype=dtype, na_value=0), _ARRAY)
        return _masked(f"nullable-{kind}", values, part(_is_missing, _ARRAY))
    if isinstance(head, pd.arrays.FloatingArray):  # AnnData has no nullable floats, so missing values become NaN
        dtype = head.dtype.numpy_dtype
        return part(lambda values: values.to_numpy(dtype=dtype, na_value=np.nan), _ARRAY)
    if isinstance(head.dtype, pd.StringDtype) or _is_text_with_gaps(head):
        text = part(lambda values: np.where(_is_missing(values), "", np.asarray(values, object)), _STRINGS)
        na_value = "NaN" if isinstance(head.dtype, pd.StringDtype) and head.dtype.na_value is not pd.NA else "NA"
        return _masked("nullable-string-array", text, part(_is_missing, _ARRAY), na_value)
    is_text = np.asarray(head[:0]).dtype.kind in "OU"
    return part(np.asarray, _STRINGS if is_text else _ARRAY)


def _masked(encoding: str, values: ObjectArray, mask: ObjectArray, na_value: str = "NA") -> ObjectGroup:
    attributes = {"encoding-type": encoding, "encoding-version": "0.1.0", "na-value": na_value}
    return ObjectGroup({"values": values, "mask": mask}, attributes)


def _is_missing(values: Any) -> NDArray[np.bool_]:
    return np.asarray(pd.isna(values))


def _is_text_with_gaps(values: Any) -> bool:
    if np.asarray(values[:0]).dtype.kind != "O" or not _is_missing(values).any():
        return False
    return pd.api.types.infer_dtype(values, skipna=True) == "string"
