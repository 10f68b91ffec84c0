"""Decoding chunks: read, verify and decompress each, and write every range of elements to its offset.

One kernel does all of it without the GIL. `_decode_with_python` does the same through the libraries' Python
interfaces, for builds whose C functions kernels cannot call; tests compare the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from lazypert._internal.kernels import kernel
from lazypert.sparse.transforms import scale_log1p, total
from lazypert.store import native
from lazypert.store.encoded_chunks import (
    BAD_CHECKSUM,
    CHECKSUM,
    OK,
    TOO_LARGE,
    UNDECODABLE,
    WRONG_SIZE,
    ChunkDamage,
    EncodedChunks,
    checksum,
    chunk_damage,
    decode_chunk,
    exceed,
    overlapping,
)

if TYPE_CHECKING:
    from lazypert.sparse.columns import ColumnSelection

Ranges = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Starts and stops of ranges of elements; both are sorted."""

NO_LIMIT = -1
"""Elements of any size are right."""


def decode_ranges(
    chunks: EncodedChunks,
    ranges: Ranges,
    offsets: NDArray[np.int64],
    out: NDArray[Any],
    scratch: NDArray[Any],
    limit: int = NO_LIMIT,
) -> ChunkDamage:
    """Decode the elements of ranges that lie in the chunks.

    Parameters
    ----------
    offsets
        Offset in `out` at which each range begins.
    out
        Receives the elements; of the array's width, or integers of another width.
    scratch
        (n_elements,) of the array's dtype, for one decoded chunk.
    limit
        Elements, taken as unsigned, that are not smaller are damage.
    """
    # Elements are copied bit for bit, so one kernel per width is enough.
    bits = scratch.view(f"u{scratch.itemsize}")
    out_bits = out.view(f"u{out.itemsize}")
    if not native.are_available():
        return chunk_damage(_decode_with_python(chunks, *ranges, offsets, out_bits, bits, limit), chunks)
    return chunk_damage(_decode_ranges(native.addresses(), chunks, *ranges, offsets, out_bits, bits, limit), chunks)


def select_columns(
    chunks: EncodedChunks,
    ranges: Ranges,
    columns: ColumnSelection,
    n_selected: int,
    ends: tuple[NDArray[np.int64], NDArray[np.int64]],
    out: tuple[NDArray[Any], NDArray[np.uint32]],
    scratch: NDArray[Any],
    limit: int,
) -> tuple[ChunkDamage, int]:
    """Decode column numbers and collect the selected ones. Needs `native.FUNCTIONS`.

    Parameters
    ----------
    n_selected
        Number of elements selected from earlier chunks.
    ends
        Receive the number of selected elements up to the end of each range, and of each chunk.
    out
        Receive the output column of each selected element, and its offset in its chunk, starting at `n_selected`.
    limit
        Number of columns; a column number beyond it is damage.

    Returns
    -------
    Damage, and the number of elements selected so far.
    """
    status, n_selected = _select_columns(
        native.addresses(), chunks, *ranges, columns.lookup, columns.is_selected, n_selected, *ends, *out,
        scratch.view(f"u{scratch.itemsize}"), limit,
    )  # fmt: skip
    return chunk_damage(status, chunks), n_selected


def take_selected(
    chunks: EncodedChunks,
    ranges: Ranges,
    n_taken: int,
    chunk_ends: NDArray[np.int64],
    chunk_offsets: NDArray[np.uint32],
    out: NDArray[Any],
    totals: NDArray[np.float64],
    scratch: NDArray[Any],
) -> ChunkDamage:
    """Decode values and gather those of the selected elements. Needs `native.FUNCTIONS`.

    Parameters
    ----------
    n_taken
        Number of values taken from earlier chunks.
    chunk_ends, chunk_offsets
        From `select_columns`: selected elements up to the end of each chunk, and the offset in its chunk of each.
    out
        Receives the values, starting at `n_taken`.
    totals
        The sum of each range is added to it; empty if totals are not wanted.
    """
    status = _take_selected(
        native.addresses(), chunks, *ranges, n_taken, chunk_ends, chunk_offsets, out, totals, scratch
    )  # fmt: skip
    return chunk_damage(status, chunks)


