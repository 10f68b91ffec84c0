"""The matrices of several stores as one matrix, with their genes aligned."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lazypert.sparse.columns import ColumnSelection
from lazypert.sparse.csr import CSRBlock, canonical
from lazypert.sparse.row_view import RowLayout, RowView, contiguous_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lazypert.screen.gene_alignment import GeneAlignment
    from lazypert.store.matrix import Matrix


class SegmentRows(NamedTuple):
    """Requested rows that lie in one segment.

    Attributes
    ----------
    segment
        Number of the segment.
    positions
        (n,) positions of these rows in the request.
    rows
        (n,) numbers of these rows in the segment's own store.
    """

    segment: int
    positions: NDArray[np.int64]
    rows: NDArray[np.int64]


class RowSegments:
    """Rows of several stores numbered consecutively, and the segment that each row belongs to.

    Parameters
    ----------
    lengths
        Rows of each store.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.first_rows: NDArray[np.int64] = np.cumsum([0, *lengths])

    def __len__(self) -> int:
        return int(self.first_rows[-1])

    def divide(self, rows: NDArray[np.integer]) -> list[SegmentRows]:
        """Divide rows among the segments.

        Returns
        -------
        One item for each segment that contains some of the rows; for an empty request, one for segment 0.

        Raises
        ------
        IndexError
            When a row does not exist.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(
                f"rows: got {rows.min()} to {rows.max()}, expected rows of a screen of {len(self):,} cells."
            )
        segment_of_row = np.searchsorted(self.first_rows, rows, side="right") - 1
        segments = np.unique(segment_of_row) if rows.size else [0]
        positions_of = {int(segment): np.flatnonzero(segment_of_row == segment) for segment in segments}
        return [
            SegmentRows(segment, positions, rows[positions] - self.first_rows[segment])
            for segment, positions in positions_of.items()
        ]

    def gather(self, rows: NDArray[np.integer], read: Callable[[int, NDArray[np.int64]], Any]) -> Any:
        """Read rows of each segment with ``read(segment, rows)``, and return them in the requested order.

        Segments without any of the rows are read too, because their dtypes affect that of the result.
        """
        divided = {item.segment: item for item in self.divide(rows)}
        none = np.empty(0, np.int64)
        items = [divided.get(number, SegmentRows(number, none, none)) for number in range(len(self.first_rows) - 1)]
        values = np.concatenate([read(item.segment, item.rows) for item in items])
        return values[np.argsort(np.concatenate([item.positions for item in items]))]


class AlignedMatrix:
    """A `RowReader` over the matrices of several stores; its columns are the genes that they share.

    Parameters
    ----------
    matrices
        Matrix of each store.
    genes
        Alignment of the stores' genes.
    """

    def __init__(self, matrices: Sequence[Matrix], genes: GeneAlignment) -> None:
        self.matrices, self._genes = tuple(matrices), genes
        self.segments = RowSegments([matrix.shape[0] for matrix in matrices])
        self.dtype: np.dtype[Any] = np.result_type(*(matrix.dtype for matrix in matrices))
        self.shape = len(self.segments), len(genes.var)

    def __repr__(self) -> str:
        return f"AlignedMatrix({self.shape[0]:,} x {self.shape[1]:,} {self.dtype} from {len(self.matrices)} stores)"

    def row_lengths(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """(n,) number of stored values of rows, including genes that are not shared; see `RowReader.row_lengths`."""
        lengths = np.empty(len(rows), np.int64)
        for segment, positions, local in self.segments.divide(rows):
            lengths[positions] = self.matrices[segment].row_lengths(local)
        return lengths

    def read_rows(self, rows: NDArray[np.integer]) -> CSRBlock:
        """Read rows in the requested order, over the shared genes."""
        view = self.read_view(rows)
        indptr = np.concatenate([[0], np.cumsum(view.lengths)]).astype(np.int64)
        indices = view.indices.astype(np.int32, copy=False)
        # Aligned columns are not necessarily ascending, because each store has its own gene order.
        block = canonical(CSRBlock(indptr, indices, view.data, self.shape[1]))
        return replace(block, data=block.data.astype(self.dtype, copy=False))

    def read_view(
        self,
        rows: NDArray[np.integer],
        *,
        layout: RowLayout = contiguous_layout,
        allocate: Callable[[int, Any], NDArray[Any]] = np.empty,
    ) -> RowView:
        """Read rows over the shared genes; see `RowReader.read_view`."""
        if self._genes.is_same and self._share_an_array:
            return self._read_in_place(rows, layout, allocate)
        views = [
            (positions, self.matrices[segment].read_columns(local, self._selection(segment, self._all_genes)))
            for segment, positions, local in self.segments.divide(rows)
        ]
        return RowView.concat(views, self.dtype, layout, allocate)

    def read_columns(self, rows: NDArray[np.integer], columns: ColumnSelection, *, totals: bool = False) -> RowView:
        """Read selected columns, and with `totals` sums over the shared genes; see `RowReader.read_columns`."""
        views = [
            (positions, self._read_columns(segment, local, columns, totals=totals))
            for segment, positions, local in self.segments.divide(rows)
        ]
        return RowView.concat(views, self.dtype, contiguous_layout, np.empty)

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
        for segment, positions, local in self.segments.divide(rows):
            if target_sum is not None and self._has_other_genes(segment):
                self._read_columns(segment, local, columns, totals=True).write_dense(out, positions, target_sum)
            else:
                self.matrices[segment].write_dense(local, self._selection(segment, columns), target_sum, out, positions)
        return out

    @cached_property
    def _all_genes(self) -> ColumnSelection:
        return ColumnSelection.from_indices(np.arange(self.shape[1]), self.shape[1])

    def _selection(self, segment: int, columns: ColumnSelection) -> ColumnSelection:
        """Convert a selection of shared genes to a selection of one store's columns."""
        return columns if self._genes.is_same else columns.for_matrix(self._genes.new_col[segment])

    def _has_other_genes(self, segment: int) -> bool:
        """Whether a store has genes that are not shared, which totals must leave out."""
        return bool((self._genes.new_col[segment] < 0).any())

    @cached_property
    def _share_an_array(self) -> bool:
        """Whether values of all stores can be decoded into one array."""
        dtypes = {matrix.dtype for matrix in self.matrices}
        return len(dtypes) == 1 or all(dtype.kind == "u" for dtype in dtypes)

    def _read_in_place(
        self, rows: NDArray[np.integer], layout: RowLayout, allocate: Callable[[int, Any], NDArray[Any]]
    ) -> RowView:
        """Decode rows of all stores straight into shared arrays."""
        divided = self.segments.divide(rows)
        located = [(segment, positions, self.matrices[segment].locate(local)) for segment, positions, local in divided]
        lengths = np.empty(len(rows), np.int64)
        for _, positions, located_rows in located:
            lengths[positions] = located_rows.lengths
        starts, size = layout(lengths)
        indices = allocate(size, np.dtype(np.uint16 if self.shape[1] <= 2**16 else np.int32))
        data = allocate(size, self.dtype)
        for segment, positions, located_rows in located:
            self.matrices[segment].gather(located_rows, starts[positions], indices, data)
        return RowView(starts, lengths, indices, data, self.shape[1])

    def _read_columns(
        self, segment: int, rows: NDArray[np.int64], columns: ColumnSelection, *, totals: bool
    ) -> RowView:
        if totals and self._has_other_genes(segment):
            shared = self.matrices[segment].read_columns(rows, self._selection(segment, self._all_genes))
            return shared.select(columns, totals=True)
        return self.matrices[segment].read_columns(rows, self._selection(segment, columns), totals=totals)
