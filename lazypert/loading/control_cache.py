"""A bounded cache of control cells."""

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

PIECE = 16
"""Controls that are read and kept together."""


class ControlCache:
    """Controls that were read lately, within a bound. Thread-safe.

    Parameters
    ----------
    matrix, controls
        Where values come from, and the rows of all controls.
    n_bytes
        Bytes to keep; 0 reads just the controls asked for.
    columns, totals
        Read these columns only; and with `totals` know the rows' sums over all. None reads all columns.
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
        self._matrix, self._controls, self._most = matrix, controls, n_bytes
        self._columns, self._totals = columns, totals
        self._pieces: OrderedDict[int, RowPointers] = OrderedDict()  # each of one block
        self._bytes = 0
        self._lock, self._reading = threading.Lock(), threading.Lock()

    def rows(self, places: NDArray[np.int64]) -> RowPointers:
        """Sparse rows of controls by their places in the list of all, repeats allowed."""
        if not self._most:
            wanted, which = np.unique(places, return_inverse=True)
            placed = self._read_rows(self._controls[wanted])
            return RowPointers.whole(placed)[which]
        numbers, which = np.unique(places // PIECE, return_inverse=True)
        held = self._held(numbers.tolist())
        if len(held) < len(numbers):
            with self._reading:  # one thread at a time: others mostly need the same
                held |= self._held([number for number in numbers.tolist() if number not in held])
                held |= self._read([number for number in numbers.tolist() if number not in held])
        pieces = [held[number] for number in numbers.tolist()]
        return RowPointers.pick(pieces, which, places % PIECE)

    def _held(self, numbers: list[int]) -> dict[int, RowPointers]:
        with self._lock:
            held = {number: self._pieces[number] for number in numbers if number in self._pieces}
            for number in held:
                self._pieces.move_to_end(number)
        return held

    def _read_rows(self, rows: NDArray[np.int64]) -> RowView:
        if self._columns is None:
            return self._matrix.read_view(rows)
        return self._matrix.read_columns(rows, self._columns, totals=self._totals)

    def _read(self, numbers: list[int]) -> dict[int, RowPointers]:
        if not numbers:
            return {}
        bounds = [(n * PIECE, min((n + 1) * PIECE, len(self._controls))) for n in numbers]
        places = np.concatenate([np.arange(start, stop) for start, stop in bounds])
        together = self._read_rows(self._controls[places])
        found, at = {}, 0
        for number, (start, stop) in zip(numbers, bounds, strict=True):
            found[number] = RowPointers.whole(together.copy_rows(at, at + stop - start))
            at += stop - start
        with self._lock:
            for number, piece in found.items():
                self._pieces[number] = piece
                self._bytes += piece.blocks[0].nbytes
            while self._bytes > self._most:
                self._bytes -= self._pieces.popitem(last=False)[1].blocks[0].nbytes
        return found
