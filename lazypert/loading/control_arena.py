"""All controls of a loader in memory, each read once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.loading.row_pointers import RowPointers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.screen.rows import Rows
    from lazypert.sparse.columns import ColumnSelection
    from lazypert.sparse.row_reader import RowReader
    from lazypert.sparse.row_view import RowView

_ABSENT, _BEING_READ, _PRESENT = 0, 1, 2  # states of a control

LARGEST_GAP = 8
"""Controls between two that are requested are read along with them if there are at most this many. They will be
requested as well, and reading a control on its own takes as long as reading four in a row."""

_ALIGNMENT = 64  # bytes
_ROW_BYTES = 2 * _ALIGNMENT + 64  # addresses, offset, length, total and state; and what alignment skips, at most


class ControlArena:
    """Controls as stored, kept from when they are first requested; for controls that all fit in memory. Thread-safe.

    Each control is read by one thread, once. Threads that need it too wait for that thread only.

    Parameters
    ----------
    matrix, controls
        The matrix, and the rows of all controls.
    n_bytes
        Bytes to reserve. Memory is used only as controls are read; see `arena_bytes`.
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
        self._matrix, self._controls, self._columns, self._totals = matrix, controls, columns, totals
        n = len(controls)
        self._state = np.full(n, _ABSENT, np.int8)
        self._index_address, self._value_address = np.zeros(n, np.uint64), np.zeros(n, np.uint64)
        self._length, self._total = np.zeros(n, np.int64), np.zeros(n)
        self._views: list[RowView] = []
        # One large array, filled from the start, so that the system can back it with large pages.
        self._memory = np.empty(n_bytes if columns is None else 0, np.uint8)
        self._n_used = -self._memory.ctypes.data % _ALIGNMENT
        self._changed = threading.Condition()

    @property
    def nbytes(self) -> int:
        """Bytes of the controls that have been read."""
        with self._changed:
            return sum(view.nbytes for view in self._views)

    def rows(self, control_index: NDArray[np.int64]) -> RowPointers:
        """Sparse rows of controls by control index, repeats allowed."""
        while True:
            with self._changed:
                missing = self._claim(control_index)
                if not len(missing):
                    if (self._state[control_index] == _PRESENT).all():
                        return self._pointers(control_index)
                    self._changed.wait()
                    continue
            self._read(missing)

    def _claim(self, control_index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Reserve absent controls for this thread: those requested and those in small gaps, ascending."""
        missing = np.unique(control_index[self._state[control_index] == _ABSENT])
        gaps = np.diff(missing) - 1
        n_between = np.where(gaps <= LARGEST_GAP, gaps, 0)
        first, nth = np.cumsum(n_between) - n_between, np.arange(n_between.sum())
        between = np.repeat(missing[:-1] + 1 - first, n_between) + nth
        claimed = np.sort(np.concatenate([missing, between[self._state[between] == _ABSENT]]))
        self._state[claimed] = _BEING_READ
        return claimed

    def _read(self, claimed: NDArray[np.int64]) -> None:
        """Read controls that this thread has claimed; if that fails, others may claim them."""
        view = None
        try:
            view = self._read_view(self._controls[claimed])
        finally:
            with self._changed:
                if view is not None:
                    self._add(claimed, view)
                self._state[claimed] = _ABSENT if view is None else _PRESENT
                self._changed.notify_all()

    def _read_view(self, rows: NDArray[np.int64]) -> RowView:
        if self._columns is None:
            return self._matrix.read_view(rows, allocate=self._allocate)
        return self._matrix.read_columns(rows, self._columns, totals=self._totals)

    def _allocate(self, length: int, dtype: Any) -> NDArray[Any]:
        """Take the next part of the reserved memory; new memory if a failed read has used some up."""
        n_bytes = length * np.dtype(dtype).itemsize
        with self._changed:
            start, stop = self._n_used, self._n_used + n_bytes
            if stop > len(self._memory):
                return np.empty(length, dtype)
            self._n_used += -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
        return self._memory[start:stop].view(dtype)

    def _add(self, claimed: NDArray[np.int64], view: RowView) -> None:
        pointers = RowPointers.from_view(view)
        self._index_address[claimed], self._value_address[claimed] = pointers.index_address, pointers.value_address
        self._length[claimed], self._total[claimed] = pointers.length, pointers.total
        self._views.append(view)

    def _pointers(self, control_index: NDArray[np.int64]) -> RowPointers:
        return RowPointers(
            self._index_address[control_index],
            self._value_address[control_index],
            self._length[control_index],
            self._total[control_index],
            self._views.copy(),
        )


def arena_bytes(matrix: RowReader, controls: Rows, columns: ColumnSelection | None = None) -> int:
    """Bytes that all controls take in memory, at most. No values are read."""
    lengths = matrix.row_lengths(controls[:])
    if columns is not None:
        lengths = np.minimum(lengths, columns.n_columns)
    n_columns = matrix.shape[1] if columns is None else columns.n_columns
    value_bytes = matrix.dtype.itemsize + (2 if n_columns < 2**16 else 8)
    return int(lengths.sum()) * value_bytes + len(controls) * _ROW_BYTES
