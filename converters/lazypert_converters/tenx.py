"""10x Genomics' ``.h5`` files: one group a genome (Cell Ranger 1 and 2), or ``/matrix`` (3 and later).

Both keep a CSC matrix of genes x cells, which is the CSR matrix of cells x genes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h5py
import pandas as pd

from lazypert.errors import ColumnNotFoundError, SourceFormatError, near_matches
from lazypert_converters._hdf5 import Hdf5Tree, is_hdf5
from lazypert_converters._matrices import Matrix, blocks, open_sparse, read_block, scratch_bytes, stored_values
from lazypert_converters._tree import Array, Group, join

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert.converter import BlockSpec, RowBlock
    from lazypert_converters._tree import Tree

_MATRIX = ("data", "indices", "indptr", "shape", "barcodes")
_GENOME = frozenset({*_MATRIX, "genes", "gene_names"})
# What scanpy.read_10x_h5 names otherwise than the file does, or leaves out.
_NAMED_BY_SCANPY = ("id", "gene_id", "feature_type", "name", "_all_tag_keys")
_FILTERED = "filtered_barcodes"


class TenxConverter:
    """Opens ``.h5`` files of Cell Ranger, Space Ranger, and tools that write as they do."""

    name = "10x_h5"

    def recognises(self, path: Path) -> bool:
        """Whether the file is HDF5 with a group ``matrix``, or groups of genomes, and is not AnnData's."""
        if not is_hdf5(path):
            return False
        try:
            with h5py.File(path, "r") as file:
                return "obs" not in file and "var" not in file and bool(_groups(file))
        except (OSError, RuntimeError):  # HDF5 that cannot be opened says nothing about its format
            return False

    def open(self, path: Path) -> TenxReader:
        """Open a file and check its structure and lengths; no values are read."""
        tree = Hdf5Tree(path, "10x file")
        with tree.root() as root:
            return _inspect(tree, root, _groups(root.node))


