"""Adding up rows by group while their chunks are decoded, without storing a decoded row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from lazypert._internal.kernels import kernel
from lazypert.store import native
from lazypert.store.encoded_chunks import (
    OK,
    TOO_LARGE,
    ChunkDamage,
    EncodedChunks,
    chunk_damage,
    decode_chunk,
    exceed,
    overlapping,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.sparse.columns import ColumnSelection
    from lazypert.sparse.row_view import RowView

Values = Literal["stored", "scaled", "log1p"]
"""What is added up: values as stored, multiplied by their row's factor, or log1p of that product."""

_TABLE = 32
"""Counts whose logarithms are computed once for a row."""

_KINDS: dict[Values, int] = {"stored": 0, "scaled": 1, "log1p": 2}


class RowSums(NamedTuple):
    """Where rows are added up, and how.

    Attributes
    ----------
    slots
        (n_rows,) int64 number of the sum that each row belongs to; rows of -1 are left out.
    factors
        (n_rows,) float64 factor of each row; empty for stored values.
    kind
        Number of the `Values`.
    out
        (n_slots, n_columns + 1, n_moments) float64: sums of the values; with two moments also the number of values
        that are not zero, with three also sums of squares. The last column takes what is not selected.
    """

    slots: NDArray[np.int64]
    factors: NDArray[np.float64]
    kind: int
    out: NDArray[np.float64]

    @classmethod
    def make(
        cls, slots: NDArray[np.int64], factors: NDArray[np.float64] | None, values: Values, out: NDArray[np.float64]
    ) -> RowSums:
        """Choose what is added up."""
        return cls(slots, np.empty(0) if factors is None else factors, _KINDS[values], out)

    def part(self, rows: Any) -> RowSums:
        """Take some of the rows, a slice or their numbers."""
        return self._replace(slots=self.slots[rows], factors=self.factors[rows] if self.kind else self.factors)


def add_chunks(
    chunks: tuple[EncodedChunks, EncodedChunks],
    ranges: tuple[NDArray[np.int64], NDArray[np.int64]],
    rows: tuple[NDArray[np.int64], NDArray[np.int64]],
    sums: RowSums,
    columns: ColumnSelection,
    scratch: tuple[NDArray[Any], NDArray[Any]],
    limit: int,
) -> tuple[ChunkDamage, ChunkDamage]:
    """Decode column numbers and values, and add them up. Needs `native.FUNCTIONS`.

    Parameters
    ----------
    chunks
        Chunks of the column numbers, and of the values.
    ranges
        Starts and stops of the elements to decode, which hold the rows.
    rows
        Starts and stops of the rows, of which `sums` says where each belongs.
    scratch
        One decoded chunk of column numbers, and one of values.
    limit
        Number of columns of the matrix; a column number beyond it is damage.
    """
    indices, data = scratch
    index_status, value_status = _add_chunks(
        native.addresses(), *chunks, *ranges, *rows, sums, columns.lookup, indices.view(f"u{indices.itemsize}"), data,
        limit,
    )  # fmt: skip
    return chunk_damage(index_status, chunks[0]), chunk_damage(value_status, chunks[1])


def add_view(view: RowView, sums: RowSums, columns: ColumnSelection) -> None:
    """Add up rows that have been read; the same as `add_chunks`, to the last bit."""
    _add_view(view.offsets, view.lengths, view.indices, view.data, sums, columns.lookup)


@kernel
def _add_row(columns: Any, values: Any, factor: Any, kind: Any, lookup: Any, table: Any, out: Any) -> None:
    mask, n_moments, sums = np.uint64(len(lookup) - 1), np.uint64(out.shape[1]), out.reshape(-1)
    one, two, n_known = np.uint64(1), np.uint64(2), len(table) if kind == 2 and len(values) > len(table) else 0
    for number in range(n_known):
        table[number] = np.log1p(number * factor)
    for j in range(len(values)):
        stored = values[j]
        if kind == 2:
            count = np.int64(stored)
            is_known = 0 <= count < n_known and count == stored
            value = table[np.uint64(count)] if is_known else np.log1p(stored * factor)
        elif kind == 1:
            value = stored * factor
        else:
            value = np.float64(stored)
        at = np.uint64(lookup[np.uint64(columns[j]) & mask]) * n_moments
        sums[at] += value
        if n_moments > one:
            sums[at + one] += value != 0
            if n_moments > two:
                sums[at + two] += value * value


@kernel
def _add_chunks(
    functions: Any, index_chunks: Any, value_chunks: Any, starts: Any, stops: Any, row_starts: Any, row_stops: Any,
    sums: Any, lookup: Any, indices: Any, data: Any, limit: Any,
) -> Any:  # fmt: skip
    first, first_row, size, table = 0, 0, index_chunks.n_elements, np.empty(_TABLE)
    for k in range(len(index_chunks.numbers)):
        begin = index_chunks.numbers[k] * size
        first, last = overlapping(starts, stops, first, begin, begin + size)
        problem = decode_chunk(functions, index_chunks, k, starts, stops, first, last, indices)
        if problem:
            return 8 * k + problem, OK
        problem = decode_chunk(functions, value_chunks, k, starts, stops, first, last, data)
        if problem:
            return OK, 8 * k + problem
        first_row, last_row = overlapping(row_starts, row_stops, first_row, begin, begin + size)
        for i in range(first_row, last_row):
            start, stop = max(row_starts[i], begin) - begin, min(row_stops[i], begin + size) - begin
            if exceed(indices[start:stop], limit):
                return 8 * k + TOO_LARGE, OK
            factor = sums.factors[i] if sums.kind else 1.0
            _add_row(indices[start:stop], data[start:stop], factor, sums.kind, lookup, table, sums.out[sums.slots[i]])
    return OK, OK


@kernel
def _add_view(offsets: Any, lengths: Any, indices: Any, data: Any, sums: Any, lookup: Any) -> None:
    table = np.empty(_TABLE)
    for i in range(len(offsets)):
        start, stop = offsets[i], offsets[i] + lengths[i]
        factor = sums.factors[i] if sums.kind else 1.0
        _add_row(indices[start:stop], data[start:stop], factor, sums.kind, lookup, table, sums.out[sums.slots[i]])
