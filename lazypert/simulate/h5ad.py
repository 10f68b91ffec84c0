"""AnnData's H5AD, written block by block into a file that appears when it is complete."""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.errors import StoreExistsError, StoreNotFoundError
from lazypert.simulate.parameters import _numbered

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import h5py
    from numpy.typing import NDArray

CHUNK = 131_072  # elements of an HDF5 chunk of X: 512 KiB, inside HDF5's chunk cache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Block:
    """Rows to write: CSR parts, and one value a row for every obs column."""

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    data: NDArray[np.float32]
    obs: dict[str, NDArray[Any]]

    @property
    def n_cells(self) -> int:
        return len(self.indptr) - 1


@contextlib.contextmanager
def _replacing(path: Path, *, overwrite: bool) -> Iterator[h5py.File]:
    """Open a new HDF5 file beside `path`; it takes the name when it is complete, or vanishes."""
    import h5py

    if path.exists() and not overwrite:
        raise StoreExistsError(f"{str(path)!r} exists already. Choose another name, or pass overwrite=True.")
    if not path.parent.is_dir():
        raise StoreNotFoundError(f"There is no folder {str(path.parent)!r} to write {path.name!r} in. Make it.")
    partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:12]}")
    try:
        # The cache holds the last, half-filled chunk of every array, so that gzip runs once a chunk.
        with h5py.File(partial, "x", rdcc_nbytes=4 * 1024**2) as file:
            yield file
        # Bytes must be on disk before the name says that they are.
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class _ScreenWriter:
    """Writes a screen's frame when it is made, then its rows block by block.

    The layout is AnnData's: https://anndata.readthedocs.io/en/stable/fileformat-prose.html
    """

    def __init__(
        self,
        file: h5py.File,
        shape: tuple[int, int],
        categories: Mapping[str, Sequence[str]],
        *,
        numbers: tuple[str, ...] = (),
        index_type: type[np.signedinteger[Any]] = np.int32,
        compression: str | None = None,
    ) -> None:
        _encode(file, "anndata", "0.1.0")
        for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
            _encode(file.create_group(name), "dict", "0.1.0")
        self.n_rows = self.nnz = 0
        self._matrix = _encode(file.create_group("X"), "csr_matrix", "0.1.0", shape=np.array(shape))
        for name, kind in (("data", "float32"), ("indices", "int32")):
            self._matrix.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(CHUNK,), compression=compression)
        self._matrix.create_dataset("indptr", (shape[0] + 1,), index_type)
        obs = _encode(file.create_group("obs"), "dataframe", "0.2.0", _index="_index")
        obs.attrs["column-order"] = [*categories, *numbers]
        self._index = _strings(obs, "_index", shape[0])
        self._columns = {name: _array(obs, name, shape[0], np.int32, compression) for name in numbers}
        for name, labels in categories.items():
            group = _encode(obs.create_group(name), "categorical", "0.2.0", ordered=False)
            _strings(group, "categories", len(labels))[:] = list(labels)
            dtype = np.min_scalar_type(-len(labels))
            self._columns[name] = _array(group, "codes", shape[0], dtype, compression)

    def append(self, block: _Block, names: Sequence[str]) -> None:
        """Write the next rows."""
        first, last = self.n_rows, self.n_rows + block.n_cells
        end = self.nnz + len(block.data)
        indptr = self._matrix["indptr"]
        assert end <= np.iinfo(indptr.dtype).max, "more nonzeros than the index type was chosen for"
        for name, values in (("data", block.data), ("indices", block.indices)):
            self._matrix[name].resize((end,))
            self._matrix[name][self.nnz : end] = values
        indptr[first + 1 : last + 1] = block.indptr[1:] + self.nnz
        self._index[first:last] = list(names)
        for name, column in self._columns.items():
            column[first:last] = block.obs[name]
        self.n_rows, self.nnz = last, end


def _encode(node: Any, kind: str, version: str, **attributes: Any) -> Any:
    node.attrs.update({"encoding-type": kind, "encoding-version": version, **attributes})
    return node


def _array(group: h5py.Group, name: str, length: int, dtype: Any, compression: str | None = None) -> Any:
    return _encode(group.create_dataset(name, (length,), dtype, compression=compression), "array", "0.2.0")


def _strings(group: h5py.Group, name: str, length: int) -> Any:
    import h5py

    return _encode(group.create_dataset(name, (length,), h5py.string_dtype()), "string-array", "0.2.0")


def _write_var(file: h5py.File, genes: Sequence[str], variable: NDArray[np.bool_]) -> None:
    var = _encode(file.create_group("var"), "dataframe", "0.2.0", _index="gene_id")
    var.attrs["column-order"] = ["gene_name", "highly_variable"]
    ids = _numbered("ENSG{:0{}d}", range(1, len(genes) + 1), len(genes), least_width=11)
    _strings(var, "gene_id", len(genes))[:] = ids
    _strings(var, "gene_name", len(genes))[:] = list(genes)
    _array(var, "highly_variable", len(genes), np.bool_)[:] = variable