@dataclass(frozen=True)
class TenxReader:
    """A 10x ``.h5`` file. Holds no open handle, so it can be pickled and used from many threads.

    Attributes
    ----------
    tree
        The file.
    layout
        Where the matrix is in the file.
    var_columns
        Each var column, and its place inside the matrix's group; ``""`` is the gene names.
    """

    path: Path
    n_obs: int
    n_vars: int
    obs_columns: tuple[str, ...]
    matrices: dict[str, int]
    obsm: dict[str, int]
    not_carried: tuple[str, ...]
    tree: Tree
    layout: Matrix
    var_columns: dict[str, str]

    def obs_names(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """(stop - start,) barcodes."""
        return self._column("barcodes", start, stop)

    def obs_column(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        """(stop - start,) values of an obs column; only probe matrices have one, ``filtered_barcodes``."""
        if name not in self.obs_columns:
            raise ColumnNotFoundError(
                f"obs column {name!r} is not in {str(self.path)!r}: 10x files carry no cell annotations. "
                f"{near_matches(name, self.obs_columns)}"
            )
        return self._column(name, start, stop).astype(bool)

    def var(self) -> pd.DataFrame:
        """Return names, ids and whatever else the file says of its features, named as scanpy names it."""
        columns = {name: self._column(where) for name, where in self.var_columns.items()}
        index = pd.Index(columns.pop(""), dtype=object)
        return pd.DataFrame(columns, index=index.astype(str))

    def raw_var(self) -> pd.DataFrame:
        """10x files have no raw."""
        raise ColumnNotFoundError(f"raw is not in {str(self.path)!r}: 10x files have none.")

    def nnz(self, matrix: str) -> int | None:  # noqa: ARG002 - there is one
        """Stored values of the matrix."""
        return stored_values(self.tree, self.layout)

    def scratch_bytes(self, matrix: str) -> int:  # noqa: ARG002 - there is one
        """Bytes of the largest HDF5 chunk, as it is in the file and as it is inflated."""
        return scratch_bytes(self.tree, self.layout)

    def blocks(self, matrix: str, max_bytes: int) -> list[BlockSpec]:
        """Row ranges of at most `max_bytes`, one row at the least."""
        return blocks(self.tree, matrix, self.layout, max_bytes)

    def read_block(self, spec: BlockSpec) -> RowBlock:
        """Read and check some rows."""
        return read_block(self.tree, self.layout, spec)

    def read_obsm(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """10x files have no embeddings."""
        raise ColumnNotFoundError(f"embedding {name!r} ({start} to {stop}) is not in {str(self.path)!r}: it has none.")

    def _column(self, where: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Text, or booleans; everything else as text, as scanpy shows it."""
        with self.tree.root() as root:
            values = root.array(join(self.layout.where, where)).read(start, stop)
        return values if values.dtype.kind in "bO" else values.astype(str).astype(object)


def _groups(file: Any) -> list[str]:
    """Groups that hold a matrix: ``matrix``, or one a genome."""
    matrix = file.get("matrix")
    if isinstance(matrix, h5py.Group):
        return ["matrix"] if {"barcodes", "features", "indptr"} & set(matrix) else []
    # Four parts of seven, so that a damaged file is still explained as what it is.
    return [name for name in file if isinstance(node := file.get(name), h5py.Group) and len(_GENOME & set(node)) >= 4]


def _inspect(tree: Tree, root: Group, groups: list[str]) -> TenxReader:
    if not groups:
        raise SourceFormatError(
            f"{str(tree.path)!r} is not a 10x matrix: it holds {', '.join(map(repr, root.names())) or 'nothing'}, "
            "expected a group 'matrix' or one group a genome. Nothing was written."
        )
    if len(groups) > 1:
        raise SourceFormatError(
            f"{str(tree.path)!r} has the matrices of {len(groups)} genomes, {', '.join(map(repr, groups))}, expected "
            "one: each may have its own cells. Write the one you want and convert that: "
            f"scanpy.read_10x_h5({tree.path.name!r}, genome={groups[0]!r}).write_h5ad('{groups[0]}.h5ad'). "
            "No store was made."
        )
    where = groups[0]
    group = root.group(where)
    is_v3 = where == "matrix"
    names = "features/name" if is_v3 else "gene_names"
    parts = ("features/id", names, "features/feature_type") if is_v3 else ("genes", names)
    vectors = {name: group.array(name).vector() for name in (*_MATRIX, *parts)}
    n_obs, n_vars = vectors["barcodes"].shape[0], vectors[names].shape[0]
    if (shape := vectors["shape"].read().tolist()) != [n_vars, n_obs]:
        raise vectors["shape"].fault(f"says {shape} (genes, cells)", f"{[n_vars, n_obs]} from {names} and barcodes")
    layout = open_sparse(group, "csr", (n_obs, n_vars))
    var_columns, not_carried = _features(group.group("features")) if is_v3 else ({"gene_ids": "genes"}, [])
    var_columns = {"": names} | var_columns
    for place in var_columns.values():
        _check_length(group.array(place), n_vars, "gene")
    obs_columns = (_FILTERED,) if is_v3 and _FILTERED in group.names() else ()
    if obs_columns:
        _check_length(group.array(_FILTERED), n_obs, "cell")
    known = {*_MATRIX, *(("features", _FILTERED) if is_v3 else ("genes", "gene_names"))}
    not_carried += [f"{where}/{name}: not part of a store" for name in group.names() if name not in known]
    not_carried += [f"{name}: not part of a store" for name in root.names() if name != where]
    return TenxReader(
        path=tree.path,
        n_obs=n_obs,
        n_vars=n_vars,
        obs_columns=obs_columns,
        matrices={"X": n_vars},
        obsm={},
        not_carried=tuple(not_carried),
        tree=tree,
        layout=layout,
        var_columns=var_columns,
    )


def _features(features: Group) -> tuple[dict[str, str], list[str]]:
    """Var columns with their places, and what cannot be one."""
    names = features.names()
    if "gene_id" in names:  # a matrix of probes, several of one gene
        columns = {"gene_ids": "features/gene_id", "probe_ids": "features/id"}
    else:
        columns = {"gene_ids": "features/id"}
    columns["feature_types"] = "features/feature_type"
    not_carried = []
    for name in names:
        node = features.child(name)
        if isinstance(node, Array) and len(node.shape) == 1 and node.kind in ("number", "text"):
            if name not in _NAMED_BY_SCANPY:
                columns[name] = f"features/{name}"
        else:
            not_carried.append(f"{node.where}: not one value a gene")
    return columns, not_carried


def _check_length(node: Array, length: int, what: str) -> None:
    if node.vector().shape[0] != length:
        raise node.fault(f"has {node.shape[0]:,} elements", f"{length:,}, one a {what}")
