"""One-dimensional Zarr v3 arrays in shards, read by ranges of elements.

The arrays are ordinary Zarr arrays that any reader can open, and tests compare this module with zarr-python byte
for byte. It does two things that zarr-python does not: decode in threads at the codec's speed into given
buffers (zarr-python takes about five times as long), and raise an error for a missing shard instead of filling
in zeros.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lazypert.store.chunk_kernels import NO_LIMIT, decode_ranges, select_columns, take_selected
from lazypert.store.sharded_chunks import SCRATCH, ShardedChunks, chunks_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.sparse.columns import ColumnSelection
    from lazypert.store.byte_reader import ByteReader
    from lazypert.store.format import Grid


class SelectedElements(NamedTuple):
    """Elements that a `ColumnSelection` selects from ranges of column numbers.

    Attributes
    ----------
    columns
        (m,) unsigned output column of each.
    chunk_offsets
        (m,) uint32 offset of each in its chunk. Valid until this thread's next `ShardedArray.select_columns`.
    range_ends, chunk_ends
        Number of selected elements up to the end of each range, and of each chunk that was read.
    """

    columns: NDArray[Any]
    chunk_offsets: NDArray[np.uint32]
    range_ends: NDArray[np.int64]
    chunk_ends: NDArray[np.int64]


class ShardedArray(ShardedChunks):
    """A one-dimensional array in shards, read by ranges of elements.

    Thread-safe and picklable. It caches shard indexes, and no elements unless `whole` is called.

    Parameters
    ----------
    reader, path, dtype, grid, is_delta
        As for `ShardedChunks`.
    limit
        Number of columns that the elements are numbers of: one beyond it is damage.
    """

    def __init__(
        self,
        reader: ByteReader,
        path: str,
        dtype: np.dtype[Any],
        grid: Grid,
        *,
        is_delta: bool = False,
        limit: int = NO_LIMIT,
    ) -> None:
        super().__init__(reader, path, dtype, grid, is_delta=is_delta)
        self.limit = limit
        self._whole: NDArray[Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(ShardedArray, is_delta=self.is_delta, limit=self.limit)
        return make, (self.reader, self.path, self.dtype, self.grid)

    def __repr__(self) -> str:
        return f"ShardedArray({self.path!r}, {len(self):,} elements, {self.dtype}, {self.grid.n_shards:,} shards)"

    def __len__(self) -> int:
        return self.grid.length

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read elements ``start`` to ``stop`` into a new array.

        Raises
        ------
        StoreDamagedError
            If a shard is missing or cut short, or the checksum of a chunk does not match when it is first read.
        """
        out = np.empty(stop - start, dtype=self.dtype)
        self.read_into(out, start)
        return out

    def whole(self) -> NDArray[Any]:
        """Return all elements, read once and then kept in memory."""
        if self._whole is None:
            self._whole = self.read(0, len(self))
        return self._whole

    def read_into(self, out: NDArray[Any], start: int) -> None:
        """Fill `out` with the elements starting at ``start``; errors as in `read`."""
        bounds = np.array([start, start + len(out), 0], dtype=np.int64)
        self.gather(bounds[:1], bounds[1:2], bounds[2:], out)

    def gather(
        self, starts: NDArray[np.int64], stops: NDArray[np.int64], offsets: NDArray[np.int64], out: NDArray[Any]
    ) -> None:
        """Read ranges of elements, each to its own offset; a chunk that ranges share is decoded once.

        Parameters
        ----------
        starts, stops
            (n,) ranges ``[starts[i], stops[i])``; both sorted. Ranges may repeat.
        offsets
            (n,) offset in `out` at which each range begins.
        out
            Contiguous, of the array's dtype. For an array of unsigned integers, unsigned integers of another
            width that can hold the values are also accepted.

        Raises
        ------
        StoreDamagedError
            If a shard is missing or cut short, or the checksum of a chunk does not match when it is first read.
        """
        if len(starts) and not 0 <= starts[0] <= stops[-1] <= self.grid.length:
            raise IndexError(
                f"{self.path}: got elements {starts[0]} to {stops[-1]}, expected a range within {len(self)} elements."
            )
        is_filled = stops > starts
        if not is_filled.all():
            starts, stops, offsets = starts[is_filled], stops[is_filled], offsets[is_filled]
        scratch = self.scratch_chunk()
        self.hold_if_small()
        for numbers, overlapping in self.read_steps(starts, stops):
            with self.open_chunks(numbers) as chunks:
                ranges = starts[overlapping], stops[overlapping]
                damage = decode_ranges(chunks, ranges, offsets[overlapping], out, scratch, self.limit)
            self.raise_damage(damage, numbers)

    def select_columns(
        self, starts: NDArray[np.int64], stops: NDArray[np.int64], columns: ColumnSelection
    ) -> SelectedElements:
        """Find the selected elements of ranges of column numbers. Needs `native.FUNCTIONS`.

        Parameters
        ----------
        starts, stops
            As in `gather`; ranges are not empty and do not overlap.
        columns
            The selected columns.
        """
        scratch = self.scratch_chunk()
        capacity = int((stops - starts).sum()) + 1
        out_columns = SCRATCH.take("columns", capacity, columns.lookup.dtype)
        out_offsets = SCRATCH.take("chunk offsets", capacity, np.uint32)
        n_chunks = len(chunks_of(starts, stops, self.grid.chunk))
        range_ends, chunk_ends = np.zeros(len(starts), np.int64), np.zeros(n_chunks, np.int64)
        n_selected = n_read = 0
        for numbers, overlapping in self.read_steps(starts, stops):
            ends = range_ends[overlapping], chunk_ends[n_read : n_read + len(numbers)]
            with self.open_chunks(numbers) as chunks:
                ranges, out = (starts[overlapping], stops[overlapping]), (out_columns, out_offsets)
                damage, n_selected = select_columns(chunks, ranges, columns, n_selected, ends, out, scratch, self.limit)
            self.raise_damage(damage, numbers)
            n_read += len(numbers)
        return SelectedElements(out_columns[:n_selected].copy(), out_offsets[:n_selected], range_ends, chunk_ends)

    def take_selected(
        self, starts: NDArray[np.int64], stops: NDArray[np.int64], selected: SelectedElements, *, totals: bool
    ) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Read the elements at the positions where another array, with chunks of equal length, selected columns.

        Parameters
        ----------
        starts, stops
            The ranges that `select_columns` was given.
        selected
            What it returned.
        totals
            Also sum every range.

        Returns
        -------
        (m,) elements, and the (n,) float64 sum of each whole range; (0,) without `totals`.
        """
        scratch = self.scratch_chunk()
        out, sums = np.empty(len(selected.columns), self.dtype), np.zeros(len(starts) if totals else 0)
        n_taken = n_read = 0
        for numbers, overlapping in self.read_steps(starts, stops):
            chunk_ends = selected.chunk_ends[n_read : n_read + len(numbers)]
            with self.open_chunks(numbers) as chunks:
                ranges, step_sums = (starts[overlapping], stops[overlapping]), sums[overlapping]
                damage = take_selected(
                    chunks, ranges, n_taken, chunk_ends, selected.chunk_offsets, out, step_sums, scratch
                )
            self.raise_damage(damage, numbers)
            n_taken, n_read = int(chunk_ends[-1]), n_read + len(numbers)
        return out, sums

    def sum_ranges(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n,) sum of the elements of each range; ranges as for `take_selected`."""
        n_chunks, nothing = len(chunks_of(starts, stops, self.grid.chunk)), np.empty(0, np.uint32)
        ends = np.zeros(len(starts), np.int64), np.zeros(n_chunks, np.int64)
        return self.take_selected(starts, stops, SelectedElements(nothing, nothing, *ends), totals=True)[1]
