"""Decoding chunks: read, verify and decompress each, and write every range of elements to its offset.

One kernel does all of it without the GIL. `_decode_with_python` does the same through the libraries' Python
interfaces, for builds whose C functions kernels cannot call; tests compare the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from lazypert._internal.kernels import kernel
from lazypert.sparse.transforms import scale_log1p, total
from lazypert.store import native
from lazypert.store.native import call_blosc_decompress, call_blosc_getitem, call_crc32c, call_pread

if TYPE_CHECKING:
    from lazypert.sparse.columns import ColumnSelection

CHECKSUM = 4
"""Bytes of the CRC-32C at the end of a chunk."""

_HEADER = 16
"""Bytes of the header of a Blosc chunk: versions, flags, element size, decoded size, block size, encoded size."""

_HEAD = 512
"""Bytes at the start of a chunk that hold the header and the offsets of up to 124 blocks."""

_STORED_PLAIN = 2
"""Flag of a Blosc chunk that is not compressed and has no block offsets."""

# Kernels return 8 times the position of the damaged chunk plus one of these problems, or `_OK`.
_OK = -1
_BAD_CHECKSUM, _WRONG_SIZE, _UNDECODABLE, _CUT_SHORT, _UNREADABLE = 1, 2, 3, 4, 5
_PROBLEMS = {
    _BAD_CHECKSUM: "the checksum of chunk {number} does not match its bytes",
    _WRONG_SIZE: "chunk {number} decodes to {size:,} bytes, so it belongs to another array",
    _UNDECODABLE: "chunk {number} cannot be decoded",
    _CUT_SHORT: "the file is cut short",
    _UNREADABLE: "the file cannot be read",
}


def checksum(data: Any) -> bytes:
    """CRC-32C of `data`, four bytes, little-endian, as Zarr's ``crc32c`` codec appends it."""
    return int(google_crc32c.value(data)).to_bytes(CHECKSUM, "little")


class EncodedChunks(NamedTuple):
    """Chunks of an array as they are stored, in memory or in open files.

    Attributes
    ----------
    buffer
        Bytes of all chunks; or space for the longest one, if they are in files.
    files
        (n,) descriptor of the file that holds each chunk, -1 for `buffer`. Files need `native.FUNCTIONS`.
    offsets, lengths
        (n,) byte offset of each chunk in its file or in `buffer`, and its size including the checksum.
    numbers
        (n,) numbers of the chunks in the array, ascending.
    n_elements
        Elements of one chunk.
    is_verified
        (n,) whether the checksum of each chunk in a file has been found right. Of such a chunk, only the Blosc blocks
        that are needed are read. Decoding sets it.
    """

    buffer: NDArray[np.uint8]
    files: NDArray[np.int64]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    numbers: NDArray[np.int64]
    n_elements: int
    is_verified: NDArray[np.bool_]


Ranges = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Starts and stops of ranges of elements; both are sorted."""

ChunkDamage = tuple[int, str] | None
"""Position of the first damaged chunk among those given, and what is wrong with it."""


def decode_ranges(
    chunks: EncodedChunks, ranges: Ranges, offsets: NDArray[np.int64], out: NDArray[Any], scratch: NDArray[Any]
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
    """
    # Elements are copied bit for bit, so one kernel per width is enough.
    bits = scratch.view(f"u{scratch.itemsize}")
    out_bits = out.view(f"u{out.itemsize}")
    if not native.are_available():
        return _damage(_decode_with_python(chunks, *ranges, offsets, out_bits, bits), chunks)
    return _damage(_decode_ranges(_addresses(), chunks, *ranges, offsets, out_bits, bits), chunks)


