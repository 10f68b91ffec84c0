"""Reading byte ranges of a store: what every reader does, and files of a folder."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lazypert._internal.files import open_to_read, read_at
from lazypert._internal.machine import machine_error
from lazypert.store.damage import store_damaged

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Sequence
    from pathlib import Path

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

    @property
    def file_offset(self) -> int:
        """Offset of an object's bytes in its file."""
        ...

    def open_files(self, keys: Sequence[str], ranges: Sequence[ByteRange] = ()) -> list[int]:
        """Open files of which the ranges will be read; the caller closes the descriptors.

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

    def start(self, byte_range: ByteRange) -> concurrent.futures.Future[bytes | None]:
        """Start to read part of an object, None if it does not exist; only where each read waits for a server."""
        ...

    def read_tails(self, keys: Sequence[str], length: int) -> list[tuple[bytes | None, int | None]]:
        """Last bytes of objects, None for one that does not exist, with its size if that is known."""
        ...

    def hold(self, keys: Sequence[str]) -> None:
        """Read small objects as a whole and keep them, where each read would be a request."""
        ...

    def check(self) -> None:
        """Raise `StoreChangedError` if the store was replaced, as far as the reader knows."""
        ...

    def fresh(self) -> ByteReader:
        """Return a reader of the same files that keeps nothing."""
        ...


@dataclass(frozen=True, slots=True)
class LocalReader:
    """Files in a folder."""

    root: Path
    coalescing_gap: int = 0
    has_files: bool = True
    file_offset: int = 0

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

    def open_files(self, keys: Sequence[str], ranges: Sequence[ByteRange] = ()) -> list[int]:  # noqa: ARG002
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

    def start(self, byte_range: ByteRange) -> concurrent.futures.Future[bytes | None]:
        """Files are read when their bytes are needed."""
        raise NotImplementedError(f"byte_range: got {byte_range!r} of a file, expected part of an object.")

    def read_tails(self, keys: Sequence[str], length: int) -> list[tuple[bytes | None, int | None]]:
        """Last bytes of files, and their sizes."""
        sizes = [self.size(key) for key in keys]
        return [
            (None if size is None else self.read(key, max(0, size - length), length), size)
            for key, size in zip(keys, sizes, strict=True)
        ]

    def hold(self, keys: Sequence[str]) -> None:
        """Files are read where they are."""

    def check(self) -> None:
        """A folder alone does not know."""

    def root_identity(self) -> Any:
        """Return what tells a version of the root metadata from others, or None: inode, time of change, bytes."""
        try:
            found = os.stat(f"{self.root}/zarr.json")  # noqa: PTH116 - a Path would take longer, and every read asks
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def root_metadata(self) -> bytes | None:
        """Read the root metadata, or return None."""
        try:
            return (self.root / "zarr.json").read_bytes()
        except FileNotFoundError:
            return None

    def fresh(self) -> LocalReader:
        """Return a reader that keeps nothing."""
        return self


def _failed(key: str, error: OSError) -> Exception:
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
