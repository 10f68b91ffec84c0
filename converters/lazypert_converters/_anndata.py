"""Reader for AnnData in any tree: obs, var, X, layers, raw and embeddings."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.errors import SourceFormatError
from lazypert_converters._frames import labels_in_uns, open_frame, read_column, read_frame, read_names
from lazypert_converters._matrices import (
    Matrix,
    blocks,
    is_dense_matrix,
    open_matrix,
    read_block,
    scratch_bytes,
    sparse_layout,
    sparse_shape,
    stored_values,
)
from lazypert_converters._reader import Reader
from lazypert_converters._tree import Array, Group, join

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from lazypert.converter import BlockSpec, RowBlock
    from lazypert_converters._frames import Frame
    from lazypert_converters._tree import Tree

_RAW = "raw/X"
_OLD_RAW_PREFIX = "raw."
_NULL_ENCODING = ("null", "0.1.0")
_CARRIED = ("obs", "var", "X", "layers", "obsm", "raw")
_ELEMENTS = ("varm", "varp", "uns")  # groups whose children are copied as they are
_NOT_KEPT = ("obsp", *_ELEMENTS)
_ONLY_MATRICES = "and only numeric matrices are copied"
_NAMES_OF_COLUMNS = "uns/obsm_columns"


@dataclass(frozen=True)
class AnnDataReader(Reader):
    """An AnnData on disk.

    Attributes
    ----------
    tree
        The file.
    frames
        The tables ``"obs"``, ``"var"`` and, if there is a raw matrix, ``"raw/var"``.
    layouts
        Where each matrix is.
    embeddings
        Where each dense embedding is: a path and, for AnnData before 0.7, a field of the records there.
    elements
        Bytes of each entry of uns, varm and varp, by path.
    """

    tree: Tree
    frames: dict[str, Frame]
    layouts: dict[str, Matrix]
    embeddings: dict[str, tuple[str, str]]
    elements: dict[str, int]

    def obs_names(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """(stop - start,) cell names."""
        with self.tree.root() as root:
            return read_names(root, self.frames["obs"], start, stop)

    def obs_column(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        """(stop - start,) values of an obs column."""
        if name not in self.obs_columns:
            raise self.no_obs_column(name)
        with self.tree.root() as root:
            return read_column(root, self.frames["obs"].columns[name], start, stop)

    def var(self) -> pd.DataFrame:
        """Return the var table, indexed by gene name."""
        with self.tree.root() as root:
            return read_frame(root, self.frames["var"])

    def raw_var(self) -> pd.DataFrame:
        """Return the var table of raw."""
        if _RAW not in self.matrices:
            return super().raw_var()
        with self.tree.root() as root:
            return read_frame(root, self.frames["raw/var"])

    def nnz(self, matrix: str) -> int | None:
        """Number of stored values of a sparse matrix; None for a dense one."""
        return stored_values(self.tree, self.layouts[matrix])

    def scratch_bytes(self, matrix: str) -> int:
        """Bytes of chunks and of row pointers that `read_block` needs in addition to the block."""
        return scratch_bytes(self.tree, self.layouts[matrix])

    def blocks(self, matrix: str, max_bytes: int) -> list[BlockSpec]:
        """Row ranges of a CSR matrix, column ranges of a CSC matrix, tiles of a dense one."""
        return blocks(self.tree, matrix, self.layouts[matrix], max_bytes)

    def read_block(self, spec: BlockSpec) -> RowBlock:
        """Read and check one source block."""
        return read_block(self.tree, self.layouts[spec.matrix], spec)

    def read_obsm(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """(stop - start, width) rows of an embedding."""
        if name not in self.embeddings:
            return super().read_obsm(name, start, stop)
        with self.tree.root() as root:
            return _embedding_array(root, *self.embeddings[name]).read(start, stop)

    @property
    def obsm_frames(self) -> dict[str, tuple[str, ...]]:
        """Columns of each obsm entry that is a table."""
        return {
            where.removeprefix("obsm/"): tuple(frame.columns)
            for where, frame in self.frames.items()
            if where.startswith("obsm/")
        }

    def obsm_column(self, name: str, column: str, start: int = 0, stop: int | None = None) -> Any:
        """(stop - start,) values of a column of a table in obsm."""
        with self.tree.root() as root:
            return read_column(root, self.frames[f"obsm/{name}"].columns[column], start, stop)

    def read_element(self, path: str) -> Any:
        """Value of an entry of uns, varm or varp, as AnnData reads it."""
        import anndata

        with self.tree.root() as root, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old encodings
            element: Any = root.child(path)
            with element.reading():
                return anndata.io.read_elem(element.node)

    def column_names(self, matrix: str) -> NDArray[Any] | None:
        """(n_columns,) names of the columns of a sparse obsm entry, if an earlier conversion stored them in uns."""
        kind, _, name = matrix.partition("/")
        if kind != "obsm" or _NAMES_OF_COLUMNS not in self.elements:
            return None
        names = self.read_element(_NAMES_OF_COLUMNS)
        found = names.get(name) if isinstance(names, dict) else None
        if found is None or len(found) != self.matrices[matrix]:
            return None
        return np.asarray(found, dtype=object)


def open_anndata(tree: Tree) -> AnnDataReader:
    """Check the structure of an AnnData and the lengths of its elements, without reading values.

    Raises
    ------
    SourceFormatError
        If an element is missing, has an unknown encoding, or has the wrong length.
    """
    with tree.root() as root:
        encoding_type = root.encoding[0]
        if encoding_type not in ("anndata", ""):
            raise root.fault(f"is encoded as {encoding_type!r}", "'anndata'")
        names = root.names()
        frames = {name: open_frame(root, name) for name in ("obs", "var")}
        n_obs, n_vars = frames["obs"].length, frames["var"].length
        contents = _Contents(not_carried=[line for frame in frames.values() for line in frame.not_carried])
        if "X" in names and (node := root.child("X")).encoding != _NULL_ENCODING:
            contents.layouts["X"] = open_matrix(node, (n_obs, n_vars))
        contents.add_layers(root, (n_obs, n_vars))
        contents.add_obsm(root, n_obs)
        contents.add_raw(root, n_obs, frames)
        used_labels = labels_in_uns(list(frames.values()))
        obsm = {name: _embedding_array(root, *location).shape[1] for name, location in contents.embeddings.items()}
        frames.update(contents.frames)
        elements = contents.find_elements(root, used_labels)
        not_carried = contents.not_carried + _not_kept(root, names)
    return AnnDataReader(
        path=tree.path,
        n_obs=n_obs,
        n_vars=n_vars,
        obs_columns=tuple(frames["obs"].columns),
        matrices={name: matrix.n_cols for name, matrix in contents.layouts.items()},
        obsm=obsm,
        not_carried=tuple(not_carried),
        tree=tree,
        frames=frames,
        layouts=contents.layouts,
        embeddings=contents.embeddings,
        elements=elements,
    )


@dataclass
class _Contents:
    """Matrices and embeddings that were found, and what cannot be copied."""

    not_carried: list[str]
    layouts: dict[str, Matrix] = field(default_factory=dict)
    embeddings: dict[str, tuple[str, str]] = field(default_factory=dict)
    frames: dict[str, Frame] = field(default_factory=dict)

    def add_layers(self, root: Group, shape: tuple[int, int]) -> None:
        if "layers" not in root.names():
            return
        group = root.group("layers")
        for name in group.names():
            node = group.child(name)
            if _is_matrix(node):
                self.layouts[node.where] = open_matrix(node, shape)
            else:
                self.not_carried.append(f"{node.where}: {_described(node)}, {_ONLY_MATRICES}")

    def add_obsm(self, root: Group, n_obs: int) -> None:
        if "obsm" not in root.names():
            return
        node = root.child("obsm")
        if isinstance(node, Array):  # AnnData before 0.7
            locations = {name: (node.where, name) for name in node.dtype.names or ()}
            children: dict[str, Array | Group] = {name: node.field(name) for name in locations}
        else:
            children = {name: node.child(name) for name in node.names()}
            locations = {name: (child.where, "") for name, child in children.items()}
        for name, child in children.items():
            where = join("obsm", name)
            if isinstance(child, Group) and sparse_layout(child):
                self.layouts[where] = open_matrix(child, (n_obs, sparse_shape(child)[1]))
            elif isinstance(child, Array) and is_dense_matrix(child) and len(child.shape) == 2:
                open_matrix(child, (n_obs, child.shape[1]))
                self.embeddings[name] = locations[name]
            elif isinstance(child, Group) and child.encoding[0] == "dataframe":
                self._add_frame(root, where, n_obs)
            else:
                self.not_carried.append(f"{where}: {_described(child)}, {_ONLY_MATRICES}")

    def _add_frame(self, root: Group, where: str, n_obs: int) -> None:
        frame = open_frame(root, where)
        if frame.length != n_obs:
            raise root.child(where).fault(f"has {frame.length:,} rows", f"{n_obs:,}, one per cell")
        self.frames[where] = frame
        self.not_carried += frame.not_carried

    def find_elements(self, root: Group, used_labels: set[str]) -> dict[str, int]:
        """Bytes of each entry of the groups whose entries are copied as they are."""
        found = {}
        for kind in set(_ELEMENTS).intersection(root.names()):
            node = root.child(kind)
            if not isinstance(node, Group):
                continue
            for name in node.names():
                try:
                    if kind != "uns" or name not in used_labels:
                        found[join(kind, name)] = _n_bytes(node.child(name))
                except SourceFormatError as error:  # such as a broken link
                    self.not_carried.append(f"{join(kind, name)}: {error}")
        return dict(sorted(found.items()))

    def add_raw(self, root: Group, n_obs: int, frames: dict[str, Frame]) -> None:
        """Add raw, or ``raw.X`` and ``raw.var`` of AnnData before 0.7, and its var table to `frames`."""
        names = root.names()
        old = [name for name in names if name.startswith(_OLD_RAW_PREFIX)]
        if "raw" in names and old:
            raise root.fault(f"has both 'raw' and {old[0]!r}", "one raw matrix")
        if "raw" in names:
            if root.child("raw").encoding == _NULL_ENCODING:
                return
            elements = {name: f"raw/{name}" for name in root.group("raw").names()}
        else:
            elements = {name.removeprefix(_OLD_RAW_PREFIX): name for name in old}
        absent = next((name for name in ("X", "var") if name not in elements), None)
        if absent is not None:
            self.not_carried += [f"{where}: raw has no {absent}" for where in elements.values()]
            return
        frames["raw/var"] = frame = open_frame(root, elements.pop("var"))
        self.layouts[_RAW] = open_matrix(root.child(elements.pop("X")), (n_obs, frame.length))
        self.not_carried += frame.not_carried
        self.not_carried += [
            f"{where}: stores keep only X and var of raw" for where in elements.values() if not _is_empty(root, where)
        ]


def _n_bytes(node: Array | Group) -> int:
    if isinstance(node, Array):
        return node.declared_bytes
    return sum(_n_bytes(node.child(name)) for name in node.names())


def _not_kept(root: Group, names: list[str]) -> list[str]:
    """One line for each element that stores do not keep."""
    lines = []
    for name in (*_NOT_KEPT, *sorted(set(names) - {*_NOT_KEPT, *_CARRIED})):
        if name not in names or name.startswith(_OLD_RAW_PREFIX):
            continue
        node = root.child(name) if name in _NOT_KEPT else None
        if isinstance(node, Group):
            lines += [] if name in _ELEMENTS else [_left_out(join(name, child)) for child in node.names()]
        elif not isinstance(node, Array) or node.shape != (0,):
            lines.append(_left_out(name))
    return lines


def _left_out(where: str) -> str:
    return f"{where}: stores do not keep {where.split('/')[0]}"


def _is_empty(root: Group, where: str) -> bool:
    node = root.child(where)
    return isinstance(node, Group) and not node.names()


def _is_matrix(node: Array | Group) -> bool:
    return is_dense_matrix(node) if isinstance(node, Array) else sparse_layout(node) is not None


def _described(node: Array | Group) -> str:
    if isinstance(node, Array):
        return f"an array of shape {node.shape} and dtype {node.dtype}"
    return f"a group {node.encoding_text}"


def _embedding_array(root: Group, where: str, field_name: str) -> Array:
    array = root.array(where)
    return array.field(field_name) if field_name else array
