"""Converter for 10x Genomics ``.h5`` files: one group per genome (Cell Ranger 1 and 2), or ``/matrix`` (3 and later).

Both hold a CSC matrix of genes x cells, which is the same as a CSR matrix of cells x genes. Features that are not
genes, such as guides and antibodies, become sparse obsm entries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import h5py
import pandas as pd

from lazypert.converter import raise_machine_error
from lazypert.errors import SourceFormatError
from lazypert_converters._feature_types import columns_by_matrix, names_of, select
from lazypert_converters._hdf5 import Hdf5Tree, is_hdf5, open_hdf5
from lazypert_converters._matrices import ARRAYS, Matrix, blocks, open_sparse, read_block, scratch_bytes, stored_values
from lazypert_converters._reader import Reader
from lazypert_converters._tree import Array, Group, join

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from lazypert.converter import BlockSpec, RowBlock
    from lazypert_converters._tree import Tree

_MATRIX_NAMES = (*ARRAYS, "shape", "barcodes")
_GENOME_NAMES = frozenset({*_MATRIX_NAMES, "genes", "gene_names"})
# Features that scanpy.read_10x_h5 renames or leaves out.
_RENAMED_BY_SCANPY = ("id", "gene_id", "feature_type", "name", "_all_tag_keys")
_FILTERED = "filtered_barcodes"


class TenxConverter:
    """Opens ``.h5`` files of Cell Ranger, Space Ranger, and tools that write the same format."""

    name = "10x_h5"

    def recognises(self, path: Path) -> bool:
        """Whether the file is HDF5 with a group ``matrix`` or one group per genome, and is not an AnnData."""
        if not is_hdf5(path):
            return False
        try:
            with open_hdf5(path) as file:
                return "obs" not in file and "var" not in file and bool(_matrix_groups(file))
        except (OSError, RuntimeError) as error:  # damaged HDF5: its format is unknown
            raise_machine_error(path, error)
            return False

    def open(self, path: Path) -> TenxReader:
        """Open a file and check its structure and lengths, without reading values."""
        tree = Hdf5Tree(path, "10x file")
        with tree.root() as root:
            return _open_matrix(tree, root, _matrix_groups(root.node))


@dataclass(frozen=True)
class TenxReader(Reader):
    """A 10x ``.h5`` file.

    Attributes
    ----------
    tree
        The file.
    layout
        Where the matrix is in the file.
    var_columns
        Path of each var column inside the matrix's group; ``""`` is the gene names.
    columns
        Columns of each matrix among the features; empty if all of them are X.
    """

    tree: Tree
    layout: Matrix
    var_columns: dict[str, str]
    columns: dict[str, NDArray[np.int64]] = field(default_factory=dict, compare=False)

    def obs_names(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """(stop - start,) barcodes."""
        return self._column("barcodes", start, stop)

    def obs_column(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        """(stop - start,) values of an obs column; only probe matrices have one, ``filtered_barcodes``."""
        if name not in self.obs_columns:
            raise self.no_obs_column(name)
        return self._column(name, start, stop).astype(bool)

    def var(self) -> pd.DataFrame:
        """Return names, ids and other columns of the genes, under scanpy's names."""
        columns = {name: self._column(where) for name, where in self.var_columns.items()}
        index = pd.Index(columns.pop(""), dtype=object)
        table = pd.DataFrame(columns, index=index.astype(str))
        return table.iloc[self.columns["X"]] if self.columns else table

    def column_names(self, matrix: str) -> NDArray[Any] | None:
        """(n_columns,) names of the features of an obsm entry."""
        return names_of(self._column(self.var_columns[""]), self.columns, matrix)

    def nnz(self, matrix: str) -> int | None:  # noqa: ARG002 - the file has only one
        """Number of stored values of the matrix; None if some features are in another matrix."""
        return None if self.columns else stored_values(self.tree, self.layout)

    def scratch_bytes(self, matrix: str) -> int:  # noqa: ARG002 - the file has only one
        """Bytes of the largest HDF5 chunk, compressed and decompressed."""
        return scratch_bytes(self.tree, self.layout)

    def blocks(self, matrix: str, max_bytes: int) -> list[BlockSpec]:
        """Row ranges of at most `max_bytes`, but at least one row."""
        return blocks(self.tree, matrix, self.layout, max_bytes)

    def read_block(self, spec: BlockSpec) -> RowBlock:
        """Read and check a row range."""
        block = read_block(self.tree, self.layout, spec)
        return select(block, self.columns[spec.matrix]) if self.columns else block

    def _column(self, where: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Text or booleans; numbers become text, as in scanpy."""
        with self.tree.root() as root:
            values = root.array(join(self.layout.where, where)).read(start, stop)
        return values if values.dtype.kind in "bO" else values.astype(str).astype(object)


def _matrix_groups(file: Any) -> list[str]:
    """Groups that hold a matrix: ``matrix``, or one per genome."""
    matrix = file.get("matrix")
    if isinstance(matrix, h5py.Group):
        return ["matrix"] if {"barcodes", "features", "indptr"} & set(matrix) else []
    # Four of seven names suffice, so that a damaged file is still reported as a 10x file.
    return [
        name for name in file if isinstance(node := file.get(name), h5py.Group) and len(_GENOME_NAMES & set(node)) >= 4
    ]


def _open_matrix(tree: Tree, root: Group, groups: list[str]) -> TenxReader:
    where = _only_group(tree, root, groups)
    group = root.group(where)
    is_v3 = where == "matrix"
    gene_names = "features/name" if is_v3 else "gene_names"
    required = ("features/id", gene_names, "features/feature_type") if is_v3 else ("genes", gene_names)
    vectors = {name: group.array(name).vector() for name in (*_MATRIX_NAMES, *required)}
    n_obs, n_vars = vectors["barcodes"].shape[0], vectors[gene_names].shape[0]
    if (shape := vectors["shape"].read().tolist()) != [n_vars, n_obs]:
        raise vectors["shape"].fault(
            f"says {shape} (genes, cells)", f"{[n_vars, n_obs]}, the lengths of {gene_names} and barcodes"
        )
    layout = open_sparse(group, "csr", (n_obs, n_vars))
    var_columns, not_carried = _features(group.group("features")) if is_v3 else ({"gene_ids": "genes"}, [])
    var_columns = {"": gene_names} | var_columns
    for column in var_columns.values():
        _check_length(group.array(column), n_vars, "gene")
    obs_columns = (_FILTERED,) if is_v3 and _FILTERED in group.names() else ()
    if obs_columns:
        _check_length(group.array(_FILTERED), n_obs, "cell")
    types = group.array("features/feature_type").read() if is_v3 else None
    columns = columns_by_matrix(None if types is None else types.tolist())
    known = {*_MATRIX_NAMES, *(("features", _FILTERED) if is_v3 else ("genes", "gene_names"))}
    others = [join(where, name) for name in group.names() if name not in known]
    others += [name for name in root.names() if name != where]
    return TenxReader(
        path=tree.path,
        n_obs=n_obs,
        n_vars=len(columns.get("X", range(n_vars))),
        obs_columns=obs_columns,
        matrices={name: len(numbers) for name, numbers in columns.items()} or {"X": n_vars},
        obsm={},
        not_carried=(
            *not_carried,
            *(f"{name}: neither a matrix nor names of cells or genes" for name in others),
        ),
        tree=tree,
        layout=layout,
        var_columns=var_columns,
        columns=columns,
    )


def _only_group(tree: Tree, root: Group, groups: list[str]) -> str:
    if not groups:
        raise SourceFormatError(
            f"{str(tree.path)!r} is not a 10x matrix: it holds {', '.join(map(repr, root.names())) or 'nothing'}, "
            "expected a group 'matrix' or one group per genome. Check the path. Nothing was written."
        )
    if len(groups) > 1:
        raise SourceFormatError(
            f"{str(tree.path)!r} has the matrices of {len(groups)} genomes, {', '.join(map(repr, groups))}, expected "
            "one, because each may have different cells. Write the one you want and convert that: "
            f"scanpy.read_10x_h5({tree.path.name!r}, genome={groups[0]!r}).write_h5ad('{groups[0]}.h5ad'). "
            "Nothing was written."
        )
    return groups[0]


def _features(features: Group) -> tuple[dict[str, str], list[str]]:
    """Paths of the var columns, and what cannot be a column."""
    names = features.names()
    if "gene_id" in names:  # a probe matrix, with several probes per gene
        columns = {"gene_ids": "features/gene_id", "probe_ids": "features/id"}
    else:
        columns = {"gene_ids": "features/id"}
    columns["feature_types"] = "features/feature_type"
    not_carried = []
    for name in names:
        node = features.child(name)
        if isinstance(node, Array) and len(node.shape) == 1 and node.kind in ("number", "text"):
            if name not in _RENAMED_BY_SCANPY:
                columns[name] = f"features/{name}"
        else:
            not_carried.append(f"{node.where}: not one value per gene")
    return columns, not_carried


def _check_length(node: Array, length: int, unit: str) -> None:
    if node.vector().shape[0] != length:
        raise node.fault(f"has {node.shape[0]:,} elements", f"{length:,}, one per {unit}")
