"""An AnnData, whatever tree it lies in: obs, var, X, layers, raw and embeddings, read in pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lazypert.errors import ColumnNotFoundError, near_matches
from lazypert_converters._frames import open_frame, read_column, read_frame, read_names, used_in_uns
from lazypert_converters._matrices import (
    Matrix,
    blocks,
    open_matrix,
    read_block,
    scratch_bytes,
    sparse_layout,
    sparse_shape,
    stored_values,
)
from lazypert_converters._tree import Array, Group, join

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from lazypert.converter import BlockSpec, RowBlock
    from lazypert_converters._frames import Frame
    from lazypert_converters._tree import Tree

_RAW = "raw/X"
_OLD_RAW = "raw."
_ABSENT = ("null", "0.1.0")
_READ = ("obs", "var", "X", "layers", "obsm", "raw")
_NOT_PART = ("obsp", "varm", "varp", "uns")


@dataclass(frozen=True)
class AnnDataReader:
    """An AnnData on disk. Holds no open handle, so it can be pickled and used from many threads.

    Attributes
    ----------
    tree
        The file.
    frames
        ``"obs"``, ``"var"`` and, of raw, ``"raw/var"``.
    layouts
        Where each matrix is.
    embeddings
        Where each dense embedding is: a path and, in AnnData before 0.7, a field of records there.
    """

    path: Path
    n_obs: int
    n_vars: int
    obs_columns: tuple[str, ...]
    matrices: dict[str, int]
    obsm: dict[str, int]
    not_carried: tuple[str, ...]
    tree: Tree
    frames: dict[str, Frame]
    layouts: dict[str, Matrix]
    embeddings: dict[str, tuple[str, str]]

    def obs_names(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """(stop - start,) cell names."""
        with self.tree.root() as root:
            return read_names(root, self.frames["obs"], start, stop)

    def obs_column(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        """(stop - start,) values of an obs column."""
        if name not in self.obs_columns:
            why = next((f"{line}. " for line in self.not_carried if line.startswith(f"obs/{name}: ")), "")
            raise ColumnNotFoundError(
                f"obs column {name!r} is not in {str(self.path)!r}. {why}{near_matches(name, self.obs_columns)}"
            )
        with self.tree.root() as root:
            return read_column(root, self.frames["obs"].columns[name], start, stop)

    def var(self) -> pd.DataFrame:
        """Return the var table, indexed by gene name."""
        with self.tree.root() as root:
            return read_frame(root, self.frames["var"])

    def raw_var(self) -> pd.DataFrame:
        """Return the var table of raw."""
        if _RAW not in self.matrices:
            raise ColumnNotFoundError(f"raw is not in {str(self.path)!r}.")
        with self.tree.root() as root:
            return read_frame(root, self.frames["raw/var"])

    def nnz(self, matrix: str) -> int | None:
        """Stored values of a sparse matrix."""
        return stored_values(self.tree, self.layouts[matrix])

    def scratch_bytes(self, matrix: str) -> int:
        """Bytes of chunks and of row pointers that `read_block` needs beside the block."""
        return scratch_bytes(self.tree, self.layouts[matrix])

    def blocks(self, matrix: str, max_bytes: int) -> list[BlockSpec]:
        """Row ranges of a CSR matrix, column ranges of a CSC matrix, tiles of a dense one."""
        return blocks(self.tree, matrix, self.layouts[matrix], max_bytes)

    def read_block(self, spec: BlockSpec) -> RowBlock:
        """Read and check one piece of a matrix."""
        return read_block(self.tree, self.layouts[spec.matrix], spec)

    def read_obsm(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """(stop - start, width) rows of an embedding."""
        where, field = self.embeddings[name]
        with self.tree.root() as root:
            array = root.array(where)
            return (array.field(field) if field else array).read(start, stop)


def open_anndata(tree: Tree) -> AnnDataReader:
    """Check the structure of an AnnData, and the lengths of all its parts; no values are read.

    Raises
    ------
    SourceFormatError
        When a part is missing, of an unknown encoding, or of the wrong length.
    """
    with tree.root() as root:
        kind = root.encoding[0]
        if kind not in ("anndata", ""):
            raise root.fault(f"is encoded as {kind!r}", "'anndata'")
        names = root.names()
        frames = {name: open_frame(root, name) for name in ("obs", "var")}
        shape = frames["obs"].length, frames["var"].length
        layouts: dict[str, Matrix] = {}
        embeddings: dict[str, tuple[str, str]] = {}
        not_carried = [line for frame in frames.values() for line in frame.not_carried]
        if "X" in names and (node := root.child("X")).encoding != _ABSENT:
            layouts["X"] = open_matrix(node, shape)
        for part in (_layers(root, shape), _obsm(root, shape[0]), _raw(root, shape[0], frames)):
            layouts |= part.layouts
            embeddings |= part.embeddings
            not_carried += part.not_carried
        used = used_in_uns(list(frames.values()))
        not_carried += _left(root, names, used)
        obsm = {name: _width(root, *place) for name, place in embeddings.items()}
    return AnnDataReader(
        path=tree.path,
        n_obs=shape[0],
        n_vars=shape[1],
        obs_columns=tuple(frames["obs"].columns),
        matrices={name: matrix.n_cols for name, matrix in layouts.items()},
        obsm=obsm,
        not_carried=tuple(not_carried),
        tree=tree,
        frames=frames,
        layouts=layouts,
        embeddings=embeddings,
    )


@dataclass(frozen=True)
class _Part:
    layouts: dict[str, Matrix]
    embeddings: dict[str, tuple[str, str]]
    not_carried: list[str]


def _layers(root: Group, shape: tuple[int, int]) -> _Part:
    layouts, not_carried = {}, []
    if "layers" in root.names():
        group = root.group("layers")
        for name in group.names():
            node = group.child(name)
            if _is_matrix(node):
                layouts[node.where] = open_matrix(node, shape)
            else:
                not_carried.append(f"{node.where}: {_describe(node)}, and only numeric matrices are carried")
    return _Part(layouts, {}, not_carried)


def _obsm(root: Group, n_obs: int) -> _Part:
    if "obsm" not in root.names():
        return _Part({}, {}, [])
    node = root.child("obsm")
    if isinstance(node, Array):  # AnnData before 0.7
        places = {name: (node.where, name) for name in node.dtype.names or ()}
        children: dict[str, Array | Group] = {name: node.field(name) for name in places}
    else:
        children = {name: node.child(name) for name in node.names()}
        places = {name: (child.where, "") for name, child in children.items()}
    layouts, embeddings, not_carried = {}, {}, []
    for name, child in children.items():
        where = join("obsm", name)
        if isinstance(child, Group) and sparse_layout(child):
            layouts[where] = open_matrix(child, (n_obs, sparse_shape(child)[1]))
        elif isinstance(child, Array) and _is_matrix(child) and len(child.shape) == 2:
            open_matrix(child, (n_obs, child.shape[1]))
            embeddings[name] = places[name]
        else:
            not_carried.append(f"{where}: {_describe(child)}, and only numeric matrices are carried")
    return _Part(layouts, embeddings, not_carried)


def _raw(root: Group, n_obs: int, frames: dict[str, Frame]) -> _Part:
    """raw, of today or of before 0.7 (``raw.X`` and ``raw.var`` at the root); adds its var to `frames`."""
    names = root.names()
    old = [name for name in names if name.startswith(_OLD_RAW)]
    if "raw" in names and old:
        raise root.fault(f"has both 'raw' and {old[0]!r}", "one raw matrix")
    if "raw" in names:
        node = root.child("raw")
        if node.encoding == _ABSENT:
            return _Part({}, {}, [])
        parts = {name: f"raw/{name}" for name in root.group("raw").names()}
    else:
        parts = {name.removeprefix(_OLD_RAW): name for name in old}
    if not {"X", "var"} <= parts.keys():
        return _Part({}, {}, [f"{where}: raw has no {'X' if 'X' not in parts else 'var'}" for where in parts.values()])
    frames["raw/var"] = frame = open_frame(root, parts.pop("var"))
    matrix = open_matrix(root.child(parts.pop("X")), (n_obs, frame.length))
    not_carried = [f"{where}: not part of a store" for where in parts.values() if not _is_empty(root, where)]
    return _Part({_RAW: matrix}, {}, [*frame.not_carried, *not_carried])


def _left(root: Group, names: list[str], used: set[str]) -> list[str]:
    """Everything that no store holds, one line each."""
    lines = []
    for name in (*_NOT_PART, *sorted(set(names) - {*_NOT_PART, *_READ})):
        if name not in names or name.startswith(_OLD_RAW):
            continue
        node = root.child(name) if name in _NOT_PART else None
        if isinstance(node, Group):
            lines += [f"{name}/{child}: not part of a store" for child in node.names() if child not in used]
        elif not isinstance(node, Array) or node.shape != (0,):
            lines.append(f"{name}: not part of a store")
    return lines


def _is_empty(root: Group, where: str) -> bool:
    node = root.child(where)
    return isinstance(node, Group) and not node.names()


def _is_matrix(node: Array | Group) -> bool:
    if isinstance(node, Group):
        return sparse_layout(node) is not None
    return node.kind == "number" and node.encoding in (("", ""), ("array", "0.2.0"))


def _describe(node: Array | Group) -> str:
    kind = node.encoding[0]
    if isinstance(node, Array):
        return f"an array of shape {node.shape} and dtype {node.dtype}"
    return f"encoded as {kind!r}" if kind else "a group without an encoding"


def _width(root: Group, where: str, field: str) -> int:
    array = root.array(where)
    return (array.field(field) if field else array).shape[1]
