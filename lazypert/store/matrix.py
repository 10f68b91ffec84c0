"""A sparse matrix of a store, read by rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lazypert.sparse.csr import CSRBlock
from lazypert.sparse.row_view import RowLayout, RowView, contiguous_layout, copy_rows
from lazypert.store import native
from lazypert.store.format import dense_dtype
from lazypert.store.sharded_array import ShardedArray, scatter_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lazypert.sparse.columns import ColumnSelection
from lazypert.store.arrays import _damaged


class Located(NamedTuple):
    """Where some rows of a matrix are.

    Attributes
    ----------
    order
        (n,) which of the rows asked for comes first in the matrix, and so on.
    first, last
        (n,) first element and one past the last of each, in that order.
    lengths
        (n,) elements of each, in the order asked.
    """

    order: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    lengths: NDArray[np.int64]


class Matrix:
    """A sparse matrix of a store, read by rows. Thread-safe and picklable.

    Attributes
    ----------
    name
        ``"X"`` or ``"layers/<name>"``.
    shape
        Cells, genes.
    dtype
        Dtype of the stored values.
    stats
        ``nnz``, ``sum``, ``integral``, ``minimum``, ``maximum``, ``n_nonfinite``, found at conversion.
    """

    def __init__(
        self, name: str, shape: tuple[int, int], parts: dict[str, ShardedArray], stats: dict[str, Any]
    ) -> None:
        self.name, self.shape, self.stats = name, shape, stats
        self.indptr, self.indices, self.data = parts["indptr"], parts["indices"], parts["data"]
        self.dtype = self.data.dtype

    @property
    def dense_dtype(self) -> np.dtype[Any]:
        """Float dtype that shows every value exactly."""
        return dense_dtype(self.dtype, self.stats["maximum"], self.stats["minimum"])

    @property
    def is_counts(self) -> bool:
        """Whether every value is a non-negative integer."""
        return bool(self.stats["integral"] and self.stats["minimum"] >= 0)

    def read(self, start: int, stop: int) -> CSRBlock:
        """Read rows ``start`` to ``stop``: one contiguous read of each array."""
        return self.read_rows(np.arange(start, stop))

    def read_rows(self, rows: NDArray[np.integer]) -> CSRBlock:
        """Read rows in any order, repeats allowed; a chunk that rows share is read and decoded once."""
        view = self._read_view(rows, contiguous_layout, np.empty, self.indices.dtype)
        indptr = np.concatenate([[0], np.cumsum(view.lengths)]).astype(np.int64)
        return CSRBlock(indptr, view.indices, view.data, self.shape[1])

    def read_view(
        self,
        rows: NDArray[np.integer],
        *,
        layout: RowLayout = contiguous_layout,
        allocate: Callable[[int, Any], NDArray[Any]] = np.empty,
    ) -> RowView:
        """Read rows, each decoded to an offset of its own; see `RowReader.read_view`."""
        narrow = np.dtype(np.uint16) if self.shape[1] <= 2**16 else self.indices.dtype
        return self._read_view(rows, layout, allocate, narrow)

    def _read_view(
        self,
        rows: NDArray[np.integer],
        layout: RowLayout,
        allocate: Callable[[int, Any], NDArray[Any]],
        index_dtype: np.dtype[Any],
    ) -> RowView:
        located = self.locate(rows)
        starts, size = layout(located.lengths)
        indices, data = allocate(size, index_dtype), allocate(size, self.dtype)
        self.gather(located, starts, indices, data)
        return RowView(starts, located.lengths, indices, data, self.shape[1])

    def locate(self, rows: NDArray[np.integer]) -> Located:
        """Look up where rows in any order are, repeats allowed."""
        rows = np.asarray(rows, dtype=np.int64)
        order = np.argsort(rows, kind="stable")
        first, last = self._bounds(rows[order])
        lengths = np.empty(len(rows), np.int64)
        lengths[order] = last - first
        return Located(order, first, last, lengths)

    def gather(self, located: Located, starts: NDArray[np.int64], indices: NDArray[Any], data: NDArray[Any]) -> None:
        """Decode rows, each to ``starts[i]`` and on of arrays that may hold others too.

        Of unsigned integers, arrays may be narrower or wider than what is stored.
        """
        order, first, last, _ = located
        places, n = starts[order], len(order)
        # Neighbours that stay neighbours are one range.
        breaks = np.flatnonzero((first[1:] != last[:-1]) | (places[1:] - places[:-1] != (last - first)[:-1])) + 1
        heads, tails = np.append(0, breaks)[:n], np.append(breaks, n)[:n] - 1
        ranges = first[heads], last[tails], places[heads]
        self.indices.gather(*ranges, indices)
        self.data.gather(*ranges, data)

    def read_columns(self, rows: NDArray[np.integer], columns: ColumnSelection, *, totals: bool = False) -> RowView:
        """Read selected columns of rows; see `RowReader.read_columns`."""
        wanted, back = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        if not self._decodes_in_kernels:
            return self.read_view(rows).select(columns, totals=totals)
        first, last = self._bounds(wanted)
        filled = last > first
        ranges = first[filled], last[filled]
        kept = self.indices.select(*ranges, columns)
        starts, lengths = np.zeros((2, len(wanted)), np.int64)
        data, sums = self.data.pick(*ranges, kept, totals=totals)
        starts[filled] = np.concatenate([[0], kept.upto_range])[:-1]
        lengths[filled] = kept.upto_range - starts[filled]
        found = RowView(starts[back], lengths[back], kept.columns, data, columns.n_columns)
        if not totals:
            return found
        row_sums = np.zeros(len(wanted))
        row_sums[filled] = sums
        return replace(found, totals=row_sums[back])

    def read_dense(
        self,
        rows: NDArray[np.integer],
        columns: ColumnSelection,
        *,
        target_sum: float | None = None,
        allocate: Callable[[tuple[int, int], Any], NDArray[Any]] = np.empty,
    ) -> NDArray[np.float32]:
        """Read selected columns of rows as a dense array; see `RowReader.read_dense`."""
        out = allocate((len(rows), columns.n_columns), np.float32)
        self.write_dense(rows, columns, target_sum, out, np.arange(len(rows)))
        return out

    def write_dense(
        self,
        rows: NDArray[np.integer],
        columns: ColumnSelection,
        target_sum: float | None,
        out: NDArray[np.float32],
        out_rows: NDArray[np.int64],
    ) -> None:
        """Write what `read_dense` returns into the rows `out_rows` of `out`."""
        rows = np.asarray(rows, dtype=np.int64)
        order = np.argsort(rows, kind="stable")
        is_new = np.diff(rows[order], prepend=-1) != 0
        heads = order[is_new]
        first, last = self._bounds(rows[heads])
        filled = last > first
        if self._decodes_in_kernels:
            ranges = first[filled], last[filled], out_rows[heads[filled]]
            scatter_rows(self.indices, self.data, *ranges, columns, target_sum or 0.0, out)
        else:
            view = self.read_view(rows[heads[filled]]).select(columns, totals=True)
            view.write_dense(out, out_rows[heads[filled]], target_sum)
        out[out_rows[heads[~filled]]] = 0
        copy_rows(out, out_rows[heads[np.cumsum(is_new) - 1][~is_new]], out_rows[order[~is_new]])

    @property
    def _decodes_in_kernels(self) -> bool:
        """Whether chunks of both arrays can be decoded side by side, by functions that kernels may call."""
        return native.FUNCTIONS is not None and self.indices.grid.chunk == self.data.grid.chunk

    def _bounds(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First element of each of some rows, and one past its last; the rows ascend."""
        if len(rows) and not 0 <= rows[0] <= rows[-1] < self.shape[0]:
            raise IndexError(f"{self.name} has {self.shape[0]:,} rows, got {rows[0]:,} to {rows[-1]:,}.")
        is_new = np.diff(rows, prepend=-1) != 0
        wanted, back = rows[is_new], np.cumsum(is_new) - 1
        breaks = np.flatnonzero(np.diff(wanted) != 1) + 1
        heads, tails = np.append(0, breaks)[: len(wanted)], np.append(breaks, len(wanted))[: len(wanted)]
        # A run of n rows has n + 1 bounds.
        places = heads + np.arange(len(heads))
        bounds = np.empty(len(wanted) + len(heads), dtype=self.indptr.dtype)
        self.indptr.gather(wanted[heads], wanted[tails - 1] + 2, places, bounds)
        at = (np.arange(len(wanted)) + np.repeat(np.arange(len(heads)), tails - heads))[back]
        first, last = bounds[at].astype(np.int64), bounds[at + 1].astype(np.int64)
        # What is decoded goes where these say.
        descends = (last < first).any() or (np.where(is_new[1:], last[:-1], first[:-1]) > first[1:]).any()
        if descends:
            raise _damaged(self.indptr.path, "it descends")
        if len(rows) and not 0 <= first[0] <= last[-1] <= len(self.data):
            raise _damaged(self.indptr.path, f"it points beyond the {len(self.data):,} stored values")
        return first, last