def scatter_dense(
    chunks: tuple[EncodedChunks, EncodedChunks],
    ranges: Ranges,
    out_rows: NDArray[np.int64],
    columns: ColumnSelection,
    target_sum: float,
    sums: NDArray[np.float64],
    out: NDArray[np.float32],
    scratch: tuple[NDArray[Any], NDArray[Any], NDArray[np.float32]],
    limit: int,
) -> tuple[ChunkDamage, ChunkDamage]:
    """Decode column numbers and values, and write the selected columns of rows densely. Needs `native.FUNCTIONS`.

    Parameters
    ----------
    chunks
        Chunks of the column numbers, and of the values.
    out_rows
        Row of `out` for each range.
    sums
        Sum so far of each row, for rows that continue in the next chunks.
    scratch
        One decoded chunk of column numbers, one of values, and ``n_columns + 1`` values of a row.
    limit
        Number of columns of the matrix; a column number beyond it is damage.
    """
    indices, data, row = scratch
    index_status, value_status = _scatter_dense(
        native.addresses(), *chunks, *ranges, out_rows, columns.lookup, columns.n_columns, target_sum, sums, row, out,
        indices.view(f"u{indices.itemsize}"), data, limit,
    )  # fmt: skip
    return chunk_damage(index_status, chunks[0]), chunk_damage(value_status, chunks[1])


@kernel
def _decode_ranges(
    functions: Any, chunks: Any, starts: Any, stops: Any, offsets: Any, out: Any, scratch: Any, limit: Any
) -> int:  # fmt: skip
    first = 0
    for k in range(len(chunks.numbers)):
        begin = chunks.numbers[k] * chunks.n_elements
        first, last = overlapping(starts, stops, first, begin, begin + chunks.n_elements)
        problem = decode_chunk(functions, chunks, k, starts, stops, first, last, scratch)
        if problem:
            return 8 * k + problem
        for i in range(first, last):
            start, stop = max(starts[i], begin), min(stops[i], begin + chunks.n_elements)
            offset = offsets[i] + start - starts[i]
            source, target = scratch[start - begin : stop - begin], out[offset : offset + stop - start]
            if exceed(source, limit):
                return 8 * k + TOO_LARGE
            for j in range(len(target)):
                target[j] = source[j]
    return OK


@kernel
def _select_columns(
    functions: Any, chunks: Any, starts: Any, stops: Any, lookup: Any, is_selected: Any, n_selected: Any,
    range_ends: Any, chunk_ends: Any, out_columns: Any, out_offsets: Any, scratch: Any, limit: Any,
) -> Any:  # fmt: skip
    first, mask = 0, np.uint64(len(lookup) - 1)
    for k in range(len(chunks.numbers)):
        begin = chunks.numbers[k] * chunks.n_elements
        first, last = overlapping(starts, stops, first, begin, begin + chunks.n_elements)
        problem = decode_chunk(functions, chunks, k, starts, stops, first, last, scratch)
        if problem:
            return 8 * k + problem, n_selected
        for i in range(first, last):
            start, stop = max(starts[i], begin), min(stops[i], begin + chunks.n_elements)
            columns, before = scratch[start - begin : stop - begin], n_selected
            if exceed(columns, limit):
                return 8 * k + TOO_LARGE, n_selected
            at = np.uint64(n_selected)  # unsigned, so that no index can count from the end
            for j in range(len(columns)):
                out_offsets[at] = j
                at += np.uint64(is_selected[np.uint64(columns[j]) & mask])  # overwritten unless selected
            n_selected = np.int64(at)
            for j in range(before, n_selected):
                out_columns[j] = lookup[np.uint64(columns[out_offsets[j]]) & mask]
                out_offsets[j] += np.uint32(start - begin)
            range_ends[i] = n_selected
        chunk_ends[k] = n_selected
    return OK, n_selected


