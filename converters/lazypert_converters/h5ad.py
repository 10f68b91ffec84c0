"""AnnData's ``.h5ad`` files: CSR, CSC and dense matrices, read in pieces and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from lazypert.converter import BlockSpec, RowBlock
from lazypert.csr import CSRBlock, first_bad_index
from lazypert.errors import ColumnNotFoundError, SourceFormatError, near_matches
from lazypert_converters._direct import read_range
from lazypert_converters._hdf5 import is_hdf5, missing_source, native
from lazypert_converters._sparse import blocks_by_nnz, indptr_fault

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class H5adConverter:
    """Opens ``.h5ad`` files (AnnData 0.7 and later)."""

    name = "h5ad"

    def recognises(self, path: Path) -> bool:
        """Whether the file is HDF5 with AnnData's obs and var in it."""
        if not is_hdf5(path):
            return False
        try:
            with h5py.File(path, "r") as file:
                return "obs" in file and "var" in file and "mod" not in file  # MuData has all three
        except OSError:  # HDF5 that cannot be opened is ours to explain
            return True

    def open(self, path: Path) -> H5adReader:
        """Open a file and read its structure, no values."""
        try:
            with h5py.File(path, "r") as file:
                return _inspect(path, file)
        except OSError as error:
            raise SourceFormatError(
                f"{str(path)!r} cannot be read as HDF5: {error}. The file is probably cut short or damaged; "
                "get it again. Nothing was written."
            ) from error
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            raise SourceFormatError(
                f"{str(path)!r} is not a valid AnnData file: a part of it is missing ({error}). "
                "The file is damaged or was written by a faulty tool; write it again. Nothing was written."
            ) from error


@dataclass(frozen=True)
class _Matrix:
    """Where a matrix is and how it is laid out: ``"csr"``, ``"csc"`` or ``"dense"``."""

    path: str
    layout: str
    nnz: int
    n_cols: int


