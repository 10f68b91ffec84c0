"""The matrices of several stores as one, with their genes aligned."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.sparse.columns import ColumnSelection
from lazypert.sparse.csr import CSRBlock, canonical
from lazypert.sparse.row_view import RowLayout, RowView, contiguous_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lazypert.screen.genes import GeneAlignment
    from lazypert.store.matrix import Matrix


class RowSegments:
    """Rows of several stores numbered one after another: which store has a row, and where.

    Parameters
    ----------
    lengths
        Rows of each store.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.offsets: NDArray[np.int64] = np.cumsum([0, *lengths])

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def scatter(self, rows: NDArray[np.integer]) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Divide rows among the stores.

        Returns
        -------
        For each store that has some of the rows (for the first, when there are no rows): its number, which of
        the rows are its own, and what numbers they have in it.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"Rows {rows.min()} to {rows.max()} are not all in a screen of {len(self):,} cells.")
        store = np.searchsorted(self.offsets, rows, side="right") - 1
        numbers = np.unique(store) if rows.size else [0]
        found = ((int(number), np.flatnonzero(store == number)) for number in numbers)
        return [(number, which, rows[which] - self.offsets[number]) for number, which in found]

    def gather(self, rows: NDArray[np.integer], read: Callable[[int, NDArray[np.int64]], Any]) -> Any:
        """Read rows of each store with ``read(number, rows)``, and put them in the order asked.

        Stores that have none of the rows are read too, as their dtypes count.
        """
        scattered = {number: (which, local) for number, which, local in self.scatter(rows)}
        none = np.empty(0, np.int64)
        parts = [scattered.get(number, (none, none)) for number in range(len(self.offsets) - 1)]
        values = np.concatenate([read(number, local) for number, (_, local) in enumerate(parts)])
        return values[np.argsort(np.concatenate([which for which, _ in parts]))]


class AlignedMatrix:
    """A `RowReader` over the matrices of several stores, row after row, with the genes that they share as columns.

    Parameters
    ----------
    matrices
        Matrix of each store.
    genes
        How the stores' genes are aligned.
    """

    def __init__(self, matrices: Sequence[Matrix], genes: GeneAlignment) -> None:
        self.matrices, self._genes = tuple(matrices), genes
        self.segments = RowSegments([matrix.shape[0] for matrix in matrices])
        self.dtype: np.dtype[Any] = np.result_type(*(matrix.dtype for matrix in matrices))
        self.shape = len(self.segments), len(genes.var)

    def read_rows(self, rows: NDArray[np.integer]) -> CSRBlock:
        """Read rows in the order asked, over the shared genes."""
        view = self.read_view(rows)
        indptr = np.concatenate([[0], np.cumsum(view.lengths)]).astype(np.int64)
        indices = view.indices.astype(np.int32, copy=False)
        block = canonical(CSRBlock(indptr, indices, view.data, self.shape[1]))  # stores may order their genes otherwise
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
        parts = [
            (which, self.matrices[number].read_columns(local, self._selection(number, self._all_genes)))
            for number, which, local in self.segments.scatter(rows)
        ]
        return RowView.concat(parts, self.dtype, layout, allocate)

    def read_columns(self, rows: NDArray[np.integer], columns: ColumnSelection, *, totals: bool = False) -> RowView:
        """Read selected columns, with `totals` also sums over the shared genes; see `RowReader.read_columns`."""
        parts = [
            (which, self._read_columns(number, local, columns, totals=totals))
            for number, which, local in self.segments.scatter(rows)
        ]
        return RowView.concat(parts, self.dtype, contiguous_layout, np.empty)

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
        for number, which, local in self.segments.scatter(rows):
            if target_sum is not None and self._has_other_genes(number):
                self._read_columns(number, local, columns, totals=True).write_dense(out, which, target_sum)
            else:
                self.matrices[number].write_dense(local, self._selection(number, columns), target_sum, out, which)
        return out

    @cached_property
    def _all_genes(self) -> ColumnSelection:
        return ColumnSelection.from_indices(np.arange(self.shape[1]), self.shape[1])

    def _selection(self, number: int, columns: ColumnSelection) -> ColumnSelection:
        """Express columns of the shared genes as columns of one store."""
        return columns if self._genes.is_same else columns.for_matrix(self._genes.new_col[number])

    def _has_other_genes(self, number: int) -> bool:
        """Whether a store has genes that are not shared, which totals must leave out."""
        return bool((self._genes.new_col[number] < 0).any())

    @cached_property
    def _share_an_array(self) -> bool:
        """Whether values of all stores can be decoded into one array."""
        dtypes = {matrix.dtype for matrix in self.matrices}
        return len(dtypes) == 1 or all(dtype.kind == "u" for dtype in dtypes)

    def _read_in_place(
        self, rows: NDArray[np.integer], layout: RowLayout, allocate: Callable[[int, Any], NDArray[Any]]
    ) -> RowView:
        scattered = self.segments.scatter(rows)
        located = [(number, which, self.matrices[number].locate(local)) for number, which, local in scattered]
        lengths = np.empty(len(rows), np.int64)
        for _, which, found in located:
            lengths[which] = found.lengths
        starts, size = layout(lengths)
        indices = allocate(size, np.dtype(np.uint16 if self.shape[1] <= 2**16 else np.int32))
        data = allocate(size, self.dtype)
        for number, which, found in located:
            self.matrices[number].gather(found, starts[which], indices, data)
        return RowView(starts, lengths, indices, data, self.shape[1])

    def _read_columns(self, number: int, rows: NDArray[np.int64], columns: ColumnSelection, *, totals: bool) -> RowView:
        if totals and self._has_other_genes(number):
            shared = self.matrices[number].read_columns(rows, self._selection(number, self._all_genes))
            return shared.select(columns, totals=True)
        return self.matrices[number].read_columns(rows, self._selection(number, columns), totals=totals)
