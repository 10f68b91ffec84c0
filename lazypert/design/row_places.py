"""Places of cells in the order of their store rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypert._internal.inverse_permutation import inverse
from lazypert.screen.rows import Rows, index_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray


class RowPlaces:
    """Places of cells among all of a list in ascending order of their rows.

    Takes no memory per cell where rows are positions, and otherwise four bytes for each row of the store.

    Parameters
    ----------
    cells
        The list. In a selection, a row may occur several times; copies keep their order.
    """

    def __init__(self, cells: Rows) -> None:
        self._cells = cells
        self._place_of_row: NDArray[np.integer] | None = None
        self._place_of_index: NDArray[np.integer] | None = None
        if cells.row_order is None:
            order = np.argsort(cells.starts, kind="stable")
            self._ascending = Rows(cells.starts[order], cells.stops[order])
            return
        occurs = np.zeros(int(cells.row_order.max(initial=-1)) + 1, dtype=bool)
        for _, positions in cells.chunks():
            occurs[cells.to_rows(positions)] = True
        if occurs.sum() == len(cells):
            self._place_of_row = np.cumsum(occurs, dtype=index_dtype(len(cells)))
            self._place_of_row -= 1
        else:
            self._place_of_index = inverse(np.argsort(cells[:], kind="stable"))

    def __len__(self) -> int:
        return len(self._cells)

    def of(self, positions: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.integer]:
        """(m,) places of cells of the list, from their positions and rows."""
        if self._place_of_row is not None:
            return self._place_of_row[rows]
        if self._place_of_index is not None:
            return self._place_of_index[self._cells.find(positions)]
        return self._ascending.find(positions)