def select_columns(
    chunks: EncodedChunks,
    ranges: Ranges,
    columns: ColumnSelection,
    n_selected: int,
    ends: tuple[NDArray[np.int64], NDArray[np.int64]],
    out: tuple[NDArray[Any], NDArray[np.uint32]],
    scratch: NDArray[Any],
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

    Returns
    -------
    Damage, and the number of elements selected so far.
    """
    status, n_selected = _select_columns(
        _addresses(), chunks, *ranges, columns.lookup, columns.is_selected, n_selected, *ends, *out, scratch
    )
    return _damage(status, chunks), n_selected


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
        _addresses(), chunks, *ranges, n_taken, chunk_ends, chunk_offsets, out, totals, scratch
    )  # fmt: skip
    return _damage(status, chunks)


def scatter_dense(
    chunks: tuple[EncodedChunks, EncodedChunks],
    ranges: Ranges,
    out_rows: NDArray[np.int64],
    columns: ColumnSelection,
    target_sum: float,
    sums: NDArray[np.float64],
    out: NDArray[np.float32],
    scratch: tuple[NDArray[Any], NDArray[Any], NDArray[np.float32]],
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
    """
    *decoded, row = scratch
    index_status, value_status = _scatter_dense(
        _addresses(), *chunks, *ranges, out_rows, columns.lookup, columns.n_columns, target_sum, sums, row, out,
        *decoded,
    )  # fmt: skip
    return _damage(index_status, chunks[0]), _damage(value_status, chunks[1])


def _addresses() -> tuple[np.uintp, ...]:
    functions = native.FUNCTIONS
    assert functions is not None
    return functions.pread, functions.crc32c, functions.blosc_decompress, functions.blosc_getitem


def _damage(status: int, chunks: EncodedChunks) -> ChunkDamage:
    if status == _OK:
        return None
    position, problem = divmod(int(status), 8)
    begin = 0 if chunks.files[position] >= 0 else chunks.offsets[position]
    size = int.from_bytes(bytes(chunks.buffer[begin + 4 : begin + 8]), "little")
    return position, _PROBLEMS[problem].format(number=int(chunks.numbers[position]), size=size)


@kernel
def _ranges_in_chunk(starts: Any, stops: Any, first: Any, begin: Any, stop: Any) -> Any:
    """Ranges that overlap a chunk: the first (searched from `first` on), and the last + 1."""
    while first < len(starts) and stops[first] <= begin:
        first += 1
    last = first
    while last < len(starts) and starts[last] < stop:
        last += 1
    return first, last


@kernel
def _pread(functions: Any, chunks: Any, k: Any, start: Any, stop: Any) -> Any:
    """Read bytes `start` to `stop` of chunk `k` to the same offsets in the buffer: problem or 0."""
    at = start
    while at < stop:
        target = chunks.buffer.ctypes.data + at
        n = call_pread(functions[0], (chunks.files[k], target, stop - at, chunks.offsets[k] + at))
        if n <= 0:
            return _CUT_SHORT if n == 0 else _UNREADABLE
        at += n
    return 0


@kernel
def _read_chunk(functions: Any, chunks: Any, k: Any, itemsize: Any) -> Any:
    """Read and verify chunk `k`: problem or 0, and the offset of its bytes in the buffer."""
    buffer, length, at = chunks.buffer, chunks.lengths[k], chunks.offsets[k]
    if chunks.files[k] >= 0:
        at = np.int64(0)
        problem = _pread(functions, chunks, k, at, length)
        if problem:
            return problem, at
    body, end = buffer[at : at + length - CHECKSUM], buffer[at + length - CHECKSUM : at + length]
    crc = call_crc32c(functions[1], (buffer.ctypes.data + at, len(body)))
    for i in range(CHECKSUM):
        if end[i] != (crc >> np.uint32(8 * i)) & np.uint32(255):
            return _BAD_CHECKSUM, at
    if len(body) < _HEADER:
        return _UNDECODABLE, at
    chunks.is_verified[k] = True
    return (0 if _uint32(body, 4) == chunks.n_elements * itemsize else _WRONG_SIZE), at


@kernel
def _read_head(functions: Any, chunks: Any, k: Any, itemsize: Any) -> Any:
    """Read the header and the block offsets of a verified chunk: whether its blocks can be read one by one."""
    n_bytes = min(chunks.lengths[k] - CHECKSUM, _HEAD)
    if n_bytes < _HEADER or _pread(functions, chunks, k, 0, n_bytes):
        return False
    head = chunks.buffer[:n_bytes]
    n_blocks = -(-_uint32(head, 4) // max(1, _uint32(head, 8)))
    return (
        _uint32(head, 4) == chunks.n_elements * itemsize
        and _uint32(head, 12) == chunks.lengths[k] - CHECKSUM
        and head[2] & _STORED_PLAIN == 0
        and _HEADER + 4 * n_blocks <= n_bytes
    )


@kernel
def _read_blocks(functions: Any, chunks: Any, k: Any, first: Any, last: Any) -> Any:
    """Read Blosc blocks `first` to `last` of a chunk whose head has been read: problem or 0."""
    buffer, n_blocks = chunks.buffer, -(-_uint32(chunks.buffer, 4) // _uint32(chunks.buffer, 8))
    start, stop = _uint32(buffer, _HEADER + 4 * first), chunks.lengths[k] - CHECKSUM
    if last + 1 < n_blocks:
        stop = _uint32(buffer, _HEADER + 4 * (last + 1))
    if not _HEADER + 4 * n_blocks <= start < stop <= chunks.lengths[k] - CHECKSUM:
        return _UNDECODABLE
    return _pread(functions, chunks, k, start, stop)


@kernel
def _uint32(body: Any, at: Any) -> Any:
    return (
        np.int64(body[at]) | np.int64(body[at + 1]) << 8 | np.int64(body[at + 2]) << 16 | np.int64(body[at + 3]) << 24
    )


@kernel
def _decode_chunk(
    functions: Any, chunks: Any, k: Any, starts: Any, stops: Any, first: Any, last: Any, scratch: Any
) -> Any:
    """Read chunk `k`, and decode the elements of ranges `first` to `last` into their places: problem or 0.

    It is verified when it is first read. The Blosc blocks between two ranges are not decoded.
    """
    _, _, decompress, getitem = functions
    size, itemsize, decoded = chunks.n_elements, scratch.itemsize, scratch.ctypes.data
    begin, at = chunks.numbers[k] * size, np.int64(0)
    is_whole = first < last and starts[first] <= begin and stops[first] >= begin + size
    by_block = chunks.is_verified[k] and not is_whole and _read_head(functions, chunks, k, itemsize)
    if not by_block:
        problem, at = _read_chunk(functions, chunks, k, itemsize)
        if problem or first == last:
            return problem
    encoded = chunks.buffer.ctypes.data + at
    block = max(1, _uint32(chunks.buffer[at : at + _HEADER], 8) // itemsize)
    if is_whole or chunks.buffer[at + 3] != itemsize:
        if by_block:
            problem, at = _read_chunk(functions, chunks, k, itemsize)
            if problem:
                return problem
        n_bytes = call_blosc_decompress(decompress, (encoded, decoded, size * itemsize, 1))
        return 0 if n_bytes == size * itemsize else _UNDECODABLE
    low, high = max(starts[first] - begin, 0), min(stops[first] - begin, size)
    for i in range(first + 1, last + 1):
        if i < last and (starts[i] - begin) // block <= (high - 1) // block + 1:
            high = max(high, min(stops[i] - begin, size))
            continue
        problem = _read_blocks(functions, chunks, k, low // block, (high - 1) // block) if by_block else 0
        if problem:
            return problem
        n_bytes = call_blosc_getitem(getitem, (encoded, low, high - low, decoded + low * itemsize))
        if n_bytes != (high - low) * itemsize:
            return _UNDECODABLE
        if i < last:
            low, high = starts[i] - begin, min(stops[i] - begin, size)
    return 0


@kernel
def _decode_ranges(
    functions: Any, chunks: Any, starts: Any, stops: Any, offsets: Any, out: Any, scratch: Any
) -> int:  # fmt: skip
    first = 0
    for k in range(len(chunks.numbers)):
        begin = chunks.numbers[k] * chunks.n_elements
        first, last = _ranges_in_chunk(starts, stops, first, begin, begin + chunks.n_elements)
        problem = _decode_chunk(functions, chunks, k, starts, stops, first, last, scratch)
        if problem:
            return 8 * k + problem
        for i in range(first, last):
            start, stop = max(starts[i], begin), min(stops[i], begin + chunks.n_elements)
            offset = offsets[i] + start - starts[i]
            source, target = scratch[start - begin : stop - begin], out[offset : offset + stop - start]
            for j in range(len(target)):
                target[j] = source[j]
    return _OK


@kernel
def _select_columns(
    functions: Any, chunks: Any, starts: Any, stops: Any, lookup: Any, is_selected: Any, n_selected: Any,
    range_ends: Any, chunk_ends: Any, out_columns: Any, out_offsets: Any, scratch: Any,
) -> Any:  # fmt: skip
    first, mask = 0, np.uint64(len(lookup) - 1)
    for k in range(len(chunks.numbers)):
        begin = chunks.numbers[k] * chunks.n_elements
        first, last = _ranges_in_chunk(starts, stops, first, begin, begin + chunks.n_elements)
        problem = _decode_chunk(functions, chunks, k, starts, stops, first, last, scratch)
        if problem:
            return 8 * k + problem, n_selected
        for i in range(first, last):
            start, stop = max(starts[i], begin), min(stops[i], begin + chunks.n_elements)
            columns, before = scratch[start - begin : stop - begin], n_selected
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
    return _OK, n_selected


@kernel
def _take_selected(
    functions: Any, chunks: Any, starts: Any, stops: Any, n_taken: Any, chunk_ends: Any, chunk_offsets: Any,
    out: Any, totals: Any, scratch: Any,
) -> int:  # fmt: skip
    first = 0
    for k in range(len(chunks.numbers)):
        begin = chunks.numbers[k] * chunks.n_elements
        first, last = _ranges_in_chunk(starts, stops, first, begin, begin + chunks.n_elements)
        problem = _decode_chunk(functions, chunks, k, starts, stops, first, last, scratch)
        if problem:
            return 8 * k + problem
        for i in range(first, last if len(totals) else first):
            start, stop = max(starts[i], begin), min(stops[i], begin + chunks.n_elements)
            totals[i] += total(scratch[start - begin : stop - begin])
        for j in range(n_taken, chunk_ends[k]):
            out[j] = scratch[chunk_offsets[j]]
        n_taken = chunk_ends[k]
    return _OK


@kernel
def _scatter_dense(
    functions: Any, index_chunks: Any, value_chunks: Any, starts: Any, stops: Any, out_rows: Any, lookup: Any,
    n_columns: Any, target_sum: Any, sums: Any, row: Any, out: Any, indices: Any, data: Any,
) -> Any:  # fmt: skip
    first, mask, size = 0, np.uint64(len(lookup) - 1), index_chunks.n_elements
    for k in range(len(index_chunks.numbers)):
        begin = index_chunks.numbers[k] * size
        first, last = _ranges_in_chunk(starts, stops, first, begin, begin + size)
        problem = _decode_chunk(functions, index_chunks, k, starts, stops, first, last, indices)
        if problem:
            return 8 * k + problem, _OK
        problem = _decode_chunk(functions, value_chunks, k, starts, stops, first, last, data)
        if problem:
            return _OK, 8 * k + problem
        for i in range(first, last):
            start, stop = max(starts[i], begin), min(stops[i], begin + size)
            target = out[out_rows[i]]
            if start == starts[i]:
                row[:] = 0
            else:  # the row began in the previous chunk
                for j in range(n_columns):
                    row[j] = target[j]
            columns, values = indices[start - begin : stop - begin], data[start - begin : stop - begin]
            for j in range(len(columns)):  # values that are not selected go to the extra element at the end
                row[np.uint64(lookup[np.uint64(columns[j]) & mask])] = values[j]
            if target_sum > 0:
                sums[i] += total(values)
                if stop == stops[i]:
                    scale_log1p(row[:n_columns], target_sum / sums[i] if sums[i] > 0 else 0.0, row[:n_columns])
            for j in range(n_columns):
                target[j] = row[j]
    return _OK, _OK


def _decode_with_python(
    chunks: EncodedChunks,
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    offsets: NDArray[np.int64],
    out: NDArray[Any],
    scratch: NDArray[Any],
) -> int:
    for k, number in enumerate(chunks.numbers.tolist()):
        encoded = chunks.buffer[chunks.offsets[k] : chunks.offsets[k] + chunks.lengths[k]].tobytes()
        body = encoded[:-CHECKSUM]
        if checksum(body) != encoded[-CHECKSUM:]:
            return 8 * k + _BAD_CHECKSUM
        if int.from_bytes(body[4:8], "little") != scratch.nbytes:
            return 8 * k + _WRONG_SIZE
        try:
            blosc.decompress(body, scratch)
        except (RuntimeError, ValueError):
            return 8 * k + _UNDECODABLE
        begin, end = number * chunks.n_elements, (number + 1) * chunks.n_elements
        for i in range(np.searchsorted(stops, begin, side="right"), np.searchsorted(starts, end, side="left")):
            start, stop = max(int(starts[i]), begin), min(int(stops[i]), end)
            offset = int(offsets[i]) + start - int(starts[i])
            out[offset : offset + stop - start] = scratch[start - begin : stop - begin]
    return _OK
