"""Blocks of compressed sparse rows, and the kernels that work on them without the GIL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lazypert.schema import ValueFacts


def kernel(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile with numba: no GIL, and cached on disk so that only the first run ever waits."""
    return njit(nogil=True, cache=True, **options)(function)


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
        _take_rows(self.indptr, lengths, self.indices, self.data, rows, indptr, indices, data)
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
class ColumnTable:
    """Which columns are wanted, and where to.

    Attributes
    ----------
    lookup
        Unsigned output column of each column; `n_columns` for those left out. As long as a power of
        two: what a column number has beyond is cut off, so that no content of a store leads elsewhere,
        and none needs to be asked about.
    keeps
        uint8, as long: 1 for each column that is wanted.
    n_columns
        Columns wanted.
    """

    lookup: NDArray[Any]
    keeps: NDArray[np.uint8]
    n_columns: int

    @classmethod
    def of(cls, wanted: NDArray[np.integer], n_cols: int) -> ColumnTable:
        """Table of ``wanted[0]`` becoming column 0, and so on, of `n_cols` columns."""
        kind = np.uint16 if len(wanted) < 2**16 else np.uint32
        lookup: NDArray[Any] = np.full(1 << max(0, n_cols - 1).bit_length(), len(wanted), kind)
        lookup[wanted] = np.arange(len(wanted))
        return cls(lookup, (lookup < len(wanted)).astype(np.uint8), len(wanted))

    def through(self, column: NDArray[np.integer]) -> ColumnTable:
        """Table of another matrix whose columns are these: its column ``j`` is `column[j]`, or none for -1."""
        lookup = np.full(1 << max(0, len(column) - 1).bit_length(), self.n_columns, self.lookup.dtype)
        lookup[: len(column)] = np.where(column >= 0, self.lookup[column], self.n_columns)
        return ColumnTable(lookup, (lookup < self.n_columns).astype(np.uint8), self.n_columns)


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
        Columns of the whole matrix, or of those that were wanted.
    totals
        (n,) float64 sum of each row over all columns, where that was asked for; else None.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    indices: NDArray[Any]
    data: NDArray[Any]
    n_cols: int
    totals: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, block: CSRBlock) -> PlacedRows:
        """Rows of a block, where they are."""
        return cls(block.indptr[:-1], np.diff(block.indptr), block.indices, block.data, block.n_cols)

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take."""
        of_totals = 0 if self.totals is None else self.totals.nbytes
        return self.starts.nbytes + self.lengths.nbytes + self.indices.nbytes + self.data.nbytes + of_totals

    def rows(self, start: int, stop: int) -> PlacedRows:
        """Copy of rows ``start`` to ``stop``, one after another, which the whole need not outlive."""
        lengths = self.lengths[start:stop].copy()
        bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        indices, data = np.empty(int(bounds[-1]), self.indices.dtype), np.empty(int(bounds[-1]), self.data.dtype)
        _take_rows(self.starts, lengths, self.indices, self.data, np.arange(start, stop), bounds, indices, data)
        totals = None if self.totals is None else self.totals[start:stop].copy()
        return PlacedRows(bounds[:-1], lengths, indices, data, self.n_cols, totals)

    @classmethod
    def joined(
        cls,
        parts: Sequence[tuple[NDArray[np.integer], PlacedRows]],
        dtype: Any,
        place: Place,
        empty: Callable[[int, Any], NDArray[Any]],
    ) -> PlacedRows:
        """One of several: of each its rows, and which rows of the whole they are.

        Parameters
        ----------
        dtype
            Of the values, one that holds all of theirs.
        place, empty
            Says where each row goes, and makes the arrays.
        """
        n_rows, like = sum(len(at) for at, _ in parts), parts[0][1]
        lengths = np.empty(n_rows, np.int64)
        totals = None if like.totals is None else np.empty(n_rows)
        for at, part in parts:
            lengths[at] = part.lengths
            if totals is not None:
                totals[at] = part.totals
        starts, size = place(lengths)
        widest = max((part.indices.dtype for _, part in parts), key=lambda kind: kind.itemsize)
        indices, data = empty(size, widest), empty(size, dtype)
        for at, part in parts:
            every = np.arange(len(at))
            _take_rows(part.starts, part.lengths, part.indices, part.data, every, starts[at], indices, data)
        return cls(starts, lengths, indices, data, like.n_cols, totals)

    def select(self, columns: ColumnTable, *, totals: bool) -> PlacedRows:
        """The wanted columns of the rows, and with `totals` their sums over all."""
        ends = np.empty(len(self.lengths), np.int64)
        sums = np.empty(len(self.lengths), np.float64)
        indices = np.empty(int(self.lengths.sum()) + 1, columns.lookup.dtype)
        data = np.empty(len(indices), self.data.dtype)
        _select_placed(
            self.starts, self.lengths, self.indices, self.data, columns.lookup, columns.n_columns,
            ends, sums, indices, data,
        )  # fmt: skip
        n = int(ends[-1]) if len(ends) else 0
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)[: len(ends)]
        found = indices[:n].copy(), data[:n].copy()
        return PlacedRows(starts, ends - starts, *found, columns.n_columns, sums if totals else None)

    def fill(self, out: NDArray[np.float32], places: NDArray[np.int64], target_sum: float | None) -> None:
        """Write the rows dense into the rows `places` of `out`, scaled to `target_sum` and ``log1p`` if given."""
        assert self.totals is not None
        _fill(self.starts, self.lengths, self.indices, self.data, self.totals, places, target_sum or 0.0, out)


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


@partial(kernel, fastmath={"reassoc"})  # in any order, so that the loop is vector instructions
def total(values: Any) -> float:
    """Sum of values, float64: exact for counts."""
    found = 0.0
    for k in range(len(values)):
        found += values[k]
    return found


@kernel
def scale_log1p(values: Any, scale: Any, out: Any) -> None:
    """``log1p(values * scale)`` into `out`, which may be `values`."""
    known = np.empty(32, np.float32)  # most counts are small: their logarithms are taken once
    for count in range(len(known)):
        known[count] = np.log1p(count * scale)
    for k in range(len(values)):
        value = values[k]
        small = np.int64(value)
        out[k] = known[small] if 0 <= small < len(known) and small == value else np.log1p(value * scale)


def first_bad_index(indices: NDArray[Any], n_cols: int) -> int:
    """Offset of the first column number outside ``[0, n_cols)``, or -1."""
    return int(_first_bad_index(indices, n_cols))


@kernel
def _scatter(indptr: Any, indices: Any, data: Any, out: Any) -> None:
    width = np.uint64(out.shape[1])
    for row in range(len(indptr) - 1):
        for k in range(indptr[row], indptr[row + 1]):
            col = np.uint64(indices[k])
            if col < width:  # keeps a store of wrong content from writing elsewhere
                out[row, col] = data[k]


@kernel
def _take_rows(
    starts: Any, lengths: Any, indices: Any, data: Any, rows: Any, out_starts: Any, out_indices: Any, out_data: Any
) -> None:  # fmt: skip
    for i in range(len(rows)):
        source, target = starts[rows[i]], out_starts[i]
        for k in range(lengths[i]):
            out_indices[target + k] = indices[source + k]
            out_data[target + k] = data[source + k]


@kernel
def copy_rows(table: Any, source: Any, target: Any) -> None:
    """``table[target] = table[source]``, row by row."""
    for i in range(len(source)):
        for j in range(table.shape[1]):
            table[target[i], j] = table[source[i], j]


@kernel
def _fill(
    starts: Any, lengths: Any, indices: Any, data: Any, totals: Any, places: Any, target_sum: Any, out: Any
) -> None:  # fmt: skip
    width = np.uint64(out.shape[1])
    for i in range(len(starts)):
        row = out[places[i]]
        row[:] = 0
        for k in range(starts[i], starts[i] + lengths[i]):
            col = np.uint64(indices[k])
            if col < width:
                row[col] = data[k]
        if target_sum > 0.0:
            scale_log1p(row, target_sum / totals[i] if totals[i] > 0.0 else 0.0, row)


@kernel
def _select_placed(
    starts: Any, lengths: Any, indices: Any, data: Any, lookup: Any, n_columns: Any,
    ends: Any, totals: Any, out_indices: Any, out_data: Any,
) -> None:  # fmt: skip
    mask, kept = np.uint64(len(lookup) - 1), 0
    for i in range(len(starts)):
        totals[i] = total(data[starts[i] : starts[i] + lengths[i]])
        for k in range(starts[i], starts[i] + lengths[i]):
            col = lookup[np.uint64(indices[k]) & mask]
            out_indices[kept] = col
            out_data[kept] = data[k]
            kept += col < n_columns  # else the next one takes its place
        ends[i] = kept


@kernel
def _select_cols(
    indptr: Any, indices: Any, data: Any, new_col: Any, out_indptr: Any, out_indices: Any, out_data: Any
) -> None:
    kept = 0
    out_indptr[0] = 0
    for row in range(len(indptr) - 1):
        for k in range(indptr[row], indptr[row + 1]):
            old = np.uint64(indices[k])
            col = new_col[old] if old < np.uint64(len(new_col)) else -1
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
