"""Reading slices of HDF5 datasets without HDF5's global lock.

HDF5 reads, inflates and converts in one thread at a time, however many threads call it. If a dataset is
contiguous, or chunked and either plain or gzip-compressed, its bytes can be read at their file offsets and
inflated in the calling thread; those of a remote file are requested in large ranges. Everything else (other filters,
virtual datasets, fill values) goes through h5py. Both routes give the same values.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from isal import isal_zlib

from lazypert.converter import kernel, open_to_read, read_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Fetch = Callable[[int, int], bytes]

_DEFLATE, _SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE
_DAMAGED: tuple[type[Exception], ...] = (isal_zlib.error, EOFError)  # type: ignore[assignment]  # isal's stub is wrong
RANGE_BYTES, RANGES_AT_ONCE = 8 << 20, 4
"""Bytes of a request for chunks of a remote file, at most, and requests of one task at the same time."""

_GAP_BYTES = 1 << 16  # between chunks that are read in one request
_UNALLOCATED = 2**64 - 1  # HADDR_UNDEF: the chunk was never written


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A box of a dataset's elements, the byte range that holds it, and the filters that were applied to it.

    A chunk of a chunked dataset, or the requested rows of a contiguous one.
    """

    origin: tuple[int, ...]
    shape: tuple[int, ...]
    offset: int
    n_bytes: int
    filters: tuple[int, ...]


def read_slices(node: h5py.Dataset, *slices: slice, fetch: Fetch | None = None) -> NDArray[Any]:
    """Read a box of a numeric dataset, given one slice per dimension.

    Parameters
    ----------
    fetch
        Returns the bytes of a remote file from one offset to another; None for a local file.

    Raises
    ------
    OSError
        If the file is cut short or a chunk is damaged, as HDF5 itself does.
    """
    bounds = [one.indices(n)[:2] for one, n in zip(slices, node.shape, strict=True)]
    origin, shape = tuple(lo for lo, _ in bounds), tuple(max(0, hi - lo) for lo, hi in bounds)
    chunks = _chunks(node, origin, shape, "sec2" if fetch is None else "fileobj")
    if chunks is None:
        values: NDArray[Any] = node[slices]
        return values
    out = np.empty(shape, dtype=node.dtype)
    if fetch is not None:
        _read_remote(fetch, chunks, out, origin)
        return out
    fd = open_to_read(node.file.filename)
    try:
        for chunk in chunks:
            _read_chunk(partial(_fill, fd), chunk, out, origin)
    finally:
        os.close(fd)
    return out


def _chunks(node: h5py.Dataset, origin: tuple[int, ...], shape: tuple[int, ...], driver: str) -> list[_Chunk] | None:
    """Chunks that overlap a box, or None if only HDF5 can read them."""
    created = node.id.get_create_plist()
    filters = [created.get_filter(i)[0] for i in range(created.get_nfilters())]
    # Not every version of HDF5 counts the user block in the offsets of chunks.
    supported = node.dtype.kind in "fiu" and not node.file.userblock_size and node.file.driver == driver
    # HDF5 supports 12-bit integers at a bit offset; NumPy's dtype cannot tell them from 16-bit ones.
    supported = supported and node.id.get_type().equal(h5py.h5t.py_create(node.dtype))
    if not supported or not {*filters} <= {_DEFLATE, _SHUFFLE} or h5py.check_enum_dtype(node.dtype) is not None:
        return None
    if not all(shape):
        return []
    if created.get_layout() == h5py.h5d.CONTIGUOUS and not created.get_external_count():
        offset, row_bytes = node.id.get_offset(), int(np.prod(node.shape[1:])) * node.dtype.itemsize
        if offset is None or shape[1:] != node.shape[1:]:
            return None
        return [_Chunk(origin, shape, offset + origin[0] * row_bytes, shape[0] * row_bytes, ())]
    if created.get_layout() != h5py.h5d.CHUNKED:
        return None
    grid = [range(lo - lo % step, lo + n, step) for lo, n, step in zip(origin, shape, node.chunks, strict=True)]
    chunks = []
    for corner in _corners(grid):
        info = node.id.get_chunk_info_by_coord(corner)
        if info.byte_offset in (None, _UNALLOCATED) or not info.size:
            return None
        applied = tuple(code for i, code in enumerate(filters) if not info.filter_mask >> i & 1)
        chunks.append(_Chunk(corner, node.chunks, info.byte_offset, info.size, applied))
    return chunks


def _corners(grid: list[range]) -> Iterator[tuple[int, ...]]:
    """Yield the product of ranges lazily; `itertools.product` would turn each range into a tuple first."""
    return ((i, *rest) for i in grid[0] for rest in _corners(grid[1:])) if grid else iter([()])


