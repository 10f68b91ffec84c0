"""Decoding the chunks of a shard: read, check, decode what is wanted, and put each range in its place.

One kernel does it all without the GIL. `_decode_plain` is the same through the libraries' Python
interfaces, for builds whose functions cannot be called from kernels; the tests hold one to the other.
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


class Chunks(NamedTuple):
    """Some chunks as they are stored.

    Attributes
    ----------
    packed
        Bytes of the chunks; or room for the longest one, where they are in files.
    file
        (n,) descriptor of the file that each chunk is in; -1 for `packed`. Files need `native.FUNCTIONS`.
    at, length
        (n,) where each chunk is in its file or in `packed`, and its bytes with the checksum.
    number
        (n,) numbers of the chunks, ascending.
    size
        Elements of a chunk.
    """

    packed: NDArray[np.uint8]
    file: NDArray[np.int64]
    at: NDArray[np.int64]
    length: NDArray[np.int64]
    number: NDArray[np.int64]
    size: int


Ranges = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Starts and stops of ranges of elements; neither descend."""

Damage = tuple[int, str] | None
"""The first chunk that is damaged, counted from 0, and what is wrong with it."""


def decode(
    chunks: Chunks, ranges: Ranges, places: NDArray[np.int64], out: NDArray[Any], scratch: NDArray[Any]
) -> Damage:
    """Decode what ranges want of some chunks.

    Parameters
    ----------
    places
        Where in `out` each range begins.
    out
        Where to; integers of the array's width, or narrower.
    scratch
        (chunk,) of the array's dtype.
    """
    # Elements are copied bit for bit, so one kernel for each width does.
    bits = scratch.view(f"u{scratch.itemsize}")
    into = out.view(f"u{out.itemsize}")
    if native.FUNCTIONS is None:
        return _damage(_decode_plain(chunks, *ranges, places, into, bits), chunks)
    return _damage(_decode(_addresses(), chunks, *ranges, places, into, bits), chunks)


def select(
    chunks: Chunks,
    ranges: Ranges,
    columns: ColumnSelection,
    kept: int,
    upto: tuple[NDArray[np.int64], NDArray[np.int64]],
    out: tuple[NDArray[Any], NDArray[np.uint32]],
    scratch: NDArray[Any],
) -> tuple[Damage, int]:
    """Decode column numbers, and keep those that are wanted. Needs `native.FUNCTIONS`.

    Parameters
    ----------
    kept
        How many were kept before.
    upto
        How many are kept up to the end of each range, and of each chunk: written here.
    out
        Output column of each that is kept, and its place in its chunk; written from `kept` on.

    Returns
    -------
    Damage, and how many are kept by now.
    """
    found, kept = _select(
        _addresses(), chunks, *ranges, columns.lookup, columns.keeps, kept, *upto, *out, scratch
    )  # fmt: skip
    return _damage(found, chunks), kept


def pick(
    chunks: Chunks,
    ranges: Ranges,
    first: int,
    upto_chunk: NDArray[np.int64],
    places: NDArray[np.uint32],
    out: NDArray[Any],
    totals: NDArray[np.float64],
    scratch: NDArray[Any],
) -> Damage:
    """Decode values, and take those whose columns `select` kept. Needs `native.FUNCTIONS`.

    Parameters
    ----------
    first, upto_chunk, places
        What was kept before these chunks, up to the end of each, and where in it.
    out
        Where to, from `first` on.
    totals
        The sum of each range is added here; empty when they are not wanted.
    """
    found = _pick(_addresses(), chunks, *ranges, first, upto_chunk, places, out, totals, scratch)
    return _damage(found, chunks)


def scatter(
    chunks: tuple[Chunks, Chunks],
    ranges: Ranges,
    places: NDArray[np.int64],
    columns: ColumnSelection,
    target_sum: float,
    sums: NDArray[np.float64],
    row: NDArray[np.float32],
    out: NDArray[np.float32],
    scratch: tuple[NDArray[Any], NDArray[Any]],
) -> tuple[Damage, Damage]:
    """Decode column numbers and values, and write the wanted columns of rows, dense. Needs `native.FUNCTIONS`.

    Parameters
    ----------
    chunks, scratch
        Of column numbers, and of values.
    places
        Row of `out` for each range.
    sums
        Sum of each row so far, for those that go on in the next chunks.
    row
        Memory for one row, and one value more.
    """
    of_indices, of_data = _scatter(
        _addresses(), *chunks, *ranges, places, columns.lookup, columns.n_columns, target_sum, sums, row, out, *scratch
    )
    return _damage(of_indices, chunks[0]), _damage(of_data, chunks[1])


