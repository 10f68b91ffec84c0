"""Matrices of AnnData objects: as they are, selections of their rows and columns, and lazy Dask arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from scipy import sparse

from lazypert.converter import BlockSpec, CSRBlock, RowBlock, first_bad_index
from lazypert_converters._matrices import (
    Matrix,
    blocks,
    read_block,
    scratch_bytes,
    stored_values,
    to_csr,
    widened,
)
from lazypert_converters._row_pointers import blocks_by_nnz, row_pointers
from lazypert_converters._tree import join

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lazypert_converters._tree import Tree

_GAP = 4  # unselected rows between two selected ones, at most, that are read too instead of starting another read
_VALUE_BYTES = 12  # of a value of at most 8 bytes and its column
_MAX_INTEGER = 2**63 - 1


class MatrixSource(Protocol):
    """A matrix that is read by source blocks; see `lazypert.converter.ScreenReader` for the methods."""

    def nnz(self) -> int | None: ...

    def scratch_bytes(self) -> int: ...

    def blocks(self, name: str, max_bytes: int) -> list[BlockSpec]: ...

    def read_block(self, spec: BlockSpec) -> RowBlock: ...


@dataclass(frozen=True, eq=False)
class WholeMatrix:
    """All of a matrix of a tree."""

    tree: Tree
    matrix: Matrix

    def nnz(self) -> int | None:
        """Number of stored values; None for a dense matrix."""
        return stored_values(self.tree, self.matrix)

    def scratch_bytes(self) -> int:
        """Bytes that `read_block` needs in addition to the block."""
        return scratch_bytes(self.tree, self.matrix)

    def blocks(self, name: str, max_bytes: int) -> list[BlockSpec]:
        """Cut the matrix into source blocks."""
        return blocks(self.tree, name, self.matrix, max_bytes)

    def read_block(self, spec: BlockSpec) -> RowBlock:
        """Read and check one source block."""
        return read_block(self.tree, self.matrix, spec)


@dataclass(frozen=True, eq=False)
class SelectedMatrix:
    """Some rows and columns of a matrix of a tree, in any order.

    A block is a range of the selected rows, or of the columns of a CSC matrix.

    Attributes
    ----------
    rows, cols
        (n_selected,) numbers in the matrix; `cols` is None for all.
    """

    tree: Tree
    matrix: Matrix
    rows: NDArray[np.int64]
    cols: NDArray[np.int64] | None

    def nnz(self) -> int | None:
        """None: the selected values would have to be counted."""
        return None

    def scratch_bytes(self) -> int:
        """Bytes that `read_block` needs in addition to the block."""
        return scratch_bytes(self.tree, self.matrix)

    def blocks(self, name: str, max_bytes: int) -> list[BlockSpec]:
        """Cut the selected rows into ranges; reading the gaps between them makes reads several times as large."""
        if self.matrix.layout == "csc":
            return blocks(self.tree, name, self.matrix, max_bytes)
        limit = max(1, max_bytes // _VALUE_BYTES // _GAP)
        blocks(self.tree, name, self.matrix, max_bytes)  # checks the row pointers
        if self.matrix.layout == "dense":
            lengths = np.full(len(self.rows), self.matrix.n_cols)
        else:
            with self.tree.root() as root:
                pointers = root.array(join(self.matrix.where, "indptr")).read()
            lengths = np.diff(pointers.astype(np.int64))[self.rows]
        return blocks_by_nnz(name, row_pointers(lengths), limit)

    def read_block(self, spec: BlockSpec) -> RowBlock:
        """Read one source block, and select from it."""
        if self.matrix.layout == "csc":
            rows = read_block(self.tree, self.matrix, spec).csr.take_rows(self.rows)
            return RowBlock(0, select_columns(rows, self.cols))
        wanted, position = np.unique(self.rows[spec.start : spec.stop], return_inverse=True)
        parts = [select_columns(part, self.cols) for part in self._runs(spec.matrix, wanted)]
        return RowBlock(spec.start, _stacked(parts).take_rows(position.ravel()))

    def _runs(self, name: str, wanted: NDArray[np.int64]) -> Iterator[CSRBlock]:
        """Read ascending rows in runs."""
        starts = np.flatnonzero(np.diff(wanted, prepend=-_GAP - 1) > _GAP)
        for first, stop in zip(starts, [*starts[1:], len(wanted)], strict=True):
            run = wanted[first:stop]
            start, end = int(run[0]), int(run[-1]) + 1
            if self.matrix.layout == "dense":
                spec = BlockSpec(name, start * self.matrix.n_cols, end * self.matrix.n_cols)
            else:
                spec = BlockSpec(name, start, end)
            yield read_block(self.tree, self.matrix, spec).csr.take_rows(run - start)


@dataclass(frozen=True, eq=False)
class DaskMatrix:
    """A Dask array of SciPy matrices or NumPy arrays. It is computed twice: to count its values, and to read them.

    Attributes
    ----------
    tree, where
        What errors name: the object, and the path inside it.
    """

    tree: Tree
    where: str
    array: Any

    @property
    def _is_by_columns(self) -> bool:
        return bool(self.array.numblocks[0] == 1 and self.array.numblocks[1] > 1)

    @cached_property
    def _counts(self) -> tuple[NDArray[np.int64], int]:
        """(n,) values in each row, or column if chunks are columns; and the bytes of the largest chunk."""
        axis = 1 if self._is_by_columns else 0
        bounds = np.cumsum([0, *self.array.chunks[axis]])
        counts, largest = np.zeros(self.array.shape[axis], np.int64), 0
        for i, j in np.ndindex(*self.array.numblocks):
            chunk = self._computed(i, j)
            k = (i, j)[axis]
            n_values = np.diff(_as_csr(chunk, axis).indptr)
            counts[bounds[k] : bounds[k + 1]] += n_values
            size = chunk.nbytes if isinstance(chunk, np.ndarray) else chunk.data.nbytes + chunk.indices.nbytes
            largest = max(largest, size)
        return counts, largest

    def nnz(self) -> int | None:
        """Number of values that are not zero, or that sparse chunks store."""
        return int(self._counts[0].sum())

    def scratch_bytes(self) -> int:
        """Bytes of the chunks that a block may touch in addition to the block."""
        return 3 * self._counts[1]

    def blocks(self, name: str, max_bytes: int) -> list[BlockSpec]:
        """Ranges of rows, or of columns if chunks are columns."""
        return blocks_by_nnz(name, row_pointers(self._counts[0]), max(1, max_bytes // _VALUE_BYTES))

    def read_block(self, spec: BlockSpec) -> RowBlock:
        """Compute a range."""
        if not self._is_by_columns:
            return RowBlock(spec.start, _block(self._range(0, spec), 0, self.array.shape[1]))
        return RowBlock(0, _block(self._range(1, spec), spec.start, self.array.shape[1]))

    def _computed(self, i: int, j: int) -> Any:
        """Compute a chunk and check it: AnnData's reader checks neither column numbers nor integers."""
        chunk: Any = self.array.blocks[i, j].compute(scheduler="synchronous")
        shape = (self.array.chunks[0][i], self.array.chunks[1][j])
        is_sparse = bool(sparse.issparse(chunk))
        is_known = chunk.format in ("csr", "csc") if is_sparse else isinstance(chunk, np.ndarray)
        if not is_known or chunk.shape != shape:
            got = f"has a chunk of type {type(chunk).__name__} and shape {getattr(chunk, 'shape', None)}"
            raise self.tree.fault(self.where, got, f"a NumPy array, or a CSR or CSC matrix, of shape {shape}")
        if is_sparse:
            n_minor = shape[1] if chunk.format == "csr" else shape[0]
            if (bad := first_bad_index(chunk.indices, n_minor)) >= 0:
                got = f"has a chunk with the index {int(chunk.indices[bad])}"
                raise self.tree.fault(self.where, got, f"numbers from 0 to {n_minor - 1}")
        values = chunk if isinstance(chunk, np.ndarray) else chunk.data
        if values.dtype == np.uint64 and values.size and int(values.max()) > _MAX_INTEGER:
            raise self.tree.fault(self.where, f"holds {int(values.max())}", f"integers of at most {_MAX_INTEGER}")
        return chunk

    def _range(self, axis: int, spec: BlockSpec) -> Any:
        """Rows or columns `start` to `stop` as a CSR matrix, computed one chunk at a time."""
        bounds = np.cumsum([0, *self.array.chunks[axis]])
        first = int(np.searchsorted(bounds, spec.start, side="right")) - 1
        stop = int(np.searchsorted(bounds, spec.stop, side="left"))
        parts = []
        for k in range(first, stop):
            inside = slice(max(0, spec.start - bounds[k]), spec.stop - bounds[k])
            pieces = [
                _as_csr(self._computed(*((k, other) if axis == 0 else (other, k))), 0)
                for other in range(self.array.numblocks[1 - axis])
            ]
            band = sparse.hstack(pieces, format="csr") if axis == 0 else sparse.vstack(pieces, format="csr")
            parts.append(band[inside] if axis == 0 else band[:, inside])
        return sparse.vstack(parts, format="csr") if axis == 0 else sparse.hstack(parts, format="csr")


