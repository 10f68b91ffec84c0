"""Ranges of HDF5 datasets, read past HDF5's global lock.

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

from lazypert.csr import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DEFLATE, _SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE
_DAMAGED: tuple[type[Exception], ...] = (isal_zlib.error, EOFError)  # type: ignore[assignment]  # a fault of its stub
_NOWHERE = 2**64 - 1  # HADDR_UNDEF: nothing was written there


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some neighbouring elements of a dataset: where they are in the file, and what was done to them."""

    first: int
    count: int
    offset: int
    size: int
    filters: tuple[int, ...]


def read_range(node: h5py.Dataset, start: int, stop: int) -> NDArray[Any]:
    """Elements ``start`` to ``stop`` of a one-dimensional numeric dataset.

    Raises
    ------
    OSError
        When the file is cut short or a chunk is damaged, as HDF5 itself does.
    """
    pieces = _pieces(node, start, stop)
    if pieces is None:
        values: NDArray[Any] = node[start:stop]
        return values
    out = np.empty(stop - start, dtype=node.dtype)
    fd = os.open(os.fsencode(node.file.filename), os.O_RDONLY)
    try:
        for piece in pieces:
            lo, hi = max(start, piece.first), min(stop, piece.first + piece.count)
            _read_piece(fd, piece, out[lo - start : hi - start], lo - piece.first)
    finally:
        os.close(fd)
    return out


def _pieces(node: h5py.Dataset, start: int, stop: int) -> list[_Piece] | None:
    """Where the elements are, or None when HDF5 must read them."""
    plist = node.id.get_create_plist()
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    plain = type(node.dtype) is not np.dtypes.BoolDType and node.dtype.kind in "fiu" and node.ndim == 1
    # Offsets of chunks do not count a user block in every version of HDF5.
    if not plain or node.file.userblock_size or node.file.driver != "sec2" or not {*filters} <= {_DEFLATE, _SHUFFLE}:
        return None
    if plist.get_layout() == h5py.h5d.CONTIGUOUS and not plist.get_external_count():
        offset = node.id.get_offset()
        size = node.dtype.itemsize
        return (
            None if offset is None else [_Piece(start, stop - start, offset + start * size, (stop - start) * size, ())]
        )
    if plist.get_layout() != h5py.h5d.CHUNKED:
        return None
    length = node.chunks[0]
    pieces = []
    for first in range(start - start % length, stop, length):
        info = node.id.get_chunk_info_by_coord((first,))
        if info.byte_offset in (None, _NOWHERE) or not info.size:
            return None
        applied = tuple(code for i, code in enumerate(filters) if not info.filter_mask >> i & 1)
        pieces.append(_Piece(first, length, info.byte_offset, info.size, applied))
    return pieces


def _read_piece(fd: int, piece: _Piece, out: NDArray[Any], skip: int) -> None:
    """Elements from `skip` on of a piece, into `out`."""
    size = out.dtype.itemsize
    if not piece.filters:
        if os.preadv(fd, [out.view(np.uint8).data], piece.offset + skip * size) != out.nbytes:
            raise OSError(f"the file ends before byte {piece.offset + piece.size:,}")
        return
    raw: Any = os.pread(fd, piece.size, piece.offset)
    if len(raw) != piece.size:
        raise OSError(f"the file ends before byte {piece.offset + piece.size:,}")
    for code in reversed(piece.filters):
        if code == _DEFLATE:
            raw = _inflate(raw, piece.count * size)
        elif size > 1:
            raw = unshuffle(np.frombuffer(raw, np.uint8), size)
    if len(raw) != piece.count * size:
        raise OSError(f"a chunk holds {len(raw):,} bytes, expected {piece.count * size:,}")
    out[...] = np.frombuffer(raw, out.dtype)[skip : skip + len(out)]


def _inflate(raw: bytes, size: int) -> bytes:
    try:
        inflated: bytes = isal_zlib.decompress(raw, bufsize=size)
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
