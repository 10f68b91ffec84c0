"""Reader for AnnData objects: in memory, backed by an .h5ad file, or lazy; and views of any of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pandas as pd
from scipy import sparse

from lazypert.errors import ConfigError
from lazypert_converters._anndata import AnnDataReader, open_anndata
from lazypert_converters._hdf5 import Hdf5Tree
from lazypert_converters._matrices import Matrix, open_matrix
from lazypert_converters._object_matrices import DaskMatrix, SelectedMatrix, WholeMatrix
from lazypert_converters._objects import (
    ObjectArray,
    ObjectGroup,
    ObjectTree,
    frame_node,
    matrix_children,
    opaque,
    sparse_attributes,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.converter import BlockSpec, RowBlock
    from lazypert_converters._object_matrices import MatrixSource
    from lazypert_converters._tree import Array, Group, Tree

_FORMAT = "AnnData object"
_NAME = "adata"


@dataclass(frozen=True, eq=False)
class AnnDataObjectReader(AnnDataReader):
    """An AnnData object.

    Tables and whole matrices are read like those of a file; `sources` and `rows` are for the others.

    Attributes
    ----------
    sources
        Where each matrix is read.
    lazy_obsm
        The dense embeddings.
    rows
        (n_obs,) rows of the embeddings that the object selects; None for all.
    adata
        The object.
    """

    sources: dict[str, MatrixSource] = field(default_factory=dict)
    lazy_obsm: dict[str, Any] = field(default_factory=dict)
    rows: NDArray[np.int64] | None = None
    adata: Any = None
    in_memory = True

    def __reduce__(self) -> NoReturn:
        raise ConfigError(
            "source: got an AnnData object with a Dask scheduler that uses other processes, expected a file that they "
            "can open. Write it to an .h5ad file and convert that, or use threads: dask.config.set(scheduler='threads')"
            "."
        )

    def nnz(self, matrix: str) -> int | None:
        """Number of stored values of a matrix, if it is known."""
        return self.sources[matrix].nnz()

    def scratch_bytes(self, matrix: str) -> int:
        """Bytes that `read_block` needs in addition to the block."""
        return self.sources[matrix].scratch_bytes()

    def blocks(self, matrix: str, max_bytes: int) -> list[BlockSpec]:
        """Cut a matrix into source blocks."""
        return self.sources[matrix].blocks(matrix, max_bytes)

    def read_block(self, spec: BlockSpec) -> RowBlock:
        """Read and check one source block."""
        return self.sources[spec.matrix].read_block(spec)

    def read_obsm(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """(stop - start, width) rows of an embedding."""
        if name not in self.lazy_obsm:
            return super().read_obsm(name, start, stop)
        values = self.lazy_obsm[name]
        if _is_dask(values):
            return np.asarray(values[start:stop].compute(scheduler="synchronous"))
        return np.asarray(values[start:stop] if self.rows is None else values[self.rows[start:stop]])

    def read_element(self, path: str) -> Any:
        """Value of an entry of uns, varm or varp."""
        kind, _, name = path.partition("/")
        return _computed(getattr(self.adata, kind)[name])


def is_anndata(value: object) -> bool:
    """Whether an object is an AnnData; does not import anndata."""
    return any(cls.__name__ == "AnnData" and cls.__module__.split(".")[0] == "anndata" for cls in type(value).__mro__)


def open_anndata_object(adata: Any) -> AnnDataObjectReader:
    """Check the structure of an AnnData object; reads no matrix, and no column of a lazy table.

    Raises
    ------
    SourceFormatError
        If it cannot be converted exactly.
    ConfigError
        If it is open for writing (``backed="r+"``).
    """
    found = _Contents(adata)
    reader = open_anndata(found.tree)
    own = {f.name: getattr(reader, f.name) for f in fields(reader)}
    own["elements"] = {path: _n_bytes(found.element(path)) for path in reader.elements}
    for name, matrix in reader.layouts.items():
        found.add_source(name, matrix)
    return AnnDataObjectReader(
        **own,
        sources=found.sources,
        lazy_obsm={name: found.matrices[f"obsm/{name}"] for name in reader.obsm},
        rows=found.rows,
        adata=adata,
    )


class _Contents:
    """The tree of an AnnData object, and the matrices that it selects from."""

    def __init__(self, adata: Any) -> None:
        self.adata, self.parent = adata, adata
        self.rows: NDArray[np.int64] | None = None
        self.cols: NDArray[np.int64] | None = None
        if adata.is_view:
            self._select()
        self.path = Path(adata.filename) if adata.isbacked else Path(_NAME)
        self.matrices: dict[str, Any] = {}
        self.sources: dict[str, MatrixSource] = {}
        self.tree = ObjectTree(self.path, _FORMAT, self._content())

    def _select(self) -> None:
        """Find what a view selects. Its own attributes would copy all of that into memory."""
        adata = self.adata
        self.parent = adata._adata_ref  # AnnData has no public name for these three
        rows, cols = (one if isinstance(one, slice) else np.asarray(one) for one in (adata._oidx, adata._vidx))
        self.rows = np.arange(self.parent.n_obs)[rows]
        cols = np.arange(self.parent.n_vars)[cols]
        self.cols = None if np.array_equal(cols, np.arange(self.parent.n_vars)) else cols

    def _content(self) -> ObjectGroup:
        adata, parent, shape = self.adata, self.parent, self.adata.shape
        children: dict[str, Array | Group] = {"obs": self._frame(adata.obs), "var": self._frame(adata.var)}
        if parent.X is not None:
            children["X"] = self._matrix("X", parent.X, shape)
        layers = {
            name: self._matrix(f"layers/{name}", values, shape)
            for name, values in parent.layers.items()
            if name is not None
        }
        children["layers"] = ObjectGroup({**layers})
        obsm = {name: self._obsm(name, values) for name, values in parent.obsm.items()}
        children["obsm"] = ObjectGroup({**obsm})
        raw = parent.raw if parent.isbacked else adata.raw
        if raw is not None:
            varm = ObjectGroup({name: opaque(value) for name, value in raw.varm.items()})
            X = self._matrix("raw/X", raw.X, (adata.n_obs, raw.shape[1]))
            children["raw"] = ObjectGroup({"X": X, "var": self._frame(raw.var), "varm": varm})
        for kind in ("varm", "obsp", "varp", "uns"):
            children[kind] = ObjectGroup({str(name): opaque(None) for name in getattr(parent, kind)})
        return ObjectGroup(children)

    def _frame(self, frame: Any) -> ObjectGroup:
        """A table as it would be in a file, where AnnData makes text that repeats categorical."""
        if not hasattr(frame, "ds"):
            frame = pd.DataFrame(frame, copy=False)  # whose columns can be replaced
            self.parent.strings_to_categoricals(frame)
        elif frame.shape[0] == self.adata.n_vars != self.adata.n_obs:
            frame = frame.to_memory()
        return frame_node(frame)

    def _matrix(self, where: str, values: Any, shape: tuple[int, int]) -> Array | Group:
        """A matrix as a node; one that is not in memory as it is becomes a stand-in without values."""
        if isinstance(values, np.ma.MaskedArray):
            return opaque(values)
        rows, cols = self._selection(where)
        if hasattr(values, "group") and not hasattr(values.group, "file"):  # in a Zarr store
            from anndata.experimental import read_elem_lazy

            values = read_elem_lazy(values.group)
        if _is_dask(values):
            values = values if rows is None else values[rows]
            values = values if cols is None else values[:, cols]
        self.matrices[where] = values
        stored = self._stored(where)
        layout = stored.layout if stored is not None else _layout(values)
        is_selected = rows is not None and not _is_dask(values)
        if layout == "dense":
            is_whole = isinstance(values, np.ndarray) and not is_selected
            return ObjectArray(values if is_whole else np.broadcast_to(np.zeros((), values.dtype), shape))
        if layout in ("csr", "csc"):
            if sparse.issparse(values) and not is_selected:
                return matrix_children(values)
            return _stand_in(layout, shape, values.dtype)
        return opaque(values)

    def _obsm(self, name: str, values: Any) -> Array | Group:
        if hasattr(values, "iloc"):
            return frame_node(values if self.rows is None else values.iloc[self.rows])
        if getattr(values, "ndim", 2) != 2:
            return opaque(values)
        return self._matrix(f"obsm/{name}", values, (self.adata.n_obs, int(values.shape[1])))

    def element(self, path: str) -> Any:
        """An entry of uns, varm or varp of the parent."""
        kind, _, name = path.partition("/")
        return getattr(self.parent, kind)[name]

    def _stored(self, where: str) -> Matrix | None:
        """Where a matrix is in the file of a backed AnnData, if it is there."""
        values = self.matrices[where]
        node = getattr(values, "group", values)
        file = getattr(node, "file", None)
        if file is None or not hasattr(file, "filename") or not hasattr(node, "name"):
            return None
        if file.mode != "r":
            raise ConfigError(
                "source: got an AnnData whose file is open for writing, so that the file may change while it is "
                "converted. Open it with backed='r'. Nothing was written."
            )
        tree = Hdf5Tree(Path(file.filename), "AnnData file")
        with tree.root() as root:
            return open_matrix(root.child(node.name.strip("/")), (int(values.shape[0]), int(values.shape[1])))

    def _selection(self, where: str) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
        """Rows and columns of a matrix of the parent; AnnData itself selects from raw if that is in memory."""
        rows = None if where == "raw/X" and not self.parent.isbacked else self.rows
        return rows, self.cols if where == "X" or where.startswith("layers/") else None

    def add_source(self, name: str, matrix: Matrix) -> None:
        """Decide how a matrix is read."""
        values, tree = self.matrices[name], self.tree
        rows, cols = self._selection(name)
        if _is_dask(values):
            self.sources[name] = DaskMatrix(tree, name, values)
            return
        stored = self._stored(name)
        parent_tree: Tree = tree
        if stored is not None:
            node = getattr(values, "group", values)
            parent_tree, matrix = Hdf5Tree(Path(node.file.filename), "AnnData file"), stored
        elif rows is not None:
            content = ObjectArray(values) if isinstance(values, np.ndarray) else matrix_children(values)
            kind, _, last = name.rpartition("/")
            parent = ObjectGroup({last: content})
            parent_tree = ObjectTree(self.path, _FORMAT, ObjectGroup({kind: parent}) if kind else parent)
            with parent_tree.root() as root:
                matrix = open_matrix(root.child(name), values.shape)
        if rows is None:
            self.sources[name] = WholeMatrix(parent_tree, matrix)
        else:
            self.sources[name] = SelectedMatrix(parent_tree, matrix, rows, cols)


def _is_dask(value: Any) -> bool:
    return type(value).__module__.startswith("dask.")


def _layout(values: Any) -> str | None:
    if _is_dask(values):
        meta = values._meta
        return str(getattr(meta, "format", "dense"))
    if isinstance(values, np.ndarray):
        return "dense"
    layout = getattr(values, "format", None) if sparse.issparse(values) else None
    return layout if layout in ("csr", "csc") else None


def _stand_in(layout: str, shape: tuple[int, int], dtype: Any) -> ObjectGroup:
    """A sparse matrix of which only the shape, layout and dtype count."""
    empty = ObjectArray(np.empty(0, np.int32))
    children = {"data": ObjectArray(np.empty(0, dtype)), "indices": empty, "indptr": empty}
    return ObjectGroup({**children}, sparse_attributes(layout, shape))


def _computed(value: Any) -> Any:
    """A value without lazy parts and views, in the plain types that AnnData writes."""
    if isinstance(value, Mapping) and not hasattr(value, "ds"):
        return {name: _computed(part) for name, part in value.items()}
    if _is_dask(value):
        return value.compute(scheduler="synchronous")
    if hasattr(value, "ds"):
        return value.to_memory()
    return np.asarray(value) if type(value).__name__ == "ArrayView" else value


def _n_bytes(value: Any) -> int:
    """Bytes of a value, as far as they are known without computing it."""
    if isinstance(value, Mapping) and not hasattr(value, "ds"):
        return sum(map(_n_bytes, value.values()))
    if sparse.issparse(value):
        return sum(int(getattr(value, name).nbytes) for name in ("data", "indices", "indptr") if hasattr(value, name))
    if isinstance(value, pd.DataFrame | pd.Series):
        return int(np.sum(value.memory_usage(deep=False)))
    return int(getattr(value, "nbytes", 0))