@dataclass(frozen=True)
class H5adReader:
    """An ``.h5ad`` file. Holds no open handle, so it can be pickled and used from many threads."""

    path: Path
    n_obs: int
    n_vars: int
    obs_columns: tuple[str, ...]
    matrices: dict[str, int]
    obsm: dict[str, int]
    not_carried: tuple[str, ...]
    layouts: dict[str, _Matrix]

    def obs_names(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """(stop - start,) cell names."""
        return self._frame_index("obs", self.n_obs)[start:stop]

    def obs_column(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        """(stop - start,) values of an obs column."""
        if name not in self.obs_columns:
            raise ColumnNotFoundError(
                f"obs column {name!r} is not in {str(self.path)!r}. {near_matches(name, self.obs_columns)}"
            )
        with h5py.File(self.path, "r") as file:
            values = self._element(file, f"obs/{name}")
            node = file["obs"][name]
            if isinstance(node, h5py.Dataset) and "categories" in node.attrs:  # AnnData before 0.8
                labels = file[node.attrs["categories"]]
                ordered = bool(labels.attrs.get("ordered", False))
                values = pd.Categorical.from_codes(values, self._element(file, labels.name), ordered=ordered)
        if len(values) != self.n_obs:
            raise self._bad(f"obs/{name}", f"has {len(values):,} values", f"{self.n_obs:,}, one a cell")
        return values[start:stop]

    def var(self) -> pd.DataFrame:
        """Return the var table, indexed by gene name."""
        with h5py.File(self.path, "r") as file:
            frame: pd.DataFrame = self._element(file, "var")
        return frame

    def raw_var(self) -> pd.DataFrame:
        """Return the var table of raw."""
        with h5py.File(self.path, "r") as file:
            frame: pd.DataFrame = self._element(file, "raw/var")
        return frame

    def nnz(self, matrix: str) -> int | None:
        """Stored values of a sparse matrix."""
        where = self.layouts[matrix]
        return None if where.layout == "dense" else where.nnz

    def scratch_bytes(self, matrix: str) -> int:  # noqa: ARG002
        """Bytes of the largest HDF5 chunk."""
        return 0

    def blocks(self, matrix: str, max_bytes: int) -> list[BlockSpec]:
        """Row ranges (column ranges of a CSC matrix) of at most `max_bytes`, one row at the least."""
        where = self.layouts[matrix]
        with h5py.File(self.path, "r") as file:
            node = file[where.path]
            if where.layout == "dense":
                size = where.n_cols * (node.dtype.itemsize + 4)  # as CSR, with nothing zero
                return self._even_blocks(matrix, max(1, max_bytes // max(1, size)), node.chunks)
            indptr = self._indptr(node, where)
            size = node["data"].dtype.itemsize + node["indices"].dtype.itemsize
        return blocks_by_nnz(matrix, indptr, max(1, max_bytes // size))

    def _even_blocks(self, matrix: str, rows: int, chunks: tuple[int, ...] | None) -> list[BlockSpec]:
        if chunks and rows > chunks[0]:
            rows -= rows % chunks[0]  # whole HDF5 chunks, so that none is decompressed twice
        return [BlockSpec(matrix, i, min(self.n_obs, i + rows)) for i in range(0, self.n_obs, rows)]

    def read_block(self, spec: BlockSpec) -> RowBlock:
        """Read and check one piece of a matrix."""
        where = self.layouts[spec.matrix]
        try:
            with h5py.File(self.path, "r") as file:
                node = file[where.path]
                if where.layout == "dense":
                    return RowBlock(spec.start, _dense_to_csr(native(node[spec.start : spec.stop])))
                return self._read_sparse(node, where, spec)
        except OSError as error:
            raise self._bad(where.path, f"cannot be read ({error})", "intact HDF5 chunks") from error

    def _read_sparse(self, node: Any, where: _Matrix, spec: BlockSpec) -> RowBlock:
        indptr = node["indptr"][spec.start : spec.stop + 1].astype(np.int64)
        first, last = int(indptr[0]), int(indptr[-1])
        indices, data = (native(read_range(node[part], first, last)) for part in ("indices", "data"))
        minor = where.n_cols if where.layout == "csr" else self.n_obs
        bad = first_bad_index(indices, minor)
        if bad >= 0:
            raise self._bad(
                f"{where.path}/indices",
                f"holds {int(indices[bad])} at element {first + bad}",
                f"numbers from 0 to {minor - 1}",
            )
        if minor <= 2**31 and indices.dtype != np.int32:
            indices = indices.astype(np.int32)
        if where.layout == "csr":
            return RowBlock(spec.start, CSRBlock(indptr - first, indices, data, where.n_cols))
        return RowBlock(0, _csc_to_csr(indptr - first, indices, data, spec.start, self.n_obs, where.n_cols))

    def read_obsm(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """(stop - start, width) rows of an embedding."""
        with h5py.File(self.path, "r") as file:
            rows: NDArray[Any] = file["obsm"][name][start:stop]
            return rows

    def _frame_index(self, frame: str, length: int) -> NDArray[Any]:
        with h5py.File(self.path, "r") as file:
            names = np.asarray(self._element(file, f"{frame}/{_index_key(file[frame])}"))
        if len(names) != length:
            raise self._bad(frame, f"has {len(names):,} names", f"{length:,}")
        return names.astype(object)

    def _element(self, file: Any, where: str) -> Any:
        from anndata.io import read_elem

        try:
            return read_elem(file[where])
        except Exception as error:  # AnnData raises many kinds, which differ from version to version
            raise self._bad(where, f"cannot be read ({error})", "what AnnData can read") from error

    def _indptr(self, node: Any, where: _Matrix) -> NDArray[np.int64]:
        indptr: NDArray[np.int64] = node["indptr"][:].astype(np.int64)
        major = self.n_obs if where.layout == "csr" else where.n_cols
        path = f"{where.path}/indptr"
        fault = indptr_fault(indptr, major, where.nnz)
        if fault is not None:
            raise self._bad(path, *fault)
        return indptr

    def _bad(self, where: str, got: str, expected: str) -> SourceFormatError:
        return SourceFormatError(
            f"{str(self.path)!r} is not a valid AnnData file at {where!r}: it {got}, expected {expected}. "
            "The file is damaged or was written by a faulty tool; write it again. No store was made."
        )


def _inspect(path: Path, file: Any) -> H5adReader:
    for frame in ("obs", "var"):
        if not isinstance(file[frame], h5py.Group):
            raise SourceFormatError(
                f"{str(path)!r} keeps {frame!r} as one table, as AnnData before 0.7 did. "
                "Open it with anndata and write it again: anndata.read_h5ad(path).write_h5ad(new_path)."
            )
    n_obs, n_vars = (_length(file[frame][_index_key(file[frame])]) for frame in ("obs", "var"))
    names = ["X"] if "X" in file else []
    names += [f"layers/{name}" for name in file.get("layers", {})]
    layouts = {name: _layout(path, file[name], name, (n_obs, n_vars)) for name in names}
    obsm, not_carried = {}, []
    for name, node in file.get("obsm", {}).items():
        where = f"obsm/{name}"
        if _is_sparse(node):
            width = int(_sparse_shape(node)[1])
            layouts[where] = _layout(path, node, where, (n_obs, width))
        elif isinstance(node, h5py.Dataset) and node.ndim == 2 and node.dtype.kind in "fiub":
            obsm[name] = _layout(path, node, where, (n_obs, node.shape[1])).n_cols
        else:
            not_carried.append(f"{where}: only numeric matrices are carried")
    for group in ("obsp", "varm", "varp", "uns"):
        not_carried += [f"{group}/{name}: not part of a store" for name in file.get(group, {})]
    if "raw" in file:
        not_carried.append("raw: not part of a store")
    order = file["obs"].attrs.get("column-order")
    columns = [c.decode() if isinstance(c, bytes) else str(c) for c in np.atleast_1d([] if order is None else order)]
    return H5adReader(
        path=path,
        n_obs=n_obs,
        n_vars=n_vars,
        obs_columns=tuple(columns),
        matrices={name: where.n_cols for name, where in layouts.items()},
        obsm=obsm,
        not_carried=tuple(not_carried),
        layouts=layouts,
    )


def _encoding(node: Any) -> str:
    kind = node.attrs.get("encoding-type", node.attrs.get("h5sparse_format", b""))
    return (kind.decode() if isinstance(kind, bytes) else str(kind)).removesuffix("_matrix")


def _is_sparse(node: Any) -> bool:
    return isinstance(node, h5py.Group) and _encoding(node) in ("csr", "csc")


def _sparse_shape(node: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in node.attrs.get("shape", node.attrs.get("h5sparse_shape", ())))


def _length(node: Any) -> int:
    """Length of a column: an array, or a group of a categorical's codes or a nullable's values."""
    if isinstance(node, h5py.Group):
        node = node["codes" if "codes" in node else "values"]
    return int(node.shape[0])


def _index_key(node: Any) -> str:
    key = node.attrs.get("_index", "_index")
    return key.decode() if isinstance(key, bytes) else str(key)


def _layout(path: Path, node: Any, name: str, shape: tuple[int, int]) -> _Matrix:
    where = f"{str(path)!r} is not a valid AnnData file at {name!r}"
    if isinstance(node, h5py.Dataset):
        _check_sources(where, path, node)
        if node.shape != shape or node.dtype.kind not in "fiub":
            raise SourceFormatError(
                f"{where}: it is an array of shape {node.shape} and dtype {node.dtype}, expected numbers of shape "
                f"{shape} (cells, genes). No store was made."
            )
        return _Matrix(name, "dense", int(np.prod(shape)), shape[1])
    if not _is_sparse(node):
        raise SourceFormatError(
            f"{where}: its encoding is {_encoding(node)!r}, expected csr_matrix, csc_matrix or an array."
        )
    if _sparse_shape(node) != shape:
        raise SourceFormatError(
            f"{where}: its shape is {_sparse_shape(node)}, expected {shape} from the lengths of obs and var. "
            "No store was made."
        )
    for part in ("data", "indices", "indptr"):
        if part not in node:
            raise SourceFormatError(f"{where}: it has no {part!r}. Write the file again. No store was made.")
        _check_sources(where, path, node[part])
    if node["indices"].dtype.kind not in "iu" or node["indptr"].dtype.kind not in "iu":
        raise SourceFormatError(
            f"{where}: indices are {node['indices'].dtype} and indptr {node['indptr'].dtype}, expected integers. "
            "No store was made."
        )
    sizes = [node[part].shape[0] for part in ("data", "indices")]
    if sizes[0] != sizes[1] or node["data"].dtype.kind not in "fiub":
        raise SourceFormatError(
            f"{where}: data has {sizes[0]:,} elements of dtype {node['data'].dtype} and indices {sizes[1]:,}, "
            "expected numbers and equal lengths. No store was made."
        )
    return _Matrix(name, _encoding(node), int(sizes[0]), shape[1])


def _check_sources(where: str, path: Path, node: Any) -> None:
    """HDF5 shows zeros where the file behind a virtual dataset is gone."""
    file = missing_source(path, node)
    if file is not None:
        raise SourceFormatError(
            f"{where}: {node.name!r} is a view of another file, {str(file)!r}, which is not there. HDF5 would show "
            "zeros in its place. Put that file back. No store was made."
        )


def _dense_to_csr(rows: NDArray[Any]) -> CSRBlock:
    nonzero = rows != 0
    indptr = np.concatenate([[0], np.cumsum(nonzero.sum(axis=1))]).astype(np.int64)
    return CSRBlock(indptr, np.nonzero(nonzero)[1].astype(np.int32), rows[nonzero], rows.shape[1])


def _csc_to_csr(
    indptr: NDArray[np.int64],
    indices: NDArray[Any],
    data: NDArray[Any],
    first_col: int,
    n_obs: int,
    n_vars: int,
) -> CSRBlock:
    """Columns ``first_col`` on, as rows of the whole matrix (columns keep their numbers)."""
    from scipy.sparse import csc_array

    rows = csc_array((data, indices, indptr), shape=(n_obs, len(indptr) - 1)).tocsr()
    return CSRBlock(rows.indptr.astype(np.int64), (rows.indices + first_col).astype(np.int32), rows.data, n_vars)
