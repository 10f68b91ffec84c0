"""Reading obs columns of a store that is open while a column is replaced: old and new files never mix."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from lazypert.errors import StoreChangedError
from lazypert.store.added import ADDED
from lazypert.store.format import MARKER

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lazypert.store.byte_reader import ByteRange, LocalReader

Identity = tuple[int, int, int]
"""What tells a version of the root metadata from others: inode, time of change in nanoseconds, bytes."""


def root_identity(folder: Path) -> Identity | None:
    """Return the identity of a store's root metadata, or None if there are none."""
    try:
        found = (folder / "zarr.json").stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


class ColumnReader:
    """Reads files of one obs column, and raises an error once the column has been replaced.

    What was opened before, such as categories, would not fit the new files. Thread-safe and picklable.

    Parameters
    ----------
    reader
        Where the files are.
    column
        Path of the column.
    digest
        Digest of the column as it was when the store was opened; None if it is as converted.
    seen
        Identity of the root metadata then.
    """

    coalescing_gap = 0
    has_files = True

    def __init__(self, reader: LocalReader, column: str, digest: str | None, seen: Identity | None) -> None:
        self.reader, self.column, self.digest, self.seen = reader, column, digest, seen

    def __repr__(self) -> str:
        return f"ColumnReader({self.column!r}, {self.reader!r})"

    def check(self) -> None:
        """Raise an error if the column is not the one that was opened.

        Raises
        ------
        StoreChangedError
            If it was replaced.
        """
        identity = root_identity(self.reader.root)
        if identity == self.seen or identity is None:  # None: the store is gone, as the next read will say
            return
        attrs = json.loads((self.reader.root / "zarr.json").read_bytes())["attributes"][MARKER]
        if attrs.get(ADDED, {}).get(self.column) != self.digest:
            raise StoreChangedError(
                f"{self.column}: the column was replaced after {str(self.reader.root)!r} was opened. "
                "Open the store again to read the new values."
            )
        self.seen = identity

    def size(self, key: str) -> int | None:
        """Size of a file in bytes, or None."""
        size = self.reader.size(key)
        self.check()
        return size

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Read part of a file."""
        data = self.reader.read(key, offset, length)
        self.check()
        return data

    def open_files(self, keys: Sequence[str]) -> list[int]:
        """Open files."""
        try:
            files = self.reader.open_files(keys)
        except FileNotFoundError:
            self.check()
            raise
        try:
            self.check()
        except BaseException:
            for file in files:
                os.close(file)
            raise
        return files

    def read_ranges(self, ranges: Sequence[ByteRange], out: memoryview) -> list[int]:
        """Read parts of files."""
        counts = self.reader.read_ranges(ranges, out)
        self.check()
        return counts
