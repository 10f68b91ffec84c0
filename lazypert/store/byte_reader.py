"""Reading byte ranges of a store: from files of a folder, or objects of any Zarr store."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lazypert._internal.files import open_to_read, read_at
from lazypert._internal.machine import machine_error
from lazypert.store.damage import store_damaged

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lazypert.errors import LazypertError

ByteRange = tuple[str, int, int]
"""Key of a file or object, offset and length."""


class ByteReader(Protocol):
    """Reads byte ranges. Thread-safe and picklable.

    Whatever fails, other than that an object does not exist, is a `MachineError`.
    """

    @property
    def coalescing_gap(self) -> int:
        """Byte ranges at most this many bytes apart are read in one request."""
        ...

    def size(self, key: str) -> int | None:
        """Size of an object in bytes, or None if it does not exist."""
        ...

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Read ``length`` bytes from ``offset``: fewer at the end of the object, none if it does not exist."""
        ...

    @property
    def has_files(self) -> bool:
        """Whether objects are local files that can be opened."""
        ...

    def open_files(self, keys: Sequence[str]) -> list[int]:
        """Open files; the caller closes the descriptors.

        Raises
        ------
        FileNotFoundError
            If a file does not exist; the error's ``filename`` is its key. No file stays open.
        """
        ...

    def read_ranges(self, ranges: Sequence[ByteRange], out: memoryview) -> list[int]:
        """Read byte ranges into `out`, one after another at offsets given by their lengths.

        Returns
        -------
        Bytes read for each range: fewer at the end of an object, 0 if it does not exist.
        """
        ...


@dataclass(frozen=True, slots=True)
class LocalReader:
    """Files in a folder."""

    root: Path
    coalescing_gap: int = 0
    has_files: bool = True

    def size(self, key: str) -> int | None:
        """Size of a file in bytes, or None."""
        try:
            return (self.root / key).stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failed(key, error) from error

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Read part of a file."""
        out = bytearray(length)
        (n_read,) = self.read_ranges([(key, offset, length)], memoryview(out))
        return bytes(out[:n_read])

    def open_files(self, keys: Sequence[str]) -> list[int]:
        """Open files."""
        opened: list[int] = []
        try:
            opened.extend(open_to_read(f"{self.root}/{key}") for key in keys)
        except OSError as error:
            for fd in opened:
                os.close(fd)
            raise type(error)(error.errno, error.strerror, keys[len(opened)]) from None
        return opened

    def read_ranges(self, ranges: Sequence[ByteRange], out: memoryview) -> list[int]:
        """Read parts of files; successive ranges of one file share one open."""
        counts: list[int] = []
        at = 0
        for key, ranges_of_key in itertools.groupby(ranges, key=lambda byte_range: byte_range[0]):
            try:
                fd = open_to_read(f"{self.root}/{key}")
            except FileNotFoundError:
                fd = -1
            except OSError as error:
                raise _failed(key, error) from error
            try:
                for _, offset, length in ranges_of_key:
                    counts.append(0 if fd < 0 else _fill(fd, out[at : at + length], offset))
                    at += length
            except OSError as error:
                raise _failed(key, error) from error
            finally:
                if fd >= 0:
                    os.close(fd)
        return counts


def _failed(key: str, error: OSError) -> LazypertError:
    """Return the error for a file that cannot be read: folders in place of files are damage, all else is not."""
    if isinstance(error, IsADirectoryError | NotADirectoryError):
        return store_damaged(key, f"expected a file ({error.strerror})")
    return machine_error(key, error)


def _fill(fd: int, out: memoryview, offset: int) -> int:
    n_read = 0
    while n_read < len(out):  # one call reads at most 2 GiB
        n = read_at(fd, out[n_read:], offset + n_read)
        if not n:
            break
        n_read += n
    return n_read


@dataclass(frozen=True)
class RemoteReader:
    """Objects of any Zarr store: S3 and other remote storage, memory, ZIP files."""

    store: Any
    coalescing_gap: int = 256 * 1024  # a request's latency equals the transfer time of a few hundred kilobytes
    has_files: bool = False

    def size(self, key: str) -> int | None:
        """Size of an object in bytes, or None."""
        from zarr.core.sync import sync

        try:
            return int(sync(self.store.getsize(key)))
        except FileNotFoundError:
            return None
        except Exception as error:  # remote storage raises errors of many types
            raise machine_error(key, error) from error

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Read part of an object with one request."""
        out = bytearray(length)
        (n_read,) = self.read_ranges([(key, offset, length)], memoryview(out))
        return bytes(out[:n_read])

    def open_files(self, keys: Sequence[str]) -> list[int]:
        """Not possible: objects are not files."""
        raise NotImplementedError(f"keys: got {list(keys[:1])!r}, expected files. Objects cannot be opened.")

    def read_ranges(self, ranges: Sequence[ByteRange], out: memoryview) -> list[int]:
        """Read parts of objects with one concurrent request per range."""
        import asyncio

        from zarr.abc.store import RangeByteRequest
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        async def fetch() -> list[Any]:
            prototype = default_buffer_prototype()
            requests = (
                self.store.get(key, prototype, byte_range=RangeByteRequest(offset, offset + length))
                for key, offset, length in ranges
            )
            return await asyncio.gather(*requests)

        counts: list[int] = []
        at = 0
        try:
            responses = sync(fetch())
        except Exception as error:
            raise machine_error(ranges[0][0], error) from error
        for (_, _, length), response in zip(ranges, responses, strict=True):
            body = b"" if response is None else response.to_bytes()[:length]
            out[at : at + len(body)] = body
            counts.append(len(body))
            at += length
        return counts
