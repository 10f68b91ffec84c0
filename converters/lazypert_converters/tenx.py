"""10x Genomics' ``.h5`` files: one group a genome (Cell Ranger 1 and 2), or ``/matrix`` (3 and later).

Both keep a CSC matrix of genes x cells, which is the CSR matrix of cells x genes.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from lazypert.converter import RowBlock
from lazypert.csr import CSRBlock, first_bad_index
from lazypert.errors import ColumnNotFoundError, SourceFormatError, near_matches
from lazypert_converters._hdf5 import is_hdf5, missing_source, native
from lazypert_converters._sparse import blocks_by_nnz, indptr_fault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert.converter import BlockSpec

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
        except OSError:  # HDF5 that cannot be opened says nothing about its format
            return False

    def open(self, path: Path) -> TenxReader:
        """Open a file and check its structure and lengths; no values are read."""
        try:
            with h5py.File(path, "r") as file:
                return _inspect(path, file)
        except OSError as error:
            raise SourceFormatError(
                f"{str(path)!r} cannot be read as HDF5: {error}. The file is probably cut short or damaged; "
                "get it again. Nothing was written."
            ) from error


@dataclass(frozen=True)
class TenxReader:
    """A 10x ``.h5`` file. Holds no open handle, so it can be pickled and used from many threads.

    Attributes
    ----------
    group
        Where the matrix is in the file.
    var_columns
        Each var column, and its place inside the group; ``""`` is the gene names.
    """

    path: Path
    n_obs: int
    n_vars: int
    obs_columns: tuple[str, ...]
    matrices: dict[str, int]
    obsm: dict[str, int]
    not_carried: tuple[str, ...]
    group: str
    var_columns: dict[str, str]

    def obs_names(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """(stop - start,) barcodes."""
        return self._column("barcodes")[start:stop]

    def obs_column(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        """(stop - start,) values of an obs column; only probe matrices have one, ``filtered_barcodes``."""
        if name not in self.obs_columns:
            raise ColumnNotFoundError(
                f"obs column {name!r} is not in {str(self.path)!r}: 10x files carry no cell annotations. "
                f"{near_matches(name, self.obs_columns)}"
            )
        return self._column(name).astype(bool)[start:stop]

    def var(self) -> pd.DataFrame:
        """Return names, ids and whatever else the file says of its features, named as scanpy names it."""
        columns = {name: self._column(where) for name, where in self.var_columns.items()}
        index = pd.Index(columns.pop(""), dtype=object)
        return pd.DataFrame(columns, index=index.astype(str))

    def raw_var(self) -> pd.DataFrame:
        """10x files have no raw."""
        raise ColumnNotFoundError(f"raw is not in {str(self.path)!r}: 10x files have none.")

    def nnz(self, matrix: str) -> int | None:  # noqa: ARG002
        """Stored values."""
        with self._open("data") as group:
            return int(group["data"].shape[0])

    def scratch_bytes(self, matrix: str) -> int:  # noqa: ARG002
        """Bytes of the largest HDF5 chunk."""
        return 0

    def blocks(self, matrix: str, max_bytes: int) -> list[BlockSpec]:
        """Row ranges of at most `max_bytes`, one row at the least."""
        with self._open("indptr") as group:
            indptr = group["indptr"][:]
            fault = indptr_fault(indptr, self.n_obs, group["data"].shape[0])
            size = group["data"].dtype.itemsize + group["indices"].dtype.itemsize
        if fault is not None:
            raise _bad(self.path, f"{self.group}/indptr", *fault)
        return blocks_by_nnz(matrix, indptr.astype(np.int64), max(1, max_bytes // size))

    def read_block(self, spec: BlockSpec) -> RowBlock:
        """Read and check some rows."""
        with self._open("data") as group:
            indptr = group["indptr"][spec.start : spec.stop + 1].astype(np.int64)
            first, last = int(indptr[0]), int(indptr[-1])
            indices, data = native(group["indices"][first:last]), native(group["data"][first:last])
        bad = first_bad_index(indices, self.n_vars)
        if bad >= 0:
            raise _bad(
                self.path,
                f"{self.group}/indices",
                f"holds {int(indices[bad])} at element {first + bad}",
                f"numbers from 0 to {self.n_vars - 1}",
            )
        return RowBlock(spec.start, CSRBlock(indptr - first, indices.astype(np.int32, copy=False), data, self.n_vars))

    def read_obsm(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """10x files have no embeddings."""
        raise ColumnNotFoundError(f"embedding {name!r} ({start} to {stop}) is not in {str(self.path)!r}: it has none.")

    def _column(self, where: str) -> NDArray[Any]:
        """Text, or booleans; everything else as text, as scanpy shows it."""
        with self._open(where) as group:
            node = group[where]
            if node.dtype.kind == "b":
                return np.asarray(node[:])
            if h5py.check_string_dtype(node.dtype) is None:
                return np.asarray(node[:]).astype(str).astype(object)
            try:
                return np.asarray(node.asstr("utf-8")[:], dtype=object)
            except UnicodeDecodeError as error:
                raise _bad(
                    self.path, f"{self.group}/{where}", f"holds text that is not UTF-8 ({error})", "UTF-8"
                ) from error

    @contextmanager
    def _open(self, where: str) -> Iterator[Any]:
        try:
            with h5py.File(self.path, "r") as file:
                yield file[self.group]
        except OSError as error:
            raise _bad(self.path, f"{self.group}/{where}", f"cannot be read ({error})", "intact HDF5 chunks") from error


def _groups(file: Any) -> list[str]:
    """Groups that hold a matrix: ``matrix``, or one a genome."""
    matrix = file.get("matrix")
    if isinstance(matrix, h5py.Group):
        return ["matrix"] if {"barcodes", "features", "indptr"} & set(matrix) else []
    # Four parts of seven, so that a damaged file is still explained as what it is.
    return [name for name in file if isinstance(node := file.get(name), h5py.Group) and len(_GENOME & set(node)) >= 4]


def _inspect(path: Path, file: Any) -> TenxReader:
    groups = _groups(file)
    if not groups:
        raise SourceFormatError(
            f"{str(path)!r} is not a 10x matrix: it holds {', '.join(map(repr, file)) or 'nothing'}, expected a group "
            "'matrix' or one group a genome. Nothing was written."
        )
    if len(groups) > 1:
        raise SourceFormatError(
            f"{str(path)!r} has the matrices of {len(groups)} genomes, {', '.join(map(repr, groups))}, expected one: "
            "each may have its own cells. Write the one you want and convert that: "
            f"scanpy.read_10x_h5({path.name!r}, genome={groups[0]!r}).write_h5ad('{groups[0]}.h5ad'). "
            "No store was made."
        )
    where = groups[0]
    group = file[where]
    is_v3 = where == "matrix"
    for name in (
        *_MATRIX,
        *(("features/id", "features/name", "features/feature_type") if is_v3 else ("genes", "gene_names")),
    ):
        _vector(path, group, where, name)
    shape = group["shape"][:].tolist()
    names = "features/name" if is_v3 else "gene_names"
    n_obs, n_vars = len(group["barcodes"]), len(group[names])
    if shape != [n_vars, n_obs]:
        raise _bad(
            path, f"{where}/shape", f"says {shape} (genes, cells)", f"{[n_vars, n_obs]} from {names} and barcodes"
        )
    _check_numbers(path, group, where)
    var_columns, not_carried = _features(group) if is_v3 else ({"gene_ids": "genes"}, [])
    var_columns = {"": names} | var_columns
    for place in var_columns.values():
        if len(node := _vector(path, group, where, place)) != n_vars:
            raise _bad(path, f"{where}/{place}", f"has {len(node):,} elements", f"{n_vars:,}, one a gene")
    obs_columns = (_FILTERED,) if is_v3 and _FILTERED in group else ()
    if obs_columns and len(node := _vector(path, group, where, _FILTERED)) != n_obs:
        raise _bad(path, f"{where}/{_FILTERED}", f"has {len(node):,} elements", f"{n_obs:,}, one a cell")
    known = {*_MATRIX, *(("features", _FILTERED) if is_v3 else ("genes", "gene_names"))}
    not_carried += [f"{where}/{name}: not part of a store" for name in group if name not in known]
    not_carried += [f"{name}: not part of a store" for name in file if name != where]
    return TenxReader(
        path=path,
        n_obs=n_obs,
        n_vars=n_vars,
        obs_columns=obs_columns,
        matrices={"X": n_vars},
        obsm={},
        not_carried=tuple(not_carried),
        group=where,
        var_columns=var_columns,
    )


def _features(group: Any) -> tuple[dict[str, str], list[str]]:
    """Var columns with their places, and what cannot be one."""
    features = group["features"]
    if "gene_id" in features:  # a matrix of probes, several of one gene
        columns = {"gene_ids": "features/gene_id", "probe_ids": "features/id"}
    else:
        columns = {"gene_ids": "features/id"}
    columns["feature_types"] = "features/feature_type"
    not_carried = []
    for name in features:
        node = features.get(name)
        if isinstance(node, h5py.Dataset) and node.ndim == 1 and node.dtype.kind in "SObiuf":
            if name not in _NAMED_BY_SCANPY:
                columns[name] = f"features/{name}"
        else:
            not_carried.append(f"{group.name[1:]}/features/{name}: not one value a gene")
    return columns, not_carried


def _vector(path: Path, group: Any, where: str, name: str) -> Any:
    """Return a one-dimensional dataset whose values are really there."""
    node = group.get(name)
    if not isinstance(node, h5py.Dataset) or node.ndim != 1:
        got = "is missing" if node is None else f"is {'a group' if isinstance(node, h5py.Group) else node.shape}"
        raise _bad(path, f"{where}/{name}", got, "an array of one dimension")
    gone = missing_source(path, node)
    if gone is not None:
        raise SourceFormatError(
            f"{str(path)!r}: {where}/{name} is a view of another file, {str(gone)!r}, which is not there. HDF5 would "
            "show zeros in its place. Put that file back. No store was made."
        )
    return node


def _check_numbers(path: Path, group: Any, where: str) -> None:
    for name, kinds, expected in (
        ("data", "fiub", "numbers"),
        ("indices", "iu", "integers"),
        ("indptr", "iu", "integers"),
    ):
        if group[name].dtype.kind not in kinds:
            raise _bad(path, f"{where}/{name}", f"is of dtype {group[name].dtype}", expected)
    n_data, n_indices = len(group["data"]), len(group["indices"])
    if n_data != n_indices:
        raise _bad(path, f"{where}/indices", f"has {n_indices:,} elements", f"{n_data:,}, as many as data")


def _bad(path: Path, where: str, got: str, expected: str) -> SourceFormatError:
    return SourceFormatError(
        f"{str(path)!r} is not a valid 10x file at {where!r}: it {got}, expected {expected}. "
        "The file is damaged or was written by a faulty tool; get it again. No store was made."
    )
