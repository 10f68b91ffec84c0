"""Encoded chunks, in memory or in files: reading, verifying and decompressing one of them in a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import google_crc32c
import numpy as np

from lazypert._internal.kernels import kernel
from lazypert.store.native import call_blosc_decompress, call_blosc_getitem, call_crc32c, call_pread
from lazypert.store.prefix_sum import add_up

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHECKSUM = 4
"""Bytes of the CRC-32C at the end of a chunk."""

_HEADER = 16
"""Bytes of the header of a Blosc chunk: versions, flags, element size, decoded size, block size, encoded size."""

_HEAD = 512
"""Bytes at the start of a chunk that hold the header and the offsets of up to 124 blocks."""

_STORED_PLAIN = 2
"""Flag of a Blosc chunk that is not compressed and has no block offsets."""

# Kernels return 8 times the position of the damaged chunk plus one of these problems, or `OK`.
OK = -1
BAD_CHECKSUM, WRONG_SIZE, UNDECODABLE, _CUT_SHORT, _UNREADABLE, TOO_LARGE = 1, 2, 3, 4, 5, 6
UNREADABLE = "the file cannot be read"
"""Problem of the machine, not of the chunk."""

PROBLEMS = {
    BAD_CHECKSUM: "the checksum of chunk {number} does not match its bytes",
    WRONG_SIZE: "chunk {number} decodes to {size:,} bytes, so it belongs to another array",
    UNDECODABLE: "chunk {number} cannot be decoded",
    _CUT_SHORT: "the file is cut short",
    _UNREADABLE: UNREADABLE,
    TOO_LARGE: "chunk {number} holds a number of a column that does not exist",
}


ChunkDamage = tuple[int, str] | None
"""Position of the first damaged chunk among those given, and what is wrong with it."""


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
    is_delta
        Whether chunks hold the difference of each element to the one before it.
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
    is_delta: bool
    is_verified: NDArray[np.bool_]


def chunk_damage(status: int, chunks: EncodedChunks) -> ChunkDamage:
    """Say what the status of a kernel means."""
    if status == OK:
        return None
    position, problem = divmod(int(status), 8)
    begin = 0 if chunks.files[position] >= 0 else chunks.offsets[position]
    size = int.from_bytes(bytes(chunks.buffer[begin + 4 : begin + 8]), "little")
    return position, PROBLEMS[problem].format(number=int(chunks.numbers[position]), size=size)


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
            return BAD_CHECKSUM, at
    if len(body) < _HEADER:
        return UNDECODABLE, at
    chunks.is_verified[k] = True
    return (0 if _uint32(body, 4) == chunks.n_elements * itemsize else WRONG_SIZE), at


@kernel
def _read_head(functions: Any, chunks: Any, k: Any, itemsize: Any) -> Any:
    """Read the header and the block offsets of a verified chunk: whether its blocks can be read one by one."""
    n_bytes = min(chunks.lengths[k] - CHECKSUM, _HEAD)
    if n_bytes < _HEADER or _pread(functions, chunks, k, 0, n_bytes):
        return False
    head = chunks.buffer[:n_bytes]
    n_blocks = -(-_uint32(head, 4) // max(1, _uint32(head, 8)))
    if _HEADER + 4 * n_blocks > n_bytes:
        return False
    for block in range(1, n_blocks):  # C-Blosc's threads may store blocks in any order
        if _uint32(head, _HEADER + 4 * block) <= _uint32(head, _HEADER + 4 * (block - 1)):
            return False
    return (
        _uint32(head, 4) == chunks.n_elements * itemsize
        and _uint32(head, 12) == chunks.lengths[k] - CHECKSUM
        and head[2] & _STORED_PLAIN == 0
    )


@kernel
def _read_blocks(functions: Any, chunks: Any, k: Any, first: Any, last: Any) -> Any:
    """Read Blosc blocks `first` to `last` of a chunk whose head has been read: problem or 0."""
    buffer, n_blocks = chunks.buffer, -(-_uint32(chunks.buffer, 4) // _uint32(chunks.buffer, 8))
    start, stop = _uint32(buffer, _HEADER + 4 * first), chunks.lengths[k] - CHECKSUM
    if last + 1 < n_blocks:
        stop = _uint32(buffer, _HEADER + 4 * (last + 1))
    if not _HEADER + 4 * n_blocks <= start < stop <= chunks.lengths[k] - CHECKSUM:
        return UNDECODABLE
    return _pread(functions, chunks, k, start, stop)


@kernel
def _uint32(body: Any, at: Any) -> Any:
    return (
        np.int64(body[at]) | np.int64(body[at + 1]) << 8 | np.int64(body[at + 2]) << 16 | np.int64(body[at + 3]) << 24
    )


@kernel
def decode_chunk(
    functions: Any, chunks: Any, k: Any, starts: Any, stops: Any, first: Any, last: Any, scratch: Any
) -> Any:
    """Read chunk `k`, and decode the elements of ranges `first` to `last` into their places: problem or 0.

    It is verified when it is first read. The Blosc blocks between two ranges are not decoded; of differences, all
    blocks up to the last range are.
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
        if n_bytes != size * itemsize:
            return UNDECODABLE
        if chunks.is_delta:
            add_up(scratch)
        return 0
    if chunks.is_delta:
        high = min(stops[last - 1] - begin, size)
        problem = _read_blocks(functions, chunks, k, 0, (high - 1) // block) if by_block else 0
        if problem:
            return problem
        if call_blosc_getitem(getitem, (encoded, 0, high, decoded)) != high * itemsize:
            return UNDECODABLE
        add_up(scratch[:high])
        return 0
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
            return UNDECODABLE
        if i < last:
            low, high = starts[i] - begin, min(stops[i] - begin, size)
    return 0


@kernel
def overlapping(starts: Any, stops: Any, first: Any, begin: Any, stop: Any) -> Any:
    """Ranges that overlap a chunk: the first (searched from `first` on), and the last + 1."""
    while first < len(starts) and stops[first] <= begin:
        first += 1
    last = first
    while last < len(starts) and starts[last] < stop:
        last += 1
    return first, last


@kernel
def exceed(values: Any, limit: Any) -> Any:
    """Whether one of the unsigned values is not below the limit, if there is one."""
    if limit < 0 or len(values) == 0:
        return False
    largest = values[0]
    for j in range(len(values)):  # finds the largest instead of stopping early, so that the loop is vectorised
        if values[j] > largest:
            largest = values[j]
    return largest >= np.uint64(limit)
