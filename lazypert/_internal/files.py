"""Files: atomic writes, exact reads, checksums and fsync."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import time
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
from isal import isal_zlib

from lazypert._internal.fork import forkable_lock

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

_READ_BYTES = 1 << 20  # per read when a checksum is computed
_LATE_WRITES = (0.02, 0.08, 0.3)  # seconds between looks for files that were written late
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # constants of renameat2(2)


_TEMPORARY = re.compile(r".+\.[0-9a-f]{8}")


def write_atomic(path: Path, buffers: Iterable[Any], *, sync: bool = False) -> tuple[int, int]:
    """Write a file that appears only once it is complete.

    A cluster may run a task twice if it believes that a worker was lost. Each run writes a temporary file
    of its own, and the last rename wins.

    Parameters
    ----------
    buffers
        Contents, written one after another.
    sync
        Whether to wait until the bytes are on disk before the file gets its name.

    Returns
    -------
    Size in bytes, and CRC-32.
    """
    size = crc = 0
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("xb", buffering=0) as file:
            for buffer in buffers:
                view = memoryview(buffer).cast("B")
                crc = isal_zlib.crc32(view, crc)
                size += len(view)
                while len(view):  # a single call writes at most 2 GiB
                    view = view[os.write(file.fileno(), view) :]
            if sync:
                os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)
    return size, crc


def is_temporary(path: Path) -> bool:
    """Whether a file has the name of a temporary one of `write_atomic`; a killed process leaves it."""
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_folder(path: Path, *, after_error: bool = False) -> None:
    """Delete a folder with all that is in it, as far as possible.

    Parameters
    ----------
    after_error
        Whether writing to the folder failed. Zarr writes several files of a node at the same time: after the first
        error its threads still finish the others, and may do so while the folder is being deleted.
    """
    shutil.rmtree(path, ignore_errors=True)
    for pause in _LATE_WRITES if after_error else ():
        time.sleep(pause)
        if path.exists():
            shutil.rmtree(path, ignore_errors=True)


_SEEK = forkable_lock()


def read_at(fd: int, out: memoryview, offset: int) -> int:
    """Read from a byte offset into `out` in one call: bytes read, 0 at the end of the file.

    Windows has no reads at an offset: there, threads take turns to seek and read.
    """
    if hasattr(os, "preadv"):
        return os.preadv(fd, [out], offset)
    with _SEEK:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(out))
    out[: len(data)] = data
    return len(data)


def open_to_read(path: str | os.PathLike[str]) -> int:
    """Open a file of bytes: on Windows, others are read as text."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))


def read_exact(fd: int, dtype: Any, count: int, offset: int) -> NDArray[Any]:
    """Read `count` numbers, starting at a byte offset.

    Raises
    ------
    OSError
        If the file is too short.
    """
    out = np.empty(count, dtype=dtype)
    read_into(fd, out, offset)
    return out


def read_into(fd: int, out: NDArray[Any], offset: int) -> None:
    """Fill a contiguous array with the bytes that start at `offset`."""
    view = out.view(np.uint8).data
    while len(view):
        n = read_at(fd, view, offset)
        if not n:
            raise OSError(f"the file ends at byte {offset:,}, {len(view):,} bytes too early")
        view, offset = view[n:], offset + n


def crc32(data: Any, crc: int = 0) -> int:
    """Return the CRC-32 of a buffer; `crc` is that of the bytes before it."""
    return int(isal_zlib.crc32(data, crc))


def crc32_of(path: Path) -> tuple[int, int] | None:
    """Return the size and CRC-32 of a file, or None if it does not exist."""
    size = crc = 0
    try:
        with path.open("rb") as file:
            while data := file.read(_READ_BYTES):
                crc, size = isal_zlib.crc32(data, crc), size + len(data)
    except FileNotFoundError:
        return None
    return size, crc


def directory_size(folder: Path) -> int:
    """Return the bytes of all files below a directory."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sync(path: Path) -> None:
    """Flush a file or directory to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def swap(one: Path, other: Path) -> None:
    """Swap the names of two directories: atomically on Linux, in three renames elsewhere."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is not None and rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return
    spare = other.with_name(f"{one.name}.swap")
    other.rename(spare)
    one.rename(other)
    spare.rename(one)