def _addresses() -> tuple[np.uintp, ...]:
    functions = native.FUNCTIONS
    assert functions is not None
    return functions.pread, functions.crc32c, functions.blosc_decompress, functions.blosc_getitem


def _damage(found: int, chunks: Chunks) -> Damage:
    if found == _FINE:
        return None
    which, problem = divmod(int(found), 8)
    begin = 0 if chunks.file[which] >= 0 else chunks.at[which]
    held = int.from_bytes(bytes(chunks.packed[begin + 4 : begin + 8]), "little")
    return which, PROBLEMS[problem].format(number=int(chunks.number[which]), held=held)


@kernel
def _wanted(starts: Any, stops: Any, first: Any, begin: Any, stop: Any) -> Any:
    """From the first range that may want something of a chunk: first, last + 1, and the span that they want."""
    while first < len(starts) and stops[first] <= begin:
        first += 1
    low, high, last = stop, begin, first
    while last < len(starts) and starts[last] < stop:
        low, high = min(low, max(starts[last], begin)), max(high, min(stops[last], stop))
        last += 1
    return first, last, low, high


@kernel
def _unpack(functions: Any, chunks: Any, k: Any, low: Any, high: Any, scratch: Any) -> Any:
    """Read and check chunk `k`, and decode elements ``low`` to ``high``: problem, and the span that is decoded."""
    pread, crc32c, decompress, getitem = functions
    packed, length, size = chunks.packed, chunks.length[k], scratch.itemsize
    base, decoded = packed.ctypes.data, scratch.ctypes.data
    place, done = chunks.at[k], np.int64(0)
    if chunks.file[k] >= 0:
        place = 0
        while done < length:
            got = call_pread(pread, (chunks.file[k], base + done, length - done, chunks.at[k] + done))
            if got <= 0:
                return (4 if got == 0 else 5), low, high
            done += got
    body, end = packed[place : place + length - CHECKSUM], packed[place + length - CHECKSUM : place + length]
    found = call_crc32c(crc32c, (base + place, len(body)))
    for i in range(CHECKSUM):
        if end[i] != (found >> np.uint32(8 * i)) & np.uint32(255):
            return 1, low, high
    # A chunk of blosc begins with 16 bytes: versions, flags, size of an element, and of the whole.
    if len(body) < 16:
        return 3, low, high
    held = np.int64(body[4]) | np.int64(body[5]) << 8 | np.int64(body[6]) << 16 | np.int64(body[7]) << 24
    if held != chunks.size * size:
        return 2, low, high
    if high <= low:
        return 0, low, high
    begin = chunks.number[k] * chunks.size
    if high - low == chunks.size or body[3] != size:
        low, high = begin, begin + chunks.size
        n_bytes = call_blosc_decompress(decompress, (base + place, decoded, chunks.size * size, 1))
    else:
        n_bytes = call_blosc_getitem(getitem, (base + place, low - begin, high - low, decoded))
    return (0 if n_bytes == (high - low) * size else 3), low, high


@kernel
def _decode(
    functions: Any, chunks: Any, starts: Any, stops: Any, places: Any, out: Any, scratch: Any
) -> int:  # fmt: skip
    first = 0
    for k in range(len(chunks.number)):
        begin = chunks.number[k] * chunks.size
        first, last, low, high = _wanted(starts, stops, first, begin, begin + chunks.size)
        problem, low, high = _unpack(functions, chunks, k, low, high, scratch)
        if problem:
            return 8 * k + problem
        for i in range(first, last):
            start, stop = max(starts[i], low), min(stops[i], high)
            place = places[i] + start - starts[i]
            wanted, into = scratch[start - low : stop - low], out[place : place + stop - start]
            for j in range(len(into)):
                into[j] = wanted[j]
    return _FINE