def select_columns(block: CSRBlock, cols: NDArray[np.int64] | None) -> CSRBlock:
    """Select columns by number, in any order and with repeats; None for all."""
    if cols is None:
        return block
    if len(np.unique(cols)) == len(cols):
        new_col = np.full(block.n_cols, -1, dtype=np.int32)
        new_col[cols] = np.arange(len(cols), dtype=np.int32)
        return block.select_cols(new_col, len(cols))
    matrix = sparse.csr_array((block.data, block.indices, block.indptr), shape=block.shape)[:, cols]
    return _block(matrix, 0, len(cols))


def _block(matrix: Any, first_col: int, n_cols: int) -> CSRBlock:
    indices = (matrix.indices + first_col).astype(np.int32 if n_cols < 2**31 else np.int64)
    return CSRBlock(matrix.indptr.astype(np.int64), indices, widened(matrix.data), n_cols)


def _stacked(blocks: list[CSRBlock]) -> CSRBlock:
    if len(blocks) == 1:
        return blocks[0]
    lengths = np.concatenate([np.diff(block.indptr) for block in blocks])
    indices, data = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("indices", "data"))
    return CSRBlock(row_pointers(lengths), indices, data, blocks[0].n_cols)


def _as_csr(chunk: Any, axis: int) -> Any:
    """A chunk as a CSR matrix, or as a CSC matrix if `axis` is 1; zeros of NumPy arrays are left out."""
    if isinstance(chunk, np.ndarray):
        rows = to_csr(widened(chunk if axis == 0 else chunk.T), 0, chunk.shape[1 - axis])
        if axis == 0:
            return sparse.csr_array((rows.data, rows.indices, rows.indptr), shape=chunk.shape)
        return sparse.csc_array((rows.data, rows.indices, rows.indptr), shape=chunk.shape)
    return chunk.tocsr() if axis == 0 else chunk.tocsc()
