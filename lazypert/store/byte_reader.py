"""Where the bytes of a store are: files of a folder, or objects of any Zarr store."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ByteRange = tuple[str, int, int]
"""Key, offset and length of a part of an object."""


class ByteReader(Protocol):
    """Gives parts of objects. Thread-safe and picklable."""

    @property
    def gap(self) -> int:
        """Bytes that are rather read along than left out between two wanted pieces."""
        ...

    def size(self, key: str) -> int | None:
        """Bytes of an object, or None when there is no such object."""
        ...

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``: fewer at the end of the object, none when it is gone."""
        ...

    @property
    def has_files(self) -> bool:
        """Whether objects are files, which can be opened."""
        ...

    def open(self, keys: Sequence[str]) -> list[int]:
        """Descriptors of files, for the caller to close.

        Raises
        ------
        FileNotFoundError
            When a file is gone: its ``filename`` is the key. None is left open.
        """
        ...

    def read_ranges(self, pieces: Sequence[ByteRange], out: memoryview) -> list[int]:
        """Read pieces into `out`, each to where it belongs if all are whole.

        Returns
        -------
        Bytes found of each piece: fewer at the end of an object, none when it is gone.
        """
        ...


@dataclass(frozen=True, slots=True)
class LocalReader:
    """Files under a folder."""

    root: Path
    gap: int = 0
    has_files: bool = True

    def size(self, key: str) -> int | None:
        """Bytes of a file, or None."""
        try:
            return (self.root / key).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Read part of a file without moving anyone's file position."""
        out = bytearray(length)
        (found,) = self.read_ranges([(key, offset, length)], memoryview(out))
        return bytes(out[:found])

    def open(self, keys: Sequence[str]) -> list[int]:
        """Open files."""
        opened: list[int] = []
        try:
            opened.extend(os.open(f"{self.root}/{key}", os.O_RDONLY) for key in keys)
        except OSError as error:
            for fd in opened:
                os.close(fd)
            raise type(error)(error.errno, error.strerror, keys[len(opened)]) from None
        return opened

    def read_ranges(self, pieces: Sequence[ByteRange], out: memoryview) -> list[int]:
        """Read parts of files; a file is opened once for pieces that follow each other."""
        counts: list[int] = []
        at = 0
        for key, of_key in itertools.groupby(pieces, key=lambda piece: piece[0]):
            try:
                fd = os.open(f"{self.root}/{key}", os.O_RDONLY)
            except FileNotFoundError:
                fd = -1
            try:
                for _, offset, length in of_key:
                    counts.append(0 if fd < 0 else _fill(fd, out[at : at + length], offset))
                    at += length
            finally:
                if fd >= 0:
                    os.close(fd)
        return counts


def _fill(fd: int, out: memoryview, offset: int) -> int:
    done = 0
    while done < len(out):  # one call gives at most 2 GiB
        found = os.preadv(fd, [out[done:]], offset + done)
        if not found:
            break
        done += found
    return done


@dataclass(frozen=True)
class RemoteReader:
    """Objects of any Zarr store: S3 and the like, memory, zip files."""

    store: Any
    gap: int = 256 * 1024  # a request takes as long as some hundred kilobytes
    has_files: bool = False

    def size(self, key: str) -> int | None:
        """Bytes of an object, or None."""
        from zarr.core.sync import sync

        try:
            return int(sync(self.store.getsize(key)))
        except FileNotFoundError:
            return None

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Read part of an object with one ranged request."""
        out = bytearray(length)
        (found,) = self.read_ranges([(key, offset, length)], memoryview(out))
        return bytes(out[:found])

    def open(self, keys: Sequence[str]) -> list[int]:
        """Objects are no files."""
        raise NotImplementedError(f"{keys[:1]} cannot be opened: objects are no files")

    def read_ranges(self, pieces: Sequence[ByteRange], out: memoryview) -> list[int]:
        """Read parts of objects with one ranged request each, all under way at once."""
        import asyncio

        from zarr.abc.store import RangeByteRequest
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        async def fetch() -> list[Any]:
            kind = default_buffer_prototype()
            requests = (
                self.store.get(key, kind, byte_range=RangeByteRequest(offset, offset + length))
                for key, offset, length in pieces
            )
            return await asyncio.gather(*requests)

        counts: list[int] = []
        at = 0
        for (_, _, length), found in zip(pieces, sync(fetch()), strict=True):
            body = b"" if found is None else found.to_bytes()[:length]
            out[at : at + len(body)] = body
            counts.append(len(body))
            at += length
        return counts
