"""Rows: a long list of row numbers, stored as a short list of intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray


CELLS_AT_ONCE = 1_048_576
"""Cells that are looked at together where all of a screen would take too much memory."""


class Rows:
    """An ordered list of distinct store rows whose memory depends only on the number of intervals.

    It behaves like an integer array: ``len(rows)``, ``rows[3]``, ``rows[[1, 2]]``, ``np.asarray(rows)``.
    Intervals consist of *positions*. In a store in grouped order these are rows; otherwise `row_order`
    maps each position to its row.

    Parameters
    ----------
    starts, stops
        (n_intervals,) int64 bounds of disjoint intervals, in the order of the list.
    row_order
        (n_cells,) integer row of each position, or None if positions are rows.
    """

    __slots__ = ("_by_start", "_ends", "row_order", "starts", "stops")

    def __init__(self, starts: ArrayLike, stops: ArrayLike, row_order: NDArray[np.integer] | None = None) -> None:
        starts, stops = np.asarray(starts, dtype=np.int64), np.asarray(stops, dtype=np.int64)
        filled = stops > starts
        self.starts: NDArray[np.int64] = starts[filled]
        self.stops: NDArray[np.int64] = stops[filled]
        self.row_order = row_order
        self._ends = np.cumsum(self.stops - self.starts)
        self._by_start: NDArray[np.int64] | slice | None = None

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def positions(self, index: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the positions of the elements `index`, each in ``[0, len(self))``."""
        index = np.asarray(index, dtype=np.int64)
        interval = np.searchsorted(self._ends, index, side="right")
        return self.stops[interval] - (self._ends[interval] - index)

    def positions_between(self, begin: int, end: int) -> NDArray[np.int64]:
        """Return the positions of the elements `begin` to `end`, without looking up each of them."""
        first = int(np.searchsorted(self._ends, begin, side="right"))
        last = int(np.searchsorted(self._ends, end, side="left")) + 1
        stops = self.stops[first:last]
        # From the end of each interval backwards, as `positions` does.
        lengths = np.diff(np.clip(self._ends[first:last], begin, end), prepend=begin)
        return np.repeat(stops - self._ends[first:last], lengths) + np.arange(begin, end)

    def chunks(self, size: int = CELLS_AT_ONCE) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield the index in this list and the position of every element, a bounded number at a time."""
        for begin in range(0, len(self), size):
            end = min(len(self), begin + size)
            yield np.arange(begin, end), self.positions_between(begin, end)

    def interval_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of the last interval that begins at or before each position; -1 if there is none."""
        if self._by_start is None:
            is_ascending = bool((self.starts[1:] >= self.starts[:-1]).all())
            self._by_start = slice(None) if is_ascending else np.argsort(self.starts, kind="stable")
        number = np.searchsorted(self.starts[self._by_start], positions, side="right") - 1
        return number if isinstance(self._by_start, slice) else np.append(self._by_start, -1)[number]

    def find(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the index of each position, all of which must be in the list: the inverse of `positions`."""
        interval = self.interval_of(positions)
        return self._ends[interval] - (self.stops[interval] - positions)

    def contains(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether each position is in the list."""
        number = self.interval_of(positions)
        return (number >= 0) & (positions < np.append(self.stops, 0)[number])

    def to_rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the store rows of positions."""
        return positions if self.row_order is None else self.row_order[positions].astype(np.int64)

    def firsts(self) -> NDArray[np.int64]:
        """Return the (n_intervals,) first row of each interval."""
        return self.to_rows(self.starts)

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> int: ...
    @overload
    def __getitem__(self, index: slice | list[int] | NDArray[Any]) -> NDArray[np.int64]: ...
    def __getitem__(self, index: Any) -> int | NDArray[np.int64]:
        if isinstance(index, slice):
            begin, end, step = index.indices(len(self))
            if step == 1:
                return self.to_rows(self.positions_between(begin, max(begin, end)))
            return self.to_rows(self.positions(np.arange(begin, end, step)))
        which = np.asarray(index)
        if which.dtype == bool:
            if which.shape != (len(self),):
                raise IndexError(f"index: got a boolean array of shape {which.shape}, expected ({len(self)},).")
            which = np.flatnonzero(which)
        if which.size and which.dtype.kind not in "iu":
            raise IndexError(
                f"index: got {index!r}, expected an integer, a slice, or an array of integers or booleans."
            )
        if which.size and (which.min() < -len(self) or which.max() >= len(self)):
            raise IndexError(f"index: got {index!r}, expected less than {len(self):,}, the number of rows.")
        which = which.astype(np.int64)
        rows = self.to_rows(self.positions(np.where(which < 0, which + len(self), which)))
        return int(rows) if rows.ndim == 0 else rows

    def __iter__(self) -> Iterator[int]:
        for start in range(0, len(self), 65_536):
            yield from self[start : start + 65_536].tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError(
                "copy: got False, expected True or None. Rows store intervals, so an array is always a copy."
            )
        return self[:].astype(dtype or np.int64)

    def keep(self, mask: NDArray[np.bool_]) -> Rows:
        """Return the rows for which ``mask[row]`` is True, in the same order.

        Parameters
        ----------
        mask
            (n_obs,) bool, by store row.
        """
        return self._filter(lambda _, positions: mask[self.to_rows(positions)])

    def where(self, mask: NDArray[np.bool_]) -> Rows:
        """Return the rows for which ``mask[index]`` is True, in the same order.

        Parameters
        ----------
        mask
            (len(self),) bool, by index in this list.
        """
        return self._filter(lambda index, _: mask[index])

    def without(self, others: Sequence[Rows]) -> Rows:
        """Return the rows that are in none of some other lists, in the same order."""
        return self._filter(lambda _, positions: ~np.logical_or.reduce([rows.contains(positions) for rows in others]))

    def take_intervals(self, chosen: NDArray[np.bool_]) -> Rows:
        """Return the rows of some of the (n_intervals,) intervals."""
        return Rows(self.starts[chosen], self.stops[chosen], self.row_order)

    def _filter(self, is_kept: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]) -> Rows:
        starts, stops = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for index, positions in self.chunks():
            kept = is_kept(index, positions)
            positions, index = positions[kept], index[kept]
            # The new intervals must not span several of the old ones, each of which belongs to one run.
            interval = np.searchsorted(self._ends, index, side="right")
            breaks = np.flatnonzero((np.diff(positions) != 1) | (np.diff(interval) != 0)) + 1
            edges = np.concatenate([[0], breaks, [len(positions)]]) if len(positions) else np.zeros(1, np.int64)
            starts.append(positions[edges[:-1]])
            stops.append(positions[edges[1:] - 1] + 1)
        return Rows(np.concatenate(starts), np.concatenate(stops), self.row_order)

    def __repr__(self) -> str:
        return f"Rows({len(self):,} rows in {len(self.starts):,} intervals)"


def count_distinct(rows: NDArray[np.integer]) -> int:
    """Return the number of distinct rows, in one byte for each row of the store."""
    occurs = np.zeros(int(rows.max(initial=-1)) + 1, dtype=bool)  # faster than sorting the rows of a large screen
    occurs[rows] = True
    return int(occurs.sum())


def index_dtype(n: int) -> type[np.signedinteger[Any]]:
    """Return the smaller one of int32 and int64 that can number `n` things."""
    return np.int32 if n < 2**31 else np.int64
