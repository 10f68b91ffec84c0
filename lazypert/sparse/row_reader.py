"""The protocol for reading rows of a sparse matrix by number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lazypert.sparse.row_view import contiguous_layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lazypert.sparse.columns import ColumnSelection
    from lazypert.sparse.csr import CSRBlock
    from lazypert.sparse.row_view import RowLayout, RowView


class RowReader(Protocol):
    """Reads rows of a sparse matrix in any order, repeats allowed. Thread-safe and picklable.

    Attributes
    ----------
    shape
        Numbers of rows and columns.
    dtype
        Dtype of the values that are read.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the values that are read."""
        ...

    def row_lengths(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """(n,) number of stored values of rows, at least as many as are read; no values are read for this."""
        ...

    def read_rows(self, rows: NDArray[np.integer]) -> CSRBlock:
        """Read rows in the order requested, with int32 or int64 column numbers."""
        ...

    def read_view(
        self,
        rows: NDArray[np.integer],
        *,
        layout: RowLayout = contiguous_layout,
        allocate: Callable[[int, Any], NDArray[Any]] = np.empty,
    ) -> RowView:
        """Read rows into shared arrays that the caller allocates, each row to its own offset.

        Parameters
        ----------
        layout
            Gives the offset of each row.
        allocate
            Makes an array, from a length and a dtype.

        Returns
        -------
        The rows. Column numbers are uint16 if all of them fit, which halves their memory.
        """
        ...

    def read_columns(self, rows: NDArray[np.integer], columns: ColumnSelection, *, totals: bool = False) -> RowView:
        """Read selected columns of rows; values of other columns are dropped.

        Parameters
        ----------
        totals
            Also sum each row over all columns.
        """
        ...

    def read_dense(
        self,
        rows: NDArray[np.integer],
        columns: ColumnSelection,
        *,
        target_sum: float | None = None,
        allocate: Callable[[tuple[int, int], Any], NDArray[Any]] = np.empty,
    ) -> NDArray[np.float32]:
        """Read selected columns of rows as a dense (n, n_columns) float32 array.

        Values are decoded directly into the array, which is the fastest way to read few columns.

        Parameters
        ----------
        target_sum
            Scale each row to this sum over all columns, then take ``log1p``.
        allocate
            Makes the array, from a shape and a dtype.
        """
        ...
