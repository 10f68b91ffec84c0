"""Sparse rows that share arrays, each at an offset of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lazypert._internal.kernels import kernel
from lazypert.sparse.csr import CSRBlock, _take_rows
from lazypert.sparse.transforms import scale_log1p, total

if TYPE_CHECKING:
    from lazypert.sparse.columns import ColumnSelection


@dataclass(frozen=True, slots=True, eq=False)
class RowView:
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
    def of(cls, block: CSRBlock) -> RowView:
        """Rows of a block, where they are."""
        return cls(block.indptr[:-1], np.diff(block.indptr), block.indices, block.data, block.n_cols)

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take."""
        of_totals = 0 if self.totals is None else self.totals.nbytes
        return self.starts.nbytes + self.lengths.nbytes + self.indices.nbytes + self.data.nbytes + of_totals

    def rows(self, start: int, stop: int) -> RowView:
        """Copy of rows ``start`` to ``stop``, one after another, which the whole need not outlive."""
        lengths = self.lengths[start:stop].copy()
        bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        indices, data = np.empty(int(bounds[-1]), self.indices.dtype), np.empty(int(bounds[-1]), self.data.dtype)
        _take_rows(self.starts, lengths, self.indices, self.data, np.arange(start, stop), bounds, indices, data)
        totals = None if self.totals is None else self.totals[start:stop].copy()
        return RowView(bounds[:-1], lengths, indices, data, self.n_cols, totals)

    @classmethod
    def concat(
        cls,
        parts: Sequence[tuple[NDArray[np.integer], RowView]],
        dtype: Any,
        place: RowLayout,
        empty: Callable[[int, Any], NDArray[Any]],
    ) -> RowView:
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

    def select(self, columns: ColumnSelection, *, totals: bool) -> RowView:
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
        return RowView(starts, ends - starts, *found, columns.n_columns, sums if totals else None)

    def write_dense(self, out: NDArray[np.float32], places: NDArray[np.int64], target_sum: float | None) -> None:
        """Write the rows dense into the rows `places` of `out`, scaled to `target_sum` and ``log1p`` if given."""
        assert self.totals is not None
        _fill(self.starts, self.lengths, self.indices, self.data, self.totals, places, target_sum or 0.0, out)


RowLayout = Callable[[NDArray[np.int64]], tuple[NDArray[np.int64], int]]
"""From the (n,) lengths of rows to the (n,) places where they begin, and the length of the whole."""


def contiguous_layout(lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Place rows as a `CSRBlock` has them."""
    ends = np.cumsum(lengths)
    return ends - lengths, int(ends[-1]) if len(ends) else 0


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
