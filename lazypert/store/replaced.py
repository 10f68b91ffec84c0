"""Reading a store that is replaced, or a column of it, while it is open: old and new files never mix."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazypert._internal.cluster import this_worker
from lazypert.errors import StoreChangedError, StoreNotFoundError
from lazypert.store.added import ADDED
from lazypert.store.byte_reader import LocalReader
from lazypert.store.damage import store_damaged
from lazypert.store.format import APPENDED, MARKER
from lazypert.store.updating import UPDATING, overwritten_elements

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Mapping, Sequence

    from lazypert.store.byte_reader import ByteRange
    from lazypert.store.remote_reader import RemoteReader

_OF_CONVERSION = ("format_version", "sources", "roles", "order", "layer", "n_obs", "n_vars", "summary")
"""Root attributes that additions to a store do not change."""


@dataclass(frozen=True, slots=True)
class Version:
    """What tells a store from another one that takes its place; additions to a store are told apart from that.

    Attributes
    ----------
    conversion
        SHA-256 of what the root attributes say of the conversion.
    manifest
        Digest of the manifest.
    added
        Digest of every added element.
    before
        The versions that cells were appended to, each with the columns that had to be written again then, or None if
        other arrays had to be; the latest one first.
    """

    conversion: str
    manifest: str | None
    added: tuple[tuple[str, str], ...]
    before: tuple[tuple[Version, tuple[str, ...] | None], ...] = ()

    @classmethod
    def of(cls, attrs: Mapping[str, Any]) -> Version:
        """Version of a store, by its root attributes."""
        found = {name: attrs.get(name) for name in _OF_CONVERSION} | {"X": attrs.get("matrices", {}).get("X")}
        conversion = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
        before = tuple(_before(record) for record in reversed(attrs.get(APPENDED, ())))
        return cls(conversion, attrs.get("manifest_digest"), tuple(sorted(attrs.get(ADDED, {}).items())), before)

    def is_replaced_by(self, other: Version, *, allow_appended: bool = True) -> bool:
        """Whether the other one is not this store with additions, or with further cells if `allow_appended`."""
        return self.change_to(other, allow_appended=allow_appended) is None

    def change_to(self, other: Version, *, allow_appended: bool = True) -> dict[str, str] | None:
        """Return the digest of every column and element that was added or written again; None if replaced."""
        if self.conversion == other.conversion:
            is_same = self.manifest == other.manifest
            if self.added == other.added:
                return dict(other.added) if is_same else None
            return dict(other.added) if dict(self.added).keys() <= dict(other.added).keys() else None
        changes = dict(other.added)
        for version, rewritten in other.before if allow_appended else ():
            if rewritten is None:
                return None
            changes |= dict.fromkeys(rewritten, "rewritten")
            if version.conversion == self.conversion:
                known = self.change_to(version)
                return None if known is None else {**known, **changes}
        return None


def _before(record: Mapping[str, Any]) -> tuple[Version, tuple[str, ...] | None]:
    """Return the version that cells were appended to, and the columns that had to be written again."""
    before, rewritten = record["before"], tuple(record["rewritten"])
    version = Version(before["conversion"], before["manifest_digest"], tuple(sorted(before[ADDED].items())))
    return version, rewritten if all(path.startswith("obs/") for path in rewritten) else None


def store_changed(path: str) -> StoreChangedError:
    """Return the error for a store that was converted again after it was opened."""
    return StoreChangedError(
        f"The store {path!r} was replaced after it was opened: what is in memory does not fit its new files. Open it "
        "again, and set up again what was made from it."
    )


class CheckedReader:
    """Reads files of a store, and raises an error once the store, or the column that is read, has been replaced.

    What was opened before, such as groups or categories, would not fit the new files. Local files are checked after
    every read. Of object storage, the root metadata are asked for after the index of a shard or a whole object was
    read: what is read of a shard later has the checksums that belong to its index, or is checked again. Thread-safe and
    picklable.

    Parameters
    ----------
    reader
        Where the files are.
    attrs
        The store's root attributes when it was opened.
    seen
        Identity of the root metadata then.
    column
        Path of the obs column that is read, which may be replaced on its own; None for other files.
    """

    def __init__(
        self, reader: LocalReader | RemoteReader, attrs: Mapping[str, Any], seen: Any, column: str | None = None
    ) -> None:
        self.reader, self.column, self.seen = reader, column, seen
        self.version, self.digest = Version.of(attrs), _column_digest(attrs, column)
        self._updating = attrs.get(UPDATING)
        self.coalescing_gap, self.has_files, self.file_offset = (
            reader.coalescing_gap,
            reader.has_files,
            reader.file_offset,
        )
        self._is_local = isinstance(reader, LocalReader)

    def __repr__(self) -> str:
        return f"CheckedReader({self.reader!r}, column={self.column!r})"

    @property
    def where(self) -> str:
        """Path or URL of the store."""
        return str(self.reader.root) if isinstance(self.reader, LocalReader) else self.reader.where

    def check(self) -> None:
        """Raise an error if the files are not those of the store that was opened.

        Raises
        ------
        StoreChangedError
            If the store or the column was replaced.
        StoreNotFoundError
            If the whole store is gone, or this process cannot see it.
        StoreDamagedError
            If its root metadata cannot be read any more.
        """
        identity = self.reader.root_identity()
        if identity is None and self._is_local and not _has_files(Path(self.where)):
            raise store_gone(self.where)
        if identity == self.seen:
            return
        found = None if identity is None else self.reader.root_metadata()
        if found is None:
            if not self._is_local:
                raise store_changed(self.where)  # something else may be written there, and its objects come first
            return  # the store is gone, as the next read will say
        try:
            attrs = json.loads(found)["attributes"][MARKER]
            changes = self.version.change_to(Version.of(attrs))
            overwritten = overwritten_elements(attrs, self._updating)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise store_damaged("zarr.json", f"it cannot be read ({error})") from error
        if changes is None or not all(path.startswith("obs/") for path in overwritten):
            raise store_changed(self.where)
        if changes.get(str(self.column)) != self.digest or self.column in overwritten:
            raise StoreChangedError(
                f"{self.column}: the column was replaced after {self.where!r} was opened. "
                "Open the store again to read the new values."
            )
        self.seen = identity

    def _check_local(self) -> None:
        if self._is_local:
            self.check()

    def size(self, key: str) -> int | None:
        """Size of a file in bytes, or None."""
        size = self.reader.size(key)
        self._check_local()
        return size

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Read part of a file."""
        data = self.reader.read(key, offset, length)
        self._check_local()
        return data

    def open_files(self, keys: Sequence[str], ranges: Sequence[ByteRange] = ()) -> list[int]:
        """Open files."""
        try:
            files = self.reader.open_files(keys, ranges)
        except FileNotFoundError:
            self.check()
            raise
        try:
            self._check_local()
        except BaseException:
            for file in files:
                os.close(file)
            raise
        return files

    def read_ranges(self, ranges: Sequence[ByteRange], out: memoryview) -> list[int]:
        """Read parts of files."""
        counts = self.reader.read_ranges(ranges, out)
        self._check_local()
        return counts

    def start(self, byte_range: ByteRange) -> concurrent.futures.Future[bytes | None]:
        """Start to read part of an object."""
        return self.reader.start(byte_range)

    def read_tails(self, keys: Sequence[str], length: int) -> list[tuple[bytes | None, int | None]]:
        """Last bytes of files."""
        if isinstance(self.reader, LocalReader):
            tails = self.reader.read_tails(keys, length)
            self.check()
            return tails
        # What the cache keeps is of the version that was opened, and chunks that do not fit it have other checksums.
        kept: dict[str, tuple[bytes | None, int | None]]
        kept = {key: (tail, None) for key, tail in self.reader.kept_tails(self.reader.not_held(keys)).items()}
        others = [key for key in keys if key not in kept]
        is_new = bool(self.reader.not_held(others))
        found = dict(zip(others, self.reader.read_tails(others, length), strict=True))
        if is_new:
            self.check()
            self.reader.keep_tails({key: tail for key, (tail, size) in found.items() if tail is not None and not size})
        return [(kept | found)[key] for key in keys]

    def hold(self, keys: Sequence[str]) -> None:
        """Read small objects as a whole."""
        if isinstance(self.reader, LocalReader) or not (missing := self.reader.not_held(keys)):
            return
        while True:
            seen, requested = self.seen, self.reader.hold(missing)
            try:
                self.check()
            except StoreChangedError:
                self.reader.forget(missing)
                raise
            if self.seen == seen:
                self.reader.save_held(requested)
                return
            self.reader.forget(missing)  # an update has begun, or was undone: they may be of either version

    def fresh(self) -> CheckedReader:
        """Return a reader that keeps nothing."""
        other = CheckedReader.__new__(CheckedReader)
        other.__dict__.update(self.__dict__)
        other.reader = self.reader.fresh()
        return other


def store_gone(path: str) -> StoreNotFoundError:
    """Return the error for an open store of which this process sees no file."""
    worker = this_worker()
    if worker is None:
        return StoreNotFoundError(
            f"There is no store at {path!r} any more: it was deleted or moved, or this process does not see it. "
            "Open it again."
        )
    return StoreNotFoundError(
        f"The Dask worker {worker} sees no store at {path!r}, which the client has opened. The store is not damaged. "
        "Put it on storage that every worker mounts at the same path, or stop this worker."
    )


def _has_files(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except FileNotFoundError:
        return False
    except OSError:  # as the next read will say
        return True


def _column_digest(attrs: Mapping[str, Any], column: str | None) -> str | None:
    digest: str | None = attrs.get(ADDED, {}).get(column)
    return digest
