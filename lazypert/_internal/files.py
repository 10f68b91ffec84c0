"""Files: whole writes, exact reads, checksums, and getting bytes to disk."""

from __future__ import annotations

import ctypes
import os
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
from isal import isal_zlib

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

_PIECE = 1 << 20
_HERE, _SWAP = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)


def write_whole(path: Path, pieces: Iterable[Any], *, sync: bool = False) -> tuple[int, int]:
    """Write a file that appears when it is complete.

    Two workers may do the same task when a cluster believes that one of them is lost: each writes
    a draft of its own, and the last rename wins.

    Parameters
    ----------
    pieces
        Buffers to write one after another.
    sync
        Whether the bytes must be on disk before the file has its name.

    Returns
    -------
    Its size in bytes and its CRC-32.
    """
    size = crc = 0
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    with draft.open("xb", buffering=0) as file:
        for piece in pieces:
            view = memoryview(piece).cast("B")
            crc = isal_zlib.crc32(view, crc)
            size += len(view)
            while len(view):  # one call writes 2 GiB at most
                view = view[os.write(file.fileno(), view) :]
        if sync:
            os.fsync(file.fileno())
    draft.replace(path)
    return size, crc


def read_exact(fd: int, dtype: Any, count: int, offset: int) -> NDArray[Any]:
    """`count` numbers from a byte offset.

    Raises
    ------
    OSError
        When the file ends before.
    """
    out = np.empty(count, dtype=dtype)
    read_into(fd, out, offset)
    return out


def read_into(fd: int, out: NDArray[Any], offset: int) -> None:
    """Fill a contiguous array with the bytes from `offset` on."""
    view = out.view(np.uint8).data
    while len(view):
        n = os.preadv(fd, [view], offset)
        if not n:
            raise OSError(f"the file ends at byte {offset:,}, {len(view):,} bytes too early")
        view, offset = view[n:], offset + n


def crc32(data: Any, crc: int = 0) -> int:
    """CRC-32 of a buffer."""
    return int(isal_zlib.crc32(data, crc))


def crc32_of(path: Path) -> tuple[int, int] | None:
    """Size and CRC-32 of a file, or None where there is none."""
    size = crc = 0
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                crc, size = isal_zlib.crc32(piece, crc), size + len(piece)
    except FileNotFoundError:
        return None
    return size, crc


def sync(path: Path) -> None:
    """Get a file's, or a folder's, bytes to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def exchange(one: Path, other: Path) -> None:
    """Let two folders swap names: in one step on Linux, in three elsewhere."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _SWAP) == 0:
        return
    between = other.with_name(f"{one.name}.swap")
    other.rename(between)
    one.rename(other)
    between.rename(one)
