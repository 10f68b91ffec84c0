"""Writing an H5AD file block by block."""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.errors import StoreExistsError, StoreNotFoundError
from lazypert.simulate.constants import numbered_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import h5py
    from numpy.typing import NDArray

WRITES_LOCALLY = "Screens are written to local files: write it there and copy it."

CHUNK = 131_072  # elements per HDF5 chunk of X: 512 KiB, which fits into HDF5's chunk cache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """Rows to write: a CSR matrix, and one value per row for each obs column."""

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    data: NDArray[np.float32]
    obs: dict[str, NDArray[Any]]

    @property
    def n_cells(self) -> int:
        """Number of rows."""
        return len(self.indptr) - 1


@contextlib.contextmanager
def open_atomic(path: Path, *, overwrite: bool) -> Iterator[h5py.File]:
    """Open a temporary HDF5 file that becomes `path` once it is complete, and is deleted after an error."""
    import h5py

    if path.exists() and not overwrite:
        raise StoreExistsError(
            f"path: got {str(path)!r}, which already exists. Choose another name, or pass overwrite=True."
        )
    if not path.parent.is_dir():
        raise StoreNotFoundError(
            f"path: got {str(path)!r}, but the folder {str(path.parent)!r} does not exist. Create it first."
        )
    partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:12]}")
    try:
        # The cache holds the last, incomplete chunk of each array, so that each chunk is compressed only once.
        with h5py.File(partial, "x", rdcc_nbytes=4 * 1024**2) as file:
            yield file
        # The bytes must be on disk before the file gets its final name.
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class ScreenWriter:
    """Writes the groups and categories of an H5AD file first, then its rows block by block.

    The layout is that of AnnData: https://anndata.readthedocs.io/en/stable/fileformat-prose.html
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
        encode(file, "anndata", "0.1.0")
        for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
            encode(file.create_group(name), "dict", "0.1.0")
        self.n_rows = self.nnz = 0
        self._matrix = encode(file.create_group("X"), "csr_matrix", "0.1.0", shape=np.array(shape))
        for name, kind in (("data", "float32"), ("indices", "int32")):
            self._matrix.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(CHUNK,), compression=compression)
        self._matrix.create_dataset("indptr", (shape[0] + 1,), index_type)
        obs = encode(file.create_group("obs"), "dataframe", "0.2.0", _index="_index")
        obs.attrs["column-order"] = [*categories, *numbers]
        self._index = _strings(obs, "_index", shape[0])
        self._columns = {name: _array(obs, name, shape[0], np.int32, compression) for name in numbers}
        for name, labels in categories.items():
            group = encode(obs.create_group(name), "categorical", "0.2.0", ordered=False)
            _strings(group, "categories", len(labels))[:] = list(labels)
            dtype = np.min_scalar_type(-len(labels))
            self._columns[name] = _array(group, "codes", shape[0], dtype, compression)

    def append(self, block: Block, names: Sequence[str]) -> None:
        """Write the next rows."""
        first, last = self.n_rows, self.n_rows + block.n_cells
        end = self.nnz + len(block.data)
        indptr = self._matrix["indptr"]
        assert end <= np.iinfo(indptr.dtype).max, "more nonzeros than indptr can count"
        for name, values in (("data", block.data), ("indices", block.indices)):
            self._matrix[name].resize((end,))
            self._matrix[name][self.nnz : end] = values
        indptr[first + 1 : last + 1] = block.indptr[1:] + self.nnz
        self._index[first:last] = list(names)
        for name, column in self._columns.items():
            column[first:last] = block.obs[name]
        self.n_rows, self.nnz = last, end


def encode(node: Any, kind: str, version: str, **attributes: Any) -> Any:
    """Mark an HDF5 group or dataset with AnnData's encoding attributes, and return it."""
    node.attrs.update({"encoding-type": kind, "encoding-version": version, **attributes})
    return node


def _array(group: h5py.Group, name: str, length: int, dtype: Any, compression: str | None = None) -> Any:
    return encode(group.create_dataset(name, (length,), dtype, compression=compression), "array", "0.2.0")


def _strings(group: h5py.Group, name: str, length: int) -> Any:
    import h5py

    return encode(group.create_dataset(name, (length,), h5py.string_dtype()), "string-array", "0.2.0")


def write_var(file: h5py.File, genes: Sequence[str], highly_variable: NDArray[np.bool_]) -> None:
    """Write the var table: gene identifiers, gene names, and which genes are highly variable."""
    var = encode(file.create_group("var"), "dataframe", "0.2.0", _index="gene_id")
    var.attrs["column-order"] = ["gene_name", "highly_variable"]
    ids = numbered_names("ENSG{:0{}d}", range(1, len(genes) + 1), len(genes), min_width=11)
    _strings(var, "gene_id", len(genes))[:] = ids
    _strings(var, "gene_name", len(genes))[:] = list(genes)
    _array(var, "highly_variable", len(genes), np.bool_)[:] = highly_variable