def _read_remote(fetch: Fetch, chunks: list[_Chunk], out: NDArray[Any], origin: tuple[int, ...]) -> None:
    """Read chunks in few requests: neighbours in one, and several requests at the same time."""

    def read(group: list[_Chunk]) -> None:
        first = group[0].offset
        data = np.frombuffer(fetch(first, max(chunk.offset + chunk.n_bytes for chunk in group)), np.uint8)
        for chunk in group:
            _read_chunk(partial(_fill_from, data, first), chunk, out, origin)

    if len(chunks) == 1 and not chunks[0].filters:  # contiguous rows, of any length
        view, offset = out.reshape(-1).view(np.uint8), chunks[0].offset

        def copy(start: int) -> None:
            part = view[start : start + RANGE_BYTES]
            part[:] = np.frombuffer(fetch(offset + start, offset + start + len(part)), np.uint8)

        if chunks[0].n_bytes == len(view):
            with ThreadPoolExecutor(RANGES_AT_ONCE) as pool:
                list(pool.map(copy, range(0, len(view), RANGE_BYTES)))
            return
    with ThreadPoolExecutor(RANGES_AT_ONCE) as pool:
        list(pool.map(read, _neighbours(chunks)))


def _neighbours(chunks: list[_Chunk]) -> list[list[_Chunk]]:
    """Group chunks that lie close together in the file."""
    groups: list[list[_Chunk]] = []
    end = 0
    for chunk in sorted(chunks, key=lambda chunk: chunk.offset):
        stop = chunk.offset + chunk.n_bytes
        if groups and chunk.offset - end <= _GAP_BYTES and stop - groups[-1][0].offset <= RANGE_BYTES:
            groups[-1].append(chunk)
        else:
            groups.append([chunk])
        end = stop
    return groups


def _fill_from(data: NDArray[np.uint8], first: int, out: NDArray[Any], offset: int) -> None:
    n = out.nbytes
    out.view(np.uint8)[:] = data[offset - first : offset - first + n]


def _read_chunk(
    fill: Callable[[NDArray[Any], int], None], chunk: _Chunk, out: NDArray[Any], origin: tuple[int, ...]
) -> None:
    """Copy the overlap of a chunk with ``out`` into it; element 0 of ``out`` is `origin` in the dataset."""
    lows = [max(a, b) for a, b in zip(origin, chunk.origin, strict=True)]
    highs = [min(a + n, b + m) for a, n, b, m in zip(origin, out.shape, chunk.origin, chunk.shape, strict=True)]
    source = tuple(slice(lo - a, hi - a) for lo, hi, a in zip(lows, highs, chunk.origin, strict=True))
    target = out[tuple(slice(lo - a, hi - a) for lo, hi, a in zip(lows, highs, origin, strict=True))]
    if not chunk.filters and out.ndim == 1:
        fill(target, chunk.offset + source[0].start * out.itemsize)
        return
    raw: Any = np.empty(chunk.n_bytes, np.uint8)
    fill(raw, chunk.offset)
    n_bytes = int(np.prod(chunk.shape)) * out.itemsize
    for code in reversed(chunk.filters):
        if code == _DEFLATE:
            raw = np.frombuffer(_inflate(raw, n_bytes), np.uint8)
        elif out.itemsize > 1:
            raw = unshuffle(raw, out.itemsize)
    if len(raw) != n_bytes:
        raise OSError(f"a chunk holds {len(raw):,} bytes, expected {n_bytes:,}")
    target[...] = raw.view(out.dtype).reshape(chunk.shape)[source]


def _fill(fd: int, out: NDArray[Any], offset: int) -> None:
    view = out.view(np.uint8).data
    while len(view):
        n = read_at(fd, view, offset)
        if not n:
            raise OSError(f"the file ends before byte {offset + len(view):,}")
        view, offset = view[n:], offset + n


def _inflate(raw: NDArray[np.uint8], n_bytes: int) -> bytes:
    try:
        inflated: bytes = isal_zlib.decompress(raw.data, bufsize=n_bytes)
    except _DAMAGED as error:
        raise OSError(f"a compressed chunk is damaged ({error})") from error
    return inflated


def unshuffle(raw: NDArray[np.uint8], item_bytes: int) -> NDArray[np.uint8]:
    """Undo HDF5's shuffle filter, which stores the first byte of every element, then the second, and so on."""
    out = np.empty_like(raw)
    _unshuffle(raw, item_bytes, out)
    return out


@kernel
def _unshuffle(raw: Any, item_bytes: int, out: Any) -> None:
    n = len(raw) // item_bytes
    for byte in range(item_bytes):
        for i in range(n):
            out[i * item_bytes + byte] = raw[byte * n + i]
    for k in range(n * item_bytes, len(raw)):  # the filter leaves trailing bytes of an incomplete element alone
        out[k] = raw[k]