@kernel
def _select(
    functions: Any, chunks: Any, starts: Any, stops: Any, lookup: Any, keeps: Any, kept: Any,
    upto_range: Any, upto_chunk: Any, out_columns: Any, out_places: Any, scratch: Any,
) -> Any:  # fmt: skip
    first, mask = 0, np.uint64(len(lookup) - 1)
    for k in range(len(chunks.number)):
        begin = chunks.number[k] * chunks.size
        first, last, low, high = _wanted(starts, stops, first, begin, begin + chunks.size)
        problem, low, high = _unpack(functions, chunks, k, low, high, scratch)
        if problem:
            return 8 * k + problem, kept
        for i in range(first, last):
            start, stop = max(starts[i], low), min(stops[i], high)
            wanted, before = scratch[start - low : stop - low], kept
            at = np.uint64(kept)  # unsigned: no index can count from the end
            for j in range(len(wanted)):
                out_places[at] = j
                at += np.uint64(keeps[np.uint64(wanted[j]) & mask])  # else the next one takes its place
            kept = np.int64(at)
            for j in range(before, kept):
                out_columns[j] = lookup[np.uint64(wanted[out_places[j]]) & mask]
                out_places[j] += np.uint32(start - begin)
            upto_range[i] = kept
        upto_chunk[k] = kept
    return _FINE, kept


@kernel
def _pick(
    functions: Any, chunks: Any, starts: Any, stops: Any, kept: Any, upto_chunk: Any, places: Any,
    out: Any, totals: Any, scratch: Any,
) -> int:  # fmt: skip
    first = 0
    for k in range(len(chunks.number)):
        begin = chunks.number[k] * chunks.size
        first, last, low, high = _wanted(starts, stops, first, begin, begin + chunks.size)
        problem, low, high = _unpack(functions, chunks, k, low, high, scratch)
        if problem:
            return 8 * k + problem
        for i in range(first, last if len(totals) else first):
            totals[i] += total(scratch[max(starts[i], low) - low : min(stops[i], high) - low])
        for j in range(kept, upto_chunk[k]):
            out[j] = scratch[places[j] + begin - low]
        kept = upto_chunk[k]
    return _FINE


@kernel
def _scatter(
    functions: Any, of_indices: Any, of_data: Any, starts: Any, stops: Any, places: Any, lookup: Any, n_columns: Any,
    target_sum: Any, sums: Any, row: Any, out: Any, indices: Any, data: Any,
) -> Any:  # fmt: skip
    first, mask, size = 0, np.uint64(len(lookup) - 1), of_indices.size
    for k in range(len(of_indices.number)):
        begin = of_indices.number[k] * size
        first, last, low, high = _wanted(starts, stops, first, begin, begin + size)
        problem, low_index, _ = _unpack(functions, of_indices, k, low, high, indices)
        if problem:
            return 8 * k + problem, _FINE
        problem, low_value, _ = _unpack(functions, of_data, k, low, high, data)
        if problem:
            return _FINE, 8 * k + problem
        for i in range(first, last):
            start, stop = max(starts[i], begin), min(stops[i], begin + size)
            into = out[places[i]]
            if start == starts[i]:
                row[:] = 0
            else:  # it began in the chunk before
                for j in range(n_columns):
                    row[j] = into[j]
            columns, values = indices[start - low_index : stop - low_index], data[start - low_value : stop - low_value]
            for j in range(len(columns)):  # what is left out goes to the place beyond the last
                row[np.uint64(lookup[np.uint64(columns[j]) & mask])] = values[j]
            if target_sum > 0:
                sums[i] += total(values)
                if stop == stops[i]:
                    scale_log1p(row[:n_columns], target_sum / sums[i] if sums[i] > 0 else 0.0, row[:n_columns])
            for j in range(n_columns):
                into[j] = row[j]
    return _FINE, _FINE


def _decode_plain(
    chunks: Chunks,
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    places: NDArray[np.int64],
    out: NDArray[Any],
    scratch: NDArray[Any],
) -> int:
    for k, number in enumerate(chunks.number.tolist()):
        piece = chunks.packed[chunks.at[k] : chunks.at[k] + chunks.length[k]].tobytes()
        body = piece[:-CHECKSUM]
        if checksum(body) != piece[-CHECKSUM:]:
            return 8 * k + 1
        if int.from_bytes(body[4:8], "little") != scratch.nbytes:
            return 8 * k + 2
        try:
            blosc.decompress(body, scratch)
        except (RuntimeError, ValueError):
            return 8 * k + 3
        begin, stop = number * chunks.size, (number + 1) * chunks.size
        for i in range(np.searchsorted(stops, begin, side="right"), np.searchsorted(starts, stop, side="left")):
            start, end = max(int(starts[i]), begin), min(int(stops[i]), stop)
            place = int(places[i]) + start - int(starts[i])
            out[place : place + end - start] = scratch[start - begin : end - begin]
    return _FINE
