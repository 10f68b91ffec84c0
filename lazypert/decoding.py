"""Decoding the chunks of a shard: read, check, decode what is wanted, and put each range in its place.

One kernel does it all without the GIL. `_decode_plain` is the same through the libraries' Python
interfaces, for builds whose functions cannot be called from kernels; the tests hold one to the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
from numcodecs import blosc

from lazypert import native
from lazypert.csr import kernel
from lazypert.native import call_blosc_decompress, call_blosc_getitem, call_crc32c, call_pread

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHECKSUM = 4
"""Bytes of the CRC-32C at the end of a chunk."""

PROBLEMS = {
    1: "the checksum of chunk {number} does not match its bytes",
    2: "chunk {number} holds {held:,} bytes, which are those of another array",
    3: "chunk {number} cannot be decoded",
    4: "the file is cut short",
    5: "the file cannot be read",
}

_FINE = -1


def checksum(data: Any) -> bytes:
    """CRC-32C of `data`, four bytes, little-endian, as Zarr's ``crc32c`` codec appends it."""
    return int(google_crc32c.value(data)).to_bytes(CHECKSUM, "little")


def decode(
    packed: NDArray[np.uint8],
    file: NDArray[np.int64],
    at: NDArray[np.int64],
    length: NDArray[np.int64],
    number: NDArray[np.int64],
    chunk: int,
    ranges: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    out: NDArray[Any],
    scratch: NDArray[Any],
) -> tuple[int, str] | None:
    """Decode what ranges want of some chunks.

    Parameters
    ----------
    packed
        Bytes of the chunks; or room for the longest one, where they are in files.
    file
        (n_chunks,) descriptor of the file that each chunk is in; -1 for `packed`. Files need
        `native.FUNCTIONS`.
    at, length
        (n_chunks,) where each chunk is in its file or in `packed`, and its bytes with the checksum.
    number
        (n_chunks,) numbers of the chunks, ascending.
    chunk
        Elements of a chunk.
    ranges
        Starts and stops, not descending, of ranges of elements, and where in `out` each begins.
    out
        Where to; integers of the array's width, or narrower.
    scratch
        (chunk,) of the array's dtype.

    Returns
    -------
    The first chunk that is damaged, counted from 0, and what is wrong with it; or None.
    """
    functions = native.FUNCTIONS
    # Elements are copied bit for bit, so one kernel for each width does.
    bits = scratch.view(f"u{scratch.itemsize}")
    into = out.view(f"u{out.itemsize}")
    if functions is None:
        found = _decode_plain(packed, at, length, number, chunk, *ranges, into, bits)
    else:
        addresses = (functions.pread, functions.crc32c, functions.blosc_decompress, functions.blosc_getitem)
        found = _decode(addresses, packed, file, at, length, number, chunk, *ranges, into, bits)
    if found == _FINE:
        return None
    which, problem = divmod(int(found), 8)
    begin = 0 if file[which] >= 0 else at[which]
    held = int.from_bytes(bytes(packed[begin + 4 : begin + 8]), "little")
    return which, PROBLEMS[problem].format(number=int(number[which]), held=held)


@kernel
def _decode(
    functions: Any, packed: Any, file: Any, at: Any, length: Any, number: Any, chunk: Any,
    starts: Any, stops: Any, places: Any, out: Any, scratch: Any,
) -> int:  # fmt: skip
    pread, crc32c, decompress, getitem = functions
    base, decoded, size = packed.ctypes.data, scratch.ctypes.data, scratch.itemsize
    first = 0
    for k in range(len(number)):
        begin_at = np.int64(0) if file[k] >= 0 else at[k]
        done = np.int64(0)
        while file[k] >= 0 and done < length[k]:
            got = call_pread(pread, (file[k], base + done, length[k] - done, at[k] + done))
            if got <= 0:
                return 8 * k + (4 if got == 0 else 5)
            done += got
        body = packed[begin_at : begin_at + length[k] - CHECKSUM]
        end = packed[begin_at + length[k] - CHECKSUM : begin_at + length[k]]
        found = call_crc32c(crc32c, (base + begin_at, len(body)))
        for i in range(CHECKSUM):
            if end[i] != (found >> np.uint32(8 * i)) & np.uint32(255):
                return 8 * k + 1
        # A chunk of blosc begins with 16 bytes: versions, flags, size of an element, and of the whole.
        if len(body) < 16:
            return 8 * k + 3
        held = np.int64(body[4]) | np.int64(body[5]) << 8 | np.int64(body[6]) << 16 | np.int64(body[7]) << 24
        if held != chunk * size:
            return 8 * k + 2
        begin, stop = number[k] * chunk, (number[k] + 1) * chunk
        while first < len(starts) and stops[first] <= begin:
            first += 1
        low, high, last = stop, begin, first
        while last < len(starts) and starts[last] < stop:
            low, high = min(low, max(starts[last], begin)), max(high, min(stops[last], stop))
            last += 1
        if high <= low:
            continue
        if high - low == chunk or body[3] != size:
            low, high = begin, stop
            n_bytes = call_blosc_decompress(decompress, (base + begin_at, decoded, chunk * size, 1))
        else:
            n_bytes = call_blosc_getitem(getitem, (base + begin_at, low - begin, high - low, decoded))
        if n_bytes != (high - low) * size:
            return 8 * k + 3
        for i in range(first, last):
            start, end_ = max(starts[i], low), min(stops[i], high)
            place = places[i] + start - starts[i]
            wanted, into = scratch[start - low : end_ - low], out[place : place + end_ - start]
            for j in range(len(into)):
                into[j] = wanted[j]
    return _FINE


def _decode_plain(
    packed: NDArray[np.uint8], at: NDArray[np.int64], length: NDArray[np.int64], number: NDArray[np.int64], chunk: int,
    starts: NDArray[np.int64], stops: NDArray[np.int64], places: NDArray[np.int64], out: NDArray[Any],
    scratch: NDArray[Any],
) -> int:  # fmt: skip
    for k in range(len(number)):
        piece = packed[at[k] : at[k] + length[k]].tobytes()
        body = piece[:-CHECKSUM]
        if checksum(body) != piece[-CHECKSUM:]:
            return 8 * k + 1
        if int.from_bytes(body[4:8], "little") != scratch.nbytes:
            return 8 * k + 2
        try:
            blosc.decompress(body, scratch)
        except (RuntimeError, ValueError):
            return 8 * k + 3
        begin, stop = int(number[k]) * chunk, (int(number[k]) + 1) * chunk
        for i in range(np.searchsorted(stops, begin, side="right"), np.searchsorted(starts, stop, side="left")):
            start, end = max(int(starts[i]), begin), min(int(stops[i]), stop)
            place = int(places[i]) + start - int(starts[i])
            out[place : place + end - start] = scratch[start - begin : end - begin]
    return _FINE
