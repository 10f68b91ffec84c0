"""A bounded least-recently-used cache of control cells."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from lazypert.loading.row_pointers import RowPointers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.screen.rows import Rows
    from lazypert.sparse.columns import ColumnSelection
    from lazypert.sparse.row_reader import RowReader
    from lazypert.sparse.row_view import RowView

PAGE_SIZE = 16
"""Controls that are read, cached and evicted together."""


class ControlCache:
    """Controls that were read recently, as stored, within a byte budget. Thread-safe.

    Parameters
    ----------
    matrix, controls
        The matrix, and the rows of all controls.
    n_bytes
        Byte budget; 0 caches nothing and reads only the controls that are requested.
    columns, totals
        Read only these columns and, with `totals`, the sums of the rows over all columns. None reads all
        columns.
    """

    def __init__(
        self,
        matrix: RowReader,
        controls: Rows,
        n_bytes: int,
        columns: ColumnSelection | None = None,
        *,
        totals: bool = False,
    ) -> None:
        self._matrix, self._controls, self._budget = matrix, controls, n_bytes
        self._columns, self._totals = columns, totals
        self._pages: OrderedDict[int, RowPointers] = OrderedDict()  # each has its own row view
        self._bytes = 0
        self._lock, self._reading = threading.Lock(), threading.Lock()

    def rows(self, control_index: NDArray[np.int64]) -> RowPointers:
        """Sparse rows of controls by control index, repeats allowed."""
        if not self._budget:
            requested, inverse = np.unique(control_index, return_inverse=True)
            view = self._read_view(self._controls[requested])
            return RowPointers.from_view(view)[inverse]
        numbers, page_index = np.unique(control_index // PAGE_SIZE, return_inverse=True)
        page_numbers = numbers.tolist()
        pages = self._cached(page_numbers)
        if len(pages) < len(page_numbers):
            with self._reading:  # one thread at a time, because others mostly need the same pages
                pages |= self._cached([number for number in page_numbers if number not in pages])
                pages |= self._read([number for number in page_numbers if number not in pages])
        return RowPointers.gather([pages[number] for number in page_numbers], page_index, control_index % PAGE_SIZE)

    def _cached(self, page_numbers: list[int]) -> dict[int, RowPointers]:
        with self._lock:
            cached = {number: self._pages[number] for number in page_numbers if number in self._pages}
            for number in cached:
                self._pages.move_to_end(number)
        return cached

    def _read_view(self, rows: NDArray[np.int64]) -> RowView:
        if self._columns is None:
            return self._matrix.read_view(rows)
        return self._matrix.read_columns(rows, self._columns, totals=self._totals)

    def _read(self, page_numbers: list[int]) -> dict[int, RowPointers]:
        """Read pages in one request, and cache them."""
        if not page_numbers:
            return {}
        bounds = [(n * PAGE_SIZE, min((n + 1) * PAGE_SIZE, len(self._controls))) for n in page_numbers]
        control_index = np.concatenate([np.arange(start, stop) for start, stop in bounds])
        view = self._read_view(self._controls[control_index])
        pages, first = {}, 0
        for number, (start, stop) in zip(page_numbers, bounds, strict=True):
            pages[number] = RowPointers.from_view(view.copy_rows(first, first + stop - start))
            first += stop - start
        with self._lock:
            for number, page in pages.items():
                self._pages[number] = page
                self._bytes += page.views[0].nbytes
            while self._bytes > self._budget:
                self._bytes -= self._pages.popitem(last=False)[1].views[0].nbytes
        return pages
