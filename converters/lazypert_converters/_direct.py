"""Parts of HDF5 datasets, read past HDF5's global lock.

HDF5 reads, inflates and converts in one thread at a time, whatever the number of callers. Where a
dataset lies in its file as it is (contiguous), or in chunks that are plain or gzip-compressed, its
bytes can be read at their offsets and inflated in the caller's thread. Everything else (other
filters, views, fill values) goes the ordinary way; both give the same values.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from isal import isal_zlib

from lazypert.converter import kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_DEFLATE, _SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE
_DAMAGED: tuple[type[Exception], ...] = (isal_zlib.error, EOFError)  # type: ignore[assignment]  # a fault of its stub
_NOWHERE = 2**64 - 1  # HADDR_UNDEF: nothing was written there


@dataclass(frozen=True, slots=True)
class _Piece:
    """A box of a dataset's elements: where its bytes are in the file, and what was done to them."""

    first: tuple[int, ...]
    shape: tuple[int, ...]
    offset: int
    size: int
    filters: tuple[int, ...]


def read_part(node: h5py.Dataset, *parts: slice) -> NDArray[Any]:
    """Part of a dataset of numbers, one slice a dimension.

    Raises
    ------
    OSError
        When the file is cut short or a chunk is damaged, as HDF5 itself does.
    """
    bounds = [part.indices(n)[:2] for part, n in zip(parts, node.shape, strict=True)]
    start, shape = tuple(lo for lo, _ in bounds), tuple(max(0, hi - lo) for lo, hi in bounds)
    pieces = _pieces(node, start, shape)
    if pieces is None:
        values: NDArray[Any] = node[parts]
        return values
    out = np.empty(shape, dtype=node.dtype)
    fd = os.open(os.fsencode(node.file.filename), os.O_RDONLY)
    try:
        for piece in pieces:
            _read_piece(fd, piece, out, start)
    finally:
        os.close(fd)
    return out


def _pieces(node: h5py.Dataset, start: tuple[int, ...], shape: tuple[int, ...]) -> list[_Piece] | None:
    """Where the elements are, or None when HDF5 must read them."""
    created = node.id.get_create_plist()
    filters = [created.get_filter(i)[0] for i in range(created.get_nfilters())]
    # Offsets of chunks do not count a user block in every version of HDF5.
    ordinary = node.dtype.kind in "fiu" and not node.file.userblock_size and node.file.driver == "sec2"
    # HDF5 knows integers of 12 bits at an offset, which NumPy's dtype does not tell from those of 16.
    ordinary = ordinary and node.id.get_type().equal(h5py.h5t.py_create(node.dtype))
    if not ordinary or not {*filters} <= {_DEFLATE, _SHUFFLE} or h5py.check_enum_dtype(node.dtype) is not None:
        return None
    if not all(shape):
        return []
    if created.get_layout() == h5py.h5d.CONTIGUOUS and not created.get_external_count():
        offset, width = node.id.get_offset(), int(np.prod(node.shape[1:])) * node.dtype.itemsize
        if offset is None or shape[1:] != node.shape[1:]:
            return None
        return [_Piece(start, shape, offset + start[0] * width, shape[0] * width, ())]
    if created.get_layout() != h5py.h5d.CHUNKED:
        return None
    boxes = [range(lo - lo % step, lo + n, step) for lo, n, step in zip(start, shape, node.chunks, strict=True)]
    pieces = []
    for first in _corners(boxes):
        info = node.id.get_chunk_info_by_coord(first)
        if info.byte_offset in (None, _NOWHERE) or not info.size:
            return None
        applied = tuple(code for i, code in enumerate(filters) if not info.filter_mask >> i & 1)
        pieces.append(_Piece(first, node.chunks, info.byte_offset, info.size, applied))
    return pieces


def _corners(boxes: list[range]) -> Iterator[tuple[int, ...]]:
    """Every combination, one after another: `itertools.product` would make lists of ranges of any length."""
    return ((i, *rest) for i in boxes[0] for rest in _corners(boxes[1:])) if boxes else iter([()])


def _read_piece(fd: int, piece: _Piece, out: NDArray[Any], start: tuple[int, ...]) -> None:
    """Put what a piece has of ``out``, whose first element is `start` of the dataset, in its place."""
    lows = [max(a, b) for a, b in zip(start, piece.first, strict=True)]
    highs = [min(a + n, b + m) for a, n, b, m in zip(start, out.shape, piece.first, piece.shape, strict=True)]
    inside = tuple(slice(lo - a, hi - a) for lo, hi, a in zip(lows, highs, piece.first, strict=True))
    place = out[tuple(slice(lo - a, hi - a) for lo, hi, a in zip(lows, highs, start, strict=True))]
    if not piece.filters and out.ndim == 1:
        _fill(fd, place, piece.offset + inside[0].start * out.itemsize)
        return
    raw: Any = np.empty(piece.size, np.uint8)
    _fill(fd, raw, piece.offset)
    size = int(np.prod(piece.shape)) * out.itemsize
    for code in reversed(piece.filters):
        if code == _DEFLATE:
            raw = np.frombuffer(_inflate(raw, size), np.uint8)
        elif out.itemsize > 1:
            raw = unshuffle(raw, out.itemsize)
    if len(raw) != size:
        raise OSError(f"a chunk holds {len(raw):,} bytes, expected {size:,}")
    place[...] = raw.view(out.dtype).reshape(piece.shape)[inside]


def _fill(fd: int, out: NDArray[Any], offset: int) -> None:
    view = out.view(np.uint8).data
    while len(view):
        n = os.preadv(fd, [view], offset)
        if not n:
            raise OSError(f"the file ends before byte {offset + len(view):,}")
        view, offset = view[n:], offset + n


def _inflate(raw: NDArray[np.uint8], size: int) -> bytes:
    try:
        inflated: bytes = isal_zlib.decompress(raw.data, bufsize=size)
    except _DAMAGED as error:
        raise OSError(f"a compressed chunk is damaged ({error})") from error
    return inflated


def unshuffle(raw: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Undo HDF5's shuffle filter, which stores the first bytes of all elements, then the second ones, and so on."""
    out = np.empty_like(raw)
    _unshuffle(raw, size, out)
    return out


@kernel
def _unshuffle(raw: Any, size: int, out: Any) -> None:
    n = len(raw) // size
    for byte in range(size):
        for i in range(n):
            out[i * size + byte] = raw[byte * n + i]
    for k in range(n * size, len(raw)):  # bytes past the last whole element stay where they are
        out[k] = raw[k]
