"""Sparse matrices of a store, read by rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lazypert.sparse.csr import CSRBlock
from lazypert.sparse.row_view import RowLayout, RowView, contiguous_layout, copy_dense_rows
from lazypert.store import native
from lazypert.store.chunk_kernels import scatter_dense
from lazypert.store.damage import store_damaged
from lazypert.store.format import dense_dtype
from lazypert.store.sum_kernels import add_chunks, add_view

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lazypert.sparse.columns import ColumnSelection
    from lazypert.store.encoded_chunks import ChunkDamage, EncodedChunks
    from lazypert.store.sharded_array import ShardedArray
    from lazypert.store.sum_kernels import RowSums

    BothChunks = tuple[EncodedChunks, EncodedChunks]
    BothArrays = tuple[NDArray[Any], NDArray[Any]]
    BothDamages = tuple[ChunkDamage, ChunkDamage]


RESIDENT_ROWS = 1 << 20
"""A matrix of at most this many rows keeps the bounds of all of them in memory, up to 8 MiB, once it is read."""


class RowBounds(NamedTuple):
    """Where requested rows lie in the indices and data of a matrix.

    Attributes
    ----------
    sort_order
        (n,) position of each row among the requested ones, in the order of the matrix.
    starts, stops
        (n,) first element of each row, and one past its last, in the order of the matrix.
    lengths
        (n,) number of elements of each row, in the requested order.
    """

    sort_order: NDArray[np.int64]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    lengths: NDArray[np.int64]


class Matrix:
    """A sparse matrix of a store, read by rows; a `RowReader`. Thread-safe and picklable.

    Attributes
    ----------
    name
        ``"X"``, ``"layers/<name>"`` or ``"obsm/<name>"``.
    shape
        Numbers of cells and columns.
    dtype
        Dtype of the stored values.
    stats
        ``nnz``, ``sum``, ``integral``, ``minimum``, ``maximum``, ``n_nonfinite``, collected during conversion.
    """

    def __init__(
        self, name: str, shape: tuple[int, int], arrays: dict[str, ShardedArray], stats: dict[str, Any]
    ) -> None:
        self.name, self.shape, self.stats = name, shape, stats
        self.indptr, self.indices, self.data = arrays["indptr"], arrays["indices"], arrays["data"]
        self.dtype = self.data.dtype

    def __repr__(self) -> str:
        n_rows, n_cols = self.shape
        return f"Matrix({self.name!r}, {n_rows:,} x {n_cols:,}, {self.dtype}, {len(self.data):,} stored values)"

    @property
    def dense_dtype(self) -> np.dtype[Any]:
        """Float dtype that represents every value exactly."""
        return dense_dtype(self.dtype, self.stats["maximum"], self.stats["minimum"])

    @property
    def is_counts(self) -> bool:
        """Whether every value is a non-negative integer."""
        return bool(self.stats["integral"] and self.stats["minimum"] >= 0)

    def read(self, start: int, stop: int) -> CSRBlock:
        """Read rows ``start`` to ``stop``, with one contiguous read per array."""
        return self.read_rows(np.arange(start, stop))

    def row_lengths(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """(n,) number of stored values of rows; see `RowReader.row_lengths`."""
        return self.locate(rows).lengths

    def read_rows(self, rows: NDArray[np.integer]) -> CSRBlock:
        """Read rows in any order, repeats allowed; a chunk that rows share is decoded once.

        Raises
        ------
        IndexError
            If a row is outside the matrix.
        StoreDamagedError
            If a file is missing or damaged.
        """
        view = self._read_view(rows, contiguous_layout, np.empty, self.indptr.dtype)
        indptr = np.concatenate([[0], np.cumsum(view.lengths)]).astype(np.int64)
        return CSRBlock(indptr, view.indices, view.data, self.shape[1])

    def read_view(
        self,
        rows: NDArray[np.integer],
        *,
        layout: RowLayout = contiguous_layout,
        allocate: Callable[[int, Any], NDArray[Any]] = np.empty,
    ) -> RowView:
        """Read rows, each to its own offset; see `RowReader.read_view`."""
        narrow = np.dtype(np.uint16) if self.shape[1] <= 2**16 else self.indptr.dtype
        return self._read_view(rows, layout, allocate, narrow)

    def _read_view(
        self,
        rows: NDArray[np.integer],
        layout: RowLayout,
        allocate: Callable[[int, Any], NDArray[Any]],
        index_dtype: np.dtype[Any],
    ) -> RowView:
        bounds = self.locate(rows)
        offsets, size = layout(bounds.lengths)
        indices, data = allocate(size, index_dtype), allocate(size, self.dtype)
        self.gather(bounds, offsets, indices, data)
        return RowView(offsets, bounds.lengths, indices, data, self.shape[1])

    def locate(self, rows: NDArray[np.integer]) -> RowBounds:
        """Look up where rows lie, in any order, repeats allowed."""
        rows = np.asarray(rows, dtype=np.int64)
        sort_order = np.argsort(rows, kind="stable")
        starts, stops = self._bounds(rows[sort_order])
        lengths = np.empty(len(rows), np.int64)
        lengths[sort_order] = stops - starts
        return RowBounds(sort_order, starts, stops, lengths)

    def gather(
        self, bounds: RowBounds, row_offsets: NDArray[np.int64], indices: NDArray[Any], data: NDArray[Any]
    ) -> None:
        """Read located rows, each to its offset in arrays that may hold other rows too.

        Parameters
        ----------
        row_offsets
            (n,) offset of each row, in the requested order.
        indices, data
            Receive the rows; unsigned integers may be narrower or wider than the stored ones.
        """
        sort_order, starts, stops, _ = bounds
        offsets, n = row_offsets[sort_order], len(sort_order)
        # Rows that are neighbours both in the store and in the arrays form one range.
        breaks = np.flatnonzero((starts[1:] != stops[:-1]) | (np.diff(offsets) != (stops - starts)[:-1])) + 1
        heads, tails = np.append(0, breaks)[:n], np.append(breaks, n)[:n] - 1
        ranges = starts[heads], stops[tails], offsets[heads]
        self._begin_both(*ranges[:2])
        self.indices.gather(*ranges, indices)
        self.data.gather(*ranges, data)

    def read_columns(self, rows: NDArray[np.integer], columns: ColumnSelection, *, totals: bool = False) -> RowView:
        """Read selected columns of rows; see `RowReader.read_columns`."""
        unique, inverse = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        if not self._decodes_in_kernels:
            return self.read_view(rows).select(columns, totals=totals)
        starts, stops = self._bounds(unique)
        is_filled = stops > starts
        ranges = starts[is_filled], stops[is_filled]
        self._begin_both(*ranges)
        selected = self.indices.select_columns(*ranges, columns)
        offsets, lengths = np.zeros((2, len(unique)), np.int64)
        data, sums = self.data.take_selected(*ranges, selected, totals=totals)
        offsets[is_filled] = np.concatenate([[0], selected.range_ends])[:-1]
        lengths[is_filled] = selected.range_ends - offsets[is_filled]
        view = RowView(offsets[inverse], lengths[inverse], selected.columns, data, columns.n_columns)
        if not totals:
            return view
        row_sums = np.zeros(len(unique))
        row_sums[is_filled] = sums
        return replace(view, totals=row_sums[inverse])

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
        """Write what `read_dense` returns into rows `out_rows` of `out`."""
        rows = np.asarray(rows, dtype=np.int64)
        sort_order = np.argsort(rows, kind="stable")
        is_new = np.diff(rows[sort_order], prepend=-1) != 0
        heads = sort_order[is_new]  # the first of equal rows; the others are copied from it
        starts, stops = self._bounds(rows[heads])
        is_filled = stops > starts
        filled_out_rows = out_rows[heads[is_filled]]
        if self._decodes_in_kernels:
            self._scatter_rows(starts[is_filled], stops[is_filled], filled_out_rows, columns, target_sum or 0.0, out)
        else:
            view = self.read_view(rows[heads[is_filled]]).select(columns, totals=True)
            view.write_dense(out, filled_out_rows, target_sum)
        out[out_rows[heads[~is_filled]]] = 0
        copy_dense_rows(out, out_rows[heads[np.cumsum(is_new) - 1][~is_new]], out_rows[sort_order[~is_new]])

    def _scatter_rows(
        self,
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        out_rows: NDArray[np.int64],
        columns: ColumnSelection,
        target_sum: float,
        out: NDArray[np.float32],
    ) -> None:
        """Decode sorted, distinct, non-empty rows and write their selected columns; a `target_sum` of 0 means none."""
        sums, row, limit = np.zeros(len(starts)), np.zeros(columns.n_columns + 1, np.float32), self.indices.limit

        def scatter(chunks: BothChunks, scratch: BothArrays, part: slice, _: NDArray[np.int64]) -> BothDamages:
            ranges = starts[part], stops[part]
            return scatter_dense(
                chunks, ranges, out_rows[part], columns, target_sum, sums[part], out, (*scratch, row), limit
            )

        self._decode_both(starts, stops, scatter)

    def totals(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n,) sum of each of some ascending rows; their column numbers are not read.

        Raises
        ------
        StoreDamagedError
            If a file is missing or damaged.
        """
        if not self._decodes_in_kernels:
            block = self.read_rows(rows)
            row_of_value = np.repeat(np.arange(len(rows)), np.diff(block.indptr))
            return np.bincount(row_of_value, weights=block.data, minlength=len(rows)).astype(np.float64)
        starts, stops = self._bounds(rows)
        totals, is_filled = np.zeros(len(rows)), stops > starts
        totals[is_filled] = self.data.sum_ranges(starts[is_filled], stops[is_filled])
        return totals

    def add_up(self, start: int, sums: RowSums, columns: ColumnSelection) -> None:
        """Add up consecutive rows by group, without holding what is decoded; see `RowSums`.

        Parameters
        ----------
        start
            The first row; ``sums.slots`` has an entry for each of the rows.
        columns
            The selected columns.

        Raises
        ------
        StoreDamagedError
            If a file is missing or damaged.
        """
        rows = start + np.flatnonzero(sums.slots >= 0)
        of_rows = sums.part(rows - start)
        if not self._decodes_in_kernels:
            add_view(self.read_view(rows), of_rows, columns)
            return
        starts, stops = self._bounds(rows)
        breaks = np.flatnonzero(starts[1:] != stops[:-1]) + 1  # rows that follow one another are decoded as one range
        bounds = starts[np.append(0, breaks)[: len(rows)]], stops[np.append(breaks, len(rows))[: len(rows)] - 1]
        ranges = bounds[0][bounds[1] > bounds[0]], bounds[1][bounds[1] > bounds[0]]

        def add(chunks: BothChunks, scratch: BothArrays, part: slice, numbers: NDArray[np.int64]) -> BothDamages:
            begin, end = numbers[[0, -1]] * self.indices.grid.chunk + [0, self.indices.grid.chunk]
            inside = slice(np.searchsorted(stops, begin, side="right"), np.searchsorted(starts, end, side="left"))
            decoded, of_part = (ranges[0][part], ranges[1][part]), of_rows.part(inside)
            return add_chunks(
                chunks, decoded, (starts[inside], stops[inside]), of_part, columns, scratch, self.indices.limit
            )

        self._decode_both(*ranges, add)

    def _decode_both(
        self,
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        decode: Callable[[BothChunks, BothArrays, slice, NDArray[np.int64]], BothDamages],
    ) -> None:
        """Read ranges of column numbers and values side by side, step by step.

        Parameters
        ----------
        starts, stops
            Sorted ranges of elements that are not empty and do not overlap.
        decode
            Takes the chunks of a step, room for one decoded chunk of each array, the ranges that overlap the chunks,
            and their numbers.
        """
        self._begin_both(starts, stops)
        scratch = self.indices.scratch_chunk(), self.data.scratch_chunk()
        for numbers, part in self.indices.read_steps(starts, stops):
            with self.indices.open_chunks(numbers) as index_chunks, self.data.open_chunks(numbers) as value_chunks:
                index_damage, value_damage = decode((index_chunks, value_chunks), scratch, part, numbers)
            self.indices.raise_damage(index_damage, numbers)
            self.data.raise_damage(value_damage, numbers)

    def _begin_both(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        """Read both arrays at a time where each read waits for a server."""
        self.indices.begin_ranges(starts, stops)
        self.data.begin_ranges(starts, stops)

    @property
    def _decodes_in_kernels(self) -> bool:
        """Whether chunks of both arrays can be decoded side by side, by functions that kernels can call."""
        return native.are_available() and self.indices.grid.chunk == self.data.grid.chunk

    def _bounds(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First element of each of the sorted `rows`, and one past its last."""
        if len(rows) and not 0 <= rows[0] <= rows[-1] < self.shape[0]:
            raise IndexError(
                f"{self.name}: got rows {rows[0]:,} to {rows[-1]:,}, expected rows within its {self.shape[0]:,} rows."
            )
        starts, stops = self._stored_bounds(rows)
        # Rows are decoded to where these bounds say, so they are checked first.
        is_new = rows[1:] != rows[:-1]
        descends = (stops < starts).any() or (np.where(is_new, stops[:-1], starts[:-1]) > starts[1:]).any()
        if descends:
            raise store_damaged(self.indptr.path, "row bounds descend")
        if len(rows) and not 0 <= starts[0] <= stops[-1] <= len(self.data):
            raise store_damaged(self.indptr.path, f"row bounds point beyond the {len(self.data):,} stored values")
        return starts, stops

    def _stored_bounds(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and one past the last element of sorted rows, as stored."""
        if self.shape[0] <= RESIDENT_ROWS:
            bounds = self.indptr.whole()
            return bounds[rows].astype(np.int64), bounds[rows + 1].astype(np.int64)
        is_new = np.diff(rows, prepend=-1) != 0
        unique, inverse = rows[is_new], np.cumsum(is_new) - 1
        breaks = np.flatnonzero(np.diff(unique) != 1) + 1
        heads, tails = np.append(0, breaks)[: len(unique)], np.append(breaks, len(unique))[: len(unique)]
        # n consecutive rows have n + 1 bounds.
        offsets = heads + np.arange(len(heads))
        bounds = np.empty(len(unique) + len(heads), dtype=self.indptr.dtype)
        self.indptr.gather(unique[heads], unique[tails - 1] + 2, offsets, bounds)
        at = (np.arange(len(unique)) + np.repeat(np.arange(len(heads)), tails - heads))[inverse]
        return bounds[at].astype(np.int64), bounds[at + 1].astype(np.int64)
