"""Blocks of compressed sparse rows (CSR), and kernels that process them without the GIL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.kernels import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class CSRBlock:
    """Consecutive rows of a sparse matrix, or a copy of any rows.

    Attributes
    ----------
    indptr
        (n_rows + 1,) int64 bounds of the rows, starting at 0.
    indices
        (nnz,) integer column numbers.
    data
        (nnz,) values.
    n_cols
        Number of columns of the matrix.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[Any]
    data: NDArray[Any]
    n_cols: int

    def __repr__(self) -> str:
        n_rows, n_cols = self.shape
        return f"CSRBlock({n_rows:,} x {n_cols:,}, {self.data.dtype}, {self.nnz:,} stored values)"

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        return len(self.indptr) - 1, self.n_cols

    @property
    def nnz(self) -> int:
        """Number of stored values."""
        return len(self.data)

    def to_dense(self, dtype: Any = None, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Scatter the values into a dense (n_rows, n_cols) array of zeros, new or `out`."""
        if out is None:
            out = np.zeros(self.shape, dtype=dtype or self.data.dtype)
        else:
            out[...] = 0
        _scatter(self.indptr, self.indices, self.data, out)
        return out

    def take_rows(self, rows: NDArray[np.integer]) -> CSRBlock:
        """Copy rows by number, in any order, repeats allowed."""
        rows = np.asarray(rows, dtype=np.int64)
        lengths = np.diff(self.indptr)[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        indices = np.empty(int(indptr[-1]), dtype=self.indices.dtype)
        data = np.empty(int(indptr[-1]), dtype=self.data.dtype)
        take_rows(self.indptr, lengths, self.indices, self.data, rows, indptr, indices, data)
        return CSRBlock(indptr, indices, data, self.n_cols)

    def select_cols(self, new_col: NDArray[np.int32], n_cols: int) -> CSRBlock:
        """Select and renumber columns.

        Parameters
        ----------
        new_col
            (n_cols of this block,) new number of each column, -1 to drop it. Columns with the same number
            are summed.
        n_cols
            Number of columns of the result.
        """
        indptr = np.empty_like(self.indptr)
        indices = np.empty(self.nnz, dtype=np.int32)
        data = np.empty_like(self.data)
        _select_cols(self.indptr, self.indices, self.data, new_col, indptr, indices, data)
        nnz = int(indptr[-1])
        return canonical(CSRBlock(indptr, indices[:nnz], data[:nnz], n_cols))


def canonical(block: CSRBlock) -> CSRBlock:
    """Return the block with sorted rows and summed duplicates; the block itself if nothing changes."""
    if _is_canonical(block.indptr, block.indices):
        return block
    # Sums of duplicates may exceed what a narrow dtype holds.
    wide_dtype = np.int64 if block.data.dtype.kind in "iu" and block.data.itemsize < 8 else block.data.dtype
    indices, data = block.indices.copy(), block.data.astype(wide_dtype)
    indptr = block.indptr.copy()
    _sort_rows(indptr, indices, data)
    nnz = _sum_duplicates(indptr, indices, data)
    return CSRBlock(indptr, indices[:nnz], data[:nnz], block.n_cols)


def first_bad_index(indices: NDArray[Any], n_cols: int) -> int:
    """Offset of the first column number outside ``[0, n_cols)``, or -1."""
    return int(_first_bad_index(indices, n_cols))


@kernel
def _scatter(indptr: Any, indices: Any, data: Any, out: Any) -> None:
    width = np.uint64(out.shape[1])
    for row in range(len(indptr) - 1):
        for k in range(indptr[row], indptr[row + 1]):
            col = np.uint64(indices[k])
            if col < width:  # a damaged store cannot cause writes out of bounds
                out[row, col] = data[k]


@kernel
def take_rows(
    offsets: Any, lengths: Any, indices: Any, data: Any, rows: Any, out_offsets: Any, out_indices: Any, out_data: Any
) -> None:  # fmt: skip
    """Copy ``lengths[i]`` values of row ``rows[i]``, starting at ``offsets[rows[i]]``, to ``out_offsets[i]``."""
    for i in range(len(rows)):
        source, target = offsets[rows[i]], out_offsets[i]
        for k in range(lengths[i]):
            out_indices[target + k] = indices[source + k]
            out_data[target + k] = data[source + k]


@kernel
def _select_cols(
    indptr: Any, indices: Any, data: Any, new_col: Any, out_indptr: Any, out_indices: Any, out_data: Any
) -> None:
    n = 0
    out_indptr[0] = 0
    for row in range(len(indptr) - 1):
        for k in range(indptr[row], indptr[row + 1]):
            old = np.uint64(indices[k])
            col = new_col[old] if old < np.uint64(len(new_col)) else -1
            if col >= 0:
                out_indices[n] = col
                out_data[n] = data[k]
                n += 1
        out_indptr[row + 1] = n


@kernel
def _is_canonical(indptr: Any, indices: Any) -> bool:
    for row in range(len(indptr) - 1):
        cols = indices[indptr[row] : indptr[row + 1]]
        unsorted = 0
        for k in range(1, len(cols)):  # counts all instead of stopping early, so that the loop is vectorised
            unsorted += cols[k] <= cols[k - 1]
        if unsorted:
            return False
    return True


@kernel
def _sort_rows(indptr: Any, indices: Any, data: Any) -> None:
    for row in range(len(indptr) - 1):
        start, stop = indptr[row], indptr[row + 1]
        # Stable, so that duplicates are summed in the order of the file, as in SciPy.
        order = np.argsort(indices[start:stop], kind="mergesort")
        indices[start:stop] = indices[start:stop][order]
        data[start:stop] = data[start:stop][order]


@kernel
def _sum_duplicates(indptr: Any, indices: Any, data: Any) -> int:
    n = 0
    start = indptr[0]
    for row in range(len(indptr) - 1):
        stop = indptr[row + 1]
        first = n
        for k in range(start, stop):
            if n > first and indices[n - 1] == indices[k]:
                data[n - 1] += data[k]
            else:
                indices[n] = indices[k]
                data[n] = data[k]
                n += 1
        indptr[row + 1] = n
        start = stop
    return n


@kernel
def _first_bad_index(indices: Any, n_cols: int) -> int:
    for k in range(len(indices)):
        if indices[k] < 0 or indices[k] >= n_cols:
            return k
    return -1
