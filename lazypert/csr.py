"""Blocks of compressed sparse rows, and the kernels that work on them without the GIL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lazypert.schema import ValueFacts


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile with numba: no GIL, and cached on disk so that only the first run ever waits."""
    return njit(nogil=True, cache=True)(function)


@dataclass(frozen=True, slots=True)
class CSRBlock:
    """Some rows of a sparse matrix.

    Attributes
    ----------
    indptr
        (n_rows + 1,) int64, from 0.
    indices
        (nnz,) integer column numbers.
    data
        (nnz,) values.
    n_cols
        Columns of the whole matrix.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[Any]
    data: NDArray[Any]
    n_cols: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.indptr) - 1, self.n_cols

    @property
    def nnz(self) -> int:
        """Number of stored values."""
        return len(self.data)

    def to_dense(self, dtype: Any = None, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Scatter into a dense (n_rows, n_cols) array; every other element is zero."""
        if out is None:
            out = np.zeros(self.shape, dtype=dtype or self.data.dtype)
        else:
            out[...] = 0
        _scatter(self.indptr, self.indices, self.data, out)
        return out

    def take_rows(self, rows: NDArray[np.integer]) -> CSRBlock:
        """Rows by number, in the order asked, repeats allowed."""
        rows = np.asarray(rows, dtype=np.int64)
        lengths = np.diff(self.indptr)[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        indices = np.empty(int(indptr[-1]), dtype=self.indices.dtype)
        data = np.empty(int(indptr[-1]), dtype=self.data.dtype)
        _take_rows(self.indptr, self.indices, self.data, rows, indptr, indices, data)
        return CSRBlock(indptr, indices, data, self.n_cols)

    def select_cols(self, new_col: NDArray[np.int32], n_cols: int) -> CSRBlock:
        """Keep and renumber columns: column ``j`` becomes ``new_col[j]``, and goes where that is -1.

        Rows are sorted anew where the renumbering does not keep the order.
        """
        indptr = np.empty_like(self.indptr)
        indices = np.empty(self.nnz, dtype=np.int32)
        data = np.empty_like(self.data)
        _select_cols(self.indptr, self.indices, self.data, new_col, indptr, indices, data)
        nnz = int(indptr[-1])
        return canonical(CSRBlock(indptr, indices[:nnz], data[:nnz], n_cols))


@dataclass(frozen=True, slots=True, eq=False)
class PlacedRows:
    """Some rows of a sparse matrix, each at a place of its own in shared arrays.

    Attributes
    ----------
    starts, lengths
        (n,) int64: values of row ``i`` are ``starts[i]`` to ``starts[i] + lengths[i]``.
    indices, data
        Column numbers and values; undefined where no row is.
    n_cols
        Columns of the whole matrix.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    indices: NDArray[Any]
    data: NDArray[Any]
    n_cols: int

    @classmethod
    def of(cls, block: CSRBlock) -> PlacedRows:
        """Rows of a block, where they are."""
        return cls(block.indptr[:-1], np.diff(block.indptr), block.indices, block.data, block.n_cols)

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take."""
        return self.starts.nbytes + self.lengths.nbytes + self.indices.nbytes + self.data.nbytes

    def rows(self, start: int, stop: int) -> PlacedRows:
        """Copy of rows ``start`` to ``stop`` that lie one after another, which the whole need not outlive."""
        starts, lengths = self.starts[start:stop], self.lengths[start:stop].copy()
        first, last = int(starts[0]), int(starts[-1] + lengths[-1])
        return PlacedRows(
            starts - first, lengths, self.indices[first:last].copy(), self.data[first:last].copy(), self.n_cols
        )


Place = Callable[[NDArray[np.int64]], tuple[NDArray[np.int64], int]]
"""From the (n,) lengths of rows to the (n,) places where they begin, and the length of the whole."""


def one_after_another(lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Place rows as a `CSRBlock` has them."""
    ends = np.cumsum(lengths)
    return ends - lengths, int(ends[-1]) if len(ends) else 0


def canonical(block: CSRBlock) -> CSRBlock:
    """Return the block with sorted rows and summed duplicates; itself when it is so already."""
    if _is_canonical(block.indptr, block.indices):
        return block
    # Duplicates of one-byte counts may add up to more than a byte holds.
    wide = np.int64 if block.data.dtype.kind in "iu" and block.data.itemsize < 8 else block.data.dtype
    indices, data = block.indices.copy(), block.data.astype(wide)
    indptr = block.indptr.copy()
    _sort_rows(indptr, indices, data)
    nnz = _sum_duplicates(indptr, indices, data)
    return CSRBlock(indptr, indices[:nnz], data[:nnz], block.n_cols)


def value_facts(data: NDArray[Any]) -> ValueFacts:
    """Look at every value and say which dtype holds them all exactly."""
    if data.size == 0:
        return ValueFacts()
    if data.dtype.kind in "bui":
        least, most = min(0, int(data.min())), max(0, int(data.max()))
        largest = max(-least, most)
        return ValueFacts(float32_exact=largest <= 2**24, float64_exact=largest <= 2**53, minimum=least, maximum=most)
    integral, float32_exact, low, high, n_nonfinite = _float_facts(data)
    return ValueFacts(
        integral=bool(integral),
        float32_exact=bool(float32_exact),
        minimum=float(low),
        maximum=float(high),
        n_nonfinite=int(n_nonfinite),
    )


def first_bad_index(indices: NDArray[Any], n_cols: int) -> int:
    """Offset of the first column number outside ``[0, n_cols)``, or -1."""
    return int(_first_bad_index(indices, n_cols))


@kernel
def _scatter(indptr: Any, indices: Any, data: Any, out: Any) -> None:
    for row in range(len(indptr) - 1):
        for k in range(indptr[row], indptr[row + 1]):
            out[row, indices[k]] = data[k]


@kernel
def _take_rows(
    indptr: Any, indices: Any, data: Any, rows: Any, out_indptr: Any, out_indices: Any, out_data: Any
) -> None:
    for i in range(len(rows)):
        source, target = indptr[rows[i]], out_indptr[i]
        for k in range(out_indptr[i + 1] - target):
            out_indices[target + k] = indices[source + k]
            out_data[target + k] = data[source + k]


@kernel
def _select_cols(
    indptr: Any, indices: Any, data: Any, new_col: Any, out_indptr: Any, out_indices: Any, out_data: Any
) -> None:
    kept = 0
    out_indptr[0] = 0
    for row in range(len(indptr) - 1):
        for k in range(indptr[row], indptr[row + 1]):
            col = new_col[indices[k]]
            if col >= 0:
                out_indices[kept] = col
                out_data[kept] = data[k]
                kept += 1
        out_indptr[row + 1] = kept


@kernel
def _is_canonical(indptr: Any, indices: Any) -> bool:
    for row in range(len(indptr) - 1):
        cols = indices[indptr[row] : indptr[row + 1]]
        unsorted = 0
        for k in range(1, len(cols)):  # counted, not left at once: this way the loop is vector instructions
            unsorted += cols[k] <= cols[k - 1]
        if unsorted:
            return False
    return True


@kernel
def _sort_rows(indptr: Any, indices: Any, data: Any) -> None:
    for row in range(len(indptr) - 1):
        start, stop = indptr[row], indptr[row + 1]
        # Stable, so that duplicates are summed in the order of the file, as SciPy does.
        order = np.argsort(indices[start:stop], kind="mergesort")
        indices[start:stop] = indices[start:stop][order]
        data[start:stop] = data[start:stop][order]


@kernel
def _sum_duplicates(indptr: Any, indices: Any, data: Any) -> int:
    kept = 0
    start = indptr[0]
    for row in range(len(indptr) - 1):
        stop = indptr[row + 1]
        first = kept
        for k in range(start, stop):
            if kept > first and indices[kept - 1] == indices[k]:
                data[kept - 1] += data[k]
            else:
                indices[kept] = indices[k]
                data[kept] = data[k]
                kept += 1
        indptr[row + 1] = kept
        start = stop
    return kept


@kernel
def _first_bad_index(indices: Any, n_cols: int) -> int:
    for k in range(len(indices)):
        if indices[k] < 0 or indices[k] >= n_cols:
            return k
    return -1


@kernel
def _float_facts(data: Any) -> tuple[bool, bool, float, float, int]:
    integral, float32_exact = True, True
    low, high = 0.0, 0.0
    n_nonfinite = 0
    for k in range(len(data)):
        value = np.float64(data[k])
        if not np.isfinite(value):
            n_nonfinite += 1
            integral = False
            continue
        low, high = min(low, value), max(high, value)
        # Beyond 2^53 neighbouring floats are further apart than integers: such values stay floats.
        if np.floor(value) != value or abs(value) > 9007199254740992.0:
            integral = False
        if np.float64(np.float32(value)) != value:
            float32_exact = False
    return integral, float32_exact, low, high, n_nonfinite
