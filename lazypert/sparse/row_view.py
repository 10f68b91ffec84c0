"""Sparse rows that share arrays, each at its own offset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lazypert._internal.kernels import kernel
from lazypert.sparse.csr import take_rows
from lazypert.sparse.transforms import scale_log1p, total

if TYPE_CHECKING:
    from lazypert.sparse.columns import ColumnSelection

RowLayout = Callable[[NDArray[np.int64]], tuple[NDArray[np.int64], int]]
"""Lays out rows in shared arrays: maps their (n,) lengths to their (n,) offsets and the length of the arrays."""


def contiguous_layout(lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Lay out rows one after another, as in a `CSRBlock`."""
    ends = np.cumsum(lengths)
    return ends - lengths, int(ends[-1]) if len(ends) else 0


@dataclass(frozen=True, slots=True, eq=False)
class RowView:
    """Rows of a sparse matrix at their own offsets in shared arrays, in any order and with gaps.

    Attributes
    ----------
    offsets, lengths
        (n,) int64: row ``i`` is elements ``offsets[i]`` to ``offsets[i] + lengths[i]`` of the arrays.
    indices, data
        Column numbers and values; undefined in the gaps between rows.
    n_cols
        Number of columns of the matrix, or of those that were selected.
    totals
        (n,) float64 sum of each row over all columns where requested, otherwise None.
    """

    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    indices: NDArray[Any]
    data: NDArray[Any]
    n_cols: int
    totals: NDArray[np.float64] | None = None

    def __repr__(self) -> str:
        n_values = int(self.lengths.sum())
        return f"RowView({len(self.offsets):,} x {self.n_cols:,}, {self.data.dtype}, {n_values:,} stored values)"

    @property
    def nbytes(self) -> int:
        """Size of all arrays in bytes."""
        totals_nbytes = 0 if self.totals is None else self.totals.nbytes
        return self.offsets.nbytes + self.lengths.nbytes + self.indices.nbytes + self.data.nbytes + totals_nbytes

    def copy_rows(self, start: int, stop: int) -> RowView:
        """Copy rows ``start`` to ``stop`` into contiguous arrays of their own."""
        lengths = self.lengths[start:stop].copy()
        bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        indices, data = np.empty(int(bounds[-1]), self.indices.dtype), np.empty(int(bounds[-1]), self.data.dtype)
        take_rows(self.offsets, lengths, self.indices, self.data, np.arange(start, stop), bounds, indices, data)
        totals = None if self.totals is None else self.totals[start:stop].copy()
        return RowView(bounds[:-1], lengths, indices, data, self.n_cols, totals)

    @classmethod
    def concat(
        cls,
        views: Sequence[tuple[NDArray[np.integer], RowView]],
        dtype: Any,
        layout: RowLayout,
        allocate: Callable[[int, Any], NDArray[Any]],
    ) -> RowView:
        """Copy several views into one.

        Parameters
        ----------
        views
            At least one, each with the positions of its rows in the result.
        dtype
            Dtype of the values, which must hold those of all views.
        layout, allocate
            As in `RowReader.read_view`.
        """
        n_rows, first = sum(len(positions) for positions, _ in views), views[0][1]
        lengths = np.empty(n_rows, np.int64)
        totals = None if first.totals is None else np.empty(n_rows)
        for positions, view in views:
            lengths[positions] = view.lengths
            if totals is not None:
                totals[positions] = view.totals
        offsets, size = layout(lengths)
        index_dtype = max((view.indices.dtype for _, view in views), key=lambda kind: kind.itemsize)
        indices, data = allocate(size, index_dtype), allocate(size, dtype)
        for positions, view in views:
            rows = np.arange(len(positions))
            take_rows(view.offsets, view.lengths, view.indices, view.data, rows, offsets[positions], indices, data)
        return cls(offsets, lengths, indices, data, first.n_cols, totals)

    def select(self, columns: ColumnSelection, *, totals: bool) -> RowView:
        """Copy the selected columns of the rows, and with `totals` sum each row over all columns."""
        ends = np.empty(len(self.lengths), np.int64)
        sums = np.empty(len(self.lengths), np.float64)
        indices = np.empty(int(self.lengths.sum()) + 1, columns.lookup.dtype)
        data = np.empty(len(indices), self.data.dtype)
        _select_columns(
            self.offsets, self.lengths, self.indices, self.data, columns.lookup, columns.n_columns,
            ends, sums, indices, data,
        )  # fmt: skip
        n = int(ends[-1]) if len(ends) else 0
        offsets = np.concatenate([[0], ends[:-1]]).astype(np.int64)[: len(ends)]
        indices, data = indices[:n].copy(), data[:n].copy()
        return RowView(offsets, ends - offsets, indices, data, columns.n_columns, sums if totals else None)

    def write_dense(self, out: NDArray[np.float32], out_rows: NDArray[np.int64], target_sum: float | None) -> None:
        """Write the rows in dense form into rows `out_rows` of `out`.

        Parameters
        ----------
        target_sum
            Scale each row, by its entry in `totals`, to this sum over all columns, then take ``log1p``.
        """
        assert self.totals is not None
        _write_dense(self.offsets, self.lengths, self.indices, self.data, self.totals, out_rows, target_sum or 0.0, out)


@kernel
def copy_dense_rows(table: Any, source: Any, target: Any) -> None:
    """``table[target] = table[source]``, row by row."""
    for i in range(len(source)):
        for j in range(table.shape[1]):
            table[target[i], j] = table[source[i], j]


@kernel
def _write_dense(
    offsets: Any, lengths: Any, indices: Any, data: Any, totals: Any, out_rows: Any, target_sum: Any, out: Any
) -> None:  # fmt: skip
    width = np.uint64(out.shape[1])
    for i in range(len(offsets)):
        row = out[out_rows[i]]
        row[:] = 0
        for k in range(offsets[i], offsets[i] + lengths[i]):
            col = np.uint64(indices[k])
            if col < width:
                row[col] = data[k]
        if target_sum > 0.0:
            scale_log1p(row, target_sum / totals[i] if totals[i] > 0.0 else 0.0, row)


@kernel
def _select_columns(
    offsets: Any, lengths: Any, indices: Any, data: Any, lookup: Any, n_columns: Any,
    ends: Any, totals: Any, out_indices: Any, out_data: Any,
) -> None:  # fmt: skip
    mask, n_selected = np.uint64(len(lookup) - 1), 0
    for i in range(len(offsets)):
        totals[i] = total(data[offsets[i] : offsets[i] + lengths[i]])
        for k in range(offsets[i], offsets[i] + lengths[i]):
            col = lookup[np.uint64(indices[k]) & mask]
            out_indices[n_selected] = col
            out_data[n_selected] = data[k]
            n_selected += col < n_columns  # overwritten unless selected
        ends[i] = n_selected