@kernel
def _take_selected(
    functions: Any, chunks: Any, starts: Any, stops: Any, n_taken: Any, chunk_ends: Any, chunk_offsets: Any,
    out: Any, totals: Any, scratch: Any,
) -> int:  # fmt: skip
    first = 0
    for k in range(len(chunks.numbers)):
        begin = chunks.numbers[k] * chunks.n_elements
        first, last = overlapping(starts, stops, first, begin, begin + chunks.n_elements)
        problem = decode_chunk(functions, chunks, k, starts, stops, first, last, scratch)
        if problem:
            return 8 * k + problem
        for i in range(first, last if len(totals) else first):
            start, stop = max(starts[i], begin), min(stops[i], begin + chunks.n_elements)
            totals[i] += total(scratch[start - begin : stop - begin])
        for j in range(n_taken, chunk_ends[k]):
            out[j] = scratch[chunk_offsets[j]]
        n_taken = chunk_ends[k]
    return OK


@kernel
def _scatter_dense(
    functions: Any, index_chunks: Any, value_chunks: Any, starts: Any, stops: Any, out_rows: Any, lookup: Any,
    n_columns: Any, target_sum: Any, sums: Any, row: Any, out: Any, indices: Any, data: Any, limit: Any,
) -> Any:  # fmt: skip
    first, mask, size = 0, np.uint64(len(lookup) - 1), index_chunks.n_elements
    for k in range(len(index_chunks.numbers)):
        begin = index_chunks.numbers[k] * size
        first, last = overlapping(starts, stops, first, begin, begin + size)
        problem = decode_chunk(functions, index_chunks, k, starts, stops, first, last, indices)
        if problem:
            return 8 * k + problem, OK
        problem = decode_chunk(functions, value_chunks, k, starts, stops, first, last, data)
        if problem:
            return OK, 8 * k + problem
        for i in range(first, last):
            start, stop = max(starts[i], begin), min(stops[i], begin + size)
            target = out[out_rows[i]]
            if start == starts[i]:
                row[:] = 0
            else:  # the row began in the previous chunk
                for j in range(n_columns):
                    row[j] = target[j]
            columns, values = indices[start - begin : stop - begin], data[start - begin : stop - begin]
            if exceed(columns, limit):
                return 8 * k + TOO_LARGE, OK
            for j in range(len(columns)):  # values that are not selected go to the extra element at the end
                row[np.uint64(lookup[np.uint64(columns[j]) & mask])] = values[j]
            if target_sum > 0:
                sums[i] += total(values)
                if stop == stops[i]:
                    scale_log1p(row[:n_columns], target_sum / sums[i] if sums[i] > 0 else 0.0, row[:n_columns])
            for j in range(n_columns):
                target[j] = row[j]
    return OK, OK


def _decode_with_python(
    chunks: EncodedChunks,
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    offsets: NDArray[np.int64],
    out: NDArray[Any],
    scratch: NDArray[Any],
    limit: int,
) -> int:
    for k, number in enumerate(chunks.numbers.tolist()):
        encoded = chunks.buffer[chunks.offsets[k] : chunks.offsets[k] + chunks.lengths[k]].tobytes()
        body = encoded[:-CHECKSUM]
        if checksum(body) != encoded[-CHECKSUM:]:
            return 8 * k + BAD_CHECKSUM
        if int.from_bytes(body[4:8], "little") != scratch.nbytes:
            return 8 * k + WRONG_SIZE
        try:
            blosc.decompress(body, scratch)
        except (RuntimeError, ValueError):
            return 8 * k + UNDECODABLE
        if chunks.is_delta:
            np.cumsum(scratch, out=scratch)
        begin, end = number * chunks.n_elements, (number + 1) * chunks.n_elements
        for i in range(np.searchsorted(stops, begin, side="right"), np.searchsorted(starts, end, side="left")):
            start, stop = max(int(starts[i]), begin), min(int(stops[i]), end)
            offset = int(offsets[i]) + start - int(starts[i])
            if 0 <= limit <= int(scratch[start - begin : stop - begin].max(initial=0)) and stop > start:
                return 8 * k + TOO_LARGE
            out[offset : offset + stop - start] = scratch[start - begin : stop - begin]
    return OK
