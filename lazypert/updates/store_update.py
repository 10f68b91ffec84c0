"""Adding to a finished store: a new version of it takes the place of the old one in a single step.

The new version is made in a local folder. In it are the files of the old version, or something that stands for them,
and those that are written; how it takes the place of the old one depends on where the store is.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lazypert._internal.files import remove_folder, write_atomic
from lazypert._internal.paths import is_url, location
from lazypert.conversion.array_writer import ArrayWriter, read_nodes
from lazypert.conversion.remote_staging import work_folder
from lazypert.errors import ConfigError, DiskFullError, LazypertError, MachineError, StoreDamagedError
from lazypert.store.added import ADDED, element_digest, is_within
from lazypert.store.damage import store_damaged
from lazypert.store.format import APPENDED, MARKER
from lazypert.store.manifest import MANIFEST, manifest_digest, root_digest
from lazypert.updates.store_bucket import StoreBucket
from lazypert.updates.store_folder import StoreFolder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lazypert.store.store import Store

_OLDEST = 3
"""Oldest format version that can be added to."""

_ROOT, _OBS = "zarr.json", "obs/zarr.json"
_FULL, _READ_ONLY = (errno.ENOSPC, errno.EDQUOT), (errno.EACCES, errno.EPERM, errno.EROFS)
_LITTLE = 64 << 20  # free bytes of a disk that is full for what is written at once


class StorePlace(Protocol):
    """Where a store is. It is locked until `release`.

    Attributes
    ----------
    path
        A local path; what is temporary is beside it.
    store
        The store, opened for reading.
    """

    path: Path
    store: Store

    def fill(self, root: Path, left_out: set[str]) -> None:
        """Make the folder of a new version with what the old one has, apart from some files and folders."""
        ...

    def is_old(self, root: Path, key: str) -> bool:
        """Whether a file of the new version is that of the old one."""
        ...

    def read_old(self, key: str) -> bytes:
        """Read a file of the old version."""
        ...

    def commit(self, root: Path, written: Iterable[str], replaced: Iterable[str]) -> None:
        """Put a new version in the place of the old one.

        Parameters
        ----------
        root
            Folder of the new version.
        written
            Keys of the files that are not those of the old one.
        replaced
            Elements that were written again.
        """
        ...

    def release(self) -> None:
        """Unlock the store."""
        ...

    def not_writable(self, error: OSError) -> MachineError:
        """Make the error for a folder that cannot be written to."""
        ...


def _place_of(path: str | Path, storage_options: Mapping[str, Any] | None, work_dir: str | Path | None) -> StorePlace:
    found = location("store", path)
    folder = work_folder(found if is_url(found) else Path(found), work_dir)
    return StoreBucket(found, storage_options, folder) if is_url(found) else StoreFolder(Path(found))


class StoreUpdate:
    """An update of a finished store, which is locked meanwhile. Use it as a context manager.

    Leaving it before `publish` leaves the store as it was.

    Parameters
    ----------
    path
        The store: a local folder or a URL.
    storage_options
        Options for URLs.
    work_dir
        Folder for temporary files, if the store is at a URL.

    Attributes
    ----------
    store
        The store, opened for reading.

    Raises
    ------
    ConfigError
        If stores cannot be written to such URLs, or the store has an old format version.
    StoreNotFoundError
        If there is no store.
    StoreDamagedError
        If its manifest is damaged: what is added would hide that.
    MachineError
        If another process writes to the store, or its folder is not writable.
    """

    def __init__(
        self,
        path: str | Path,
        storage_options: Mapping[str, Any] | None = None,
        work_dir: str | Path | None = None,
    ) -> None:
        self._place = place = _place_of(path, storage_options, work_dir)
        self.store = place.store
        try:
            self._metadata, self._entries = _read_sealed(self.store)
            if self.store.format_version < _OLDEST:
                raise ConfigError(
                    f"store: got format version {self.store.format_version} in {str(place)!r}, expected {_OLDEST} or "
                    "later. Convert the source again, then add to the new store."
                )
        except BaseException:
            place.release()
            raise
        self._folder = place.path.with_name(f"{place.path.name}.partial-add-{uuid.uuid4().hex[:12]}")
        self._root, self.work = self._folder / "store", self._folder / "work"
        self._dropped: tuple[str, ...] = ()
        self._is_at_work = False  # during `start` and `publish`, and after an error in them

    def __repr__(self) -> str:
        return f"StoreUpdate({str(self._place)!r})"

    def __enter__(self) -> StoreUpdate:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        remove_folder(self._folder, after_error=error is not None)
        self._place.release()
        if not isinstance(error, OSError) or isinstance(error, LazypertError) or not self._is_of_store(error):
            return
        if error.errno in _FULL:
            raise DiskFullError(
                f"The disk of {str(self._place.path)!r} is full ({error}). The store is as it was. Free some space, "
                "then add again."
            ) from error
        if error.errno in _READ_ONLY:
            raise self._place.not_writable(error) from error

    def _is_of_store(self, error: OSError) -> bool:
        """Whether an error is about files of the store, and not about others that the caller reads or writes."""
        if self._is_at_work:
            return True
        target = self._place.path
        if error.filename is not None:
            named = Path(os.fsdecode(error.filename)).absolute()
            if not named.is_relative_to(target.parent):
                return False
            first = next(iter(named.relative_to(target.parent).parts), "")
            return first in ("", target.name) or first.startswith(f"{target.name}.partial")
        # Writing to an open file names none.
        if error.errno == errno.EDQUOT:  # free bytes of a disk say nothing of a quota
            return True
        return error.errno in _FULL and shutil.disk_usage(target.parent).free < _LITTLE

    def start(self, replaced: Iterable[str] = ()) -> ArrayWriter:
        """Begin the new version with the files of the old one, and return a writer for what is added to it.

        Parameters
        ----------
        replaced
            Elements to leave out, such as ``"obs/guide"``, which are then written again.
        """
        self._dropped, self._is_at_work = tuple(replaced), True
        self.work.mkdir(parents=True)
        rewritten = {_ROOT, _OBS, *(f"{MANIFEST}/{name}" for name in ("key", "size", "crc32"))}
        self._place.fill(self._root, rewritten.union(self._dropped))
        for key in (_ROOT, _OBS):
            (self._root / key).write_bytes(self._place.read_old(key))
        self._writer = ArrayWriter(self._root)
        self._is_at_work = False
        return self._writer

    @property
    def writer(self) -> ArrayWriter:
        """What writes into the new version, once it has been started."""
        return self._writer

    def read(self, file: Path) -> bytes:
        """Read a file of the new version, which may still be that of the old one."""
        key = file.relative_to(self._root).as_posix()
        return self._place.read_old(key) if self._place.is_old(self._root, key) else file.read_bytes()

    def publish(
        self, added: Sequence[str], *, columns: Sequence[str] = (), matrices: Mapping[str, Any] | None = None
    ) -> None:
        """Put the new version in the place of the old one.

        Parameters
        ----------
        added
            Elements that were written, such as ``"obs/guide"``.
        columns
            Names of those that are obs columns.
        matrices
            Summaries of those that are matrices, for the root metadata.
        """
        self._is_at_work = True
        if columns:
            self._list_columns(columns)
        new = [key for key in _files(self._root, added) if not self._place.is_old(self._root, key)]
        writer = self._writer
        nodes = read_nodes(self._root, [*new, _OBS])
        kept = [entry for entry in self._entries if entry.key != _OBS and not is_within(entry.key, self._dropped)]
        fresh = [writer.entry(key) for key in new]
        entries = sorted([*kept, *fresh, writer.entry(_OBS)], key=lambda entry: entry.key)
        writer.write_manifest(entries)
        manifest_files = _files(self._root, [f"{MANIFEST}/{name}" for name in ("key", "size", "crc32")])
        nodes |= read_nodes(self._root, manifest_files)
        old = self._metadata["consolidated_metadata"]["metadata"]
        nodes = {path: node for path, node in old.items() if not is_within(path, self._dropped)} | nodes
        digests = {element: element_digest(element, fresh, nodes) for element in added}
        attrs = {
            **self.store.attrs,
            "matrices": {**self.store.attrs["matrices"], **(matrices or {})},
            ADDED: {**self.store.attrs.get(ADDED, {}), **digests},
            "manifest_digest": manifest_digest(entries),
        }
        writer.write_root(attrs, nodes)
        self._place.commit(self._root, [*new, *manifest_files, _ROOT, _OBS], self._dropped)
        self._is_at_work = False

    def publish_version(self, attrs: dict[str, Any]) -> None:
        """Put a new version, in which files were written and deleted anywhere, in the place of the old one.

        Parameters
        ----------
        attrs
            Entries of the root attribute ``lazypert``; the digest of the manifest is added.
        """
        writer, manifest = self._writer, f"{MANIFEST}/"
        files = [key for key in _files(self._root, [""]) if key != _ROOT]
        files = [key for key in files if not key.startswith(manifest) or key == f"{manifest}zarr.json"]
        known = {entry.key: entry for entry in self._entries}
        new = [key for key in files if key not in known or not self._place.is_old(self._root, key)]
        fresh = {key: writer.entry(key) for key in new}
        entries = [fresh.get(key) or known[key] for key in sorted(files)]
        writer.write_manifest(entries)
        manifest_files = _files(self._root, [f"{MANIFEST}/{name}" for name in ("key", "size", "crc32")])
        old, present = self._metadata["consolidated_metadata"]["metadata"], set(files)
        nodes = {path: node for path, node in old.items() if f"{path}/zarr.json" in present}
        nodes |= read_nodes(self._root, [*new, *manifest_files])
        writer.write_root({**attrs, "manifest_digest": manifest_digest(entries)}, nodes)
        rewritten = [path for record in attrs.get(APPENDED, ())[-1:] for path in record["rewritten"]]
        self._place.commit(self._root, [*new, *manifest_files, _ROOT], rewritten)

    def _list_columns(self, columns: Sequence[str]) -> None:
        """Append new columns to the ``column-order`` of obs; replaced ones keep their place."""
        file = self._root / _OBS
        metadata = json.loads(file.read_bytes())
        order = metadata["attributes"]["column-order"]
        metadata["attributes"]["column-order"] = order + [name for name in columns if name not in order]
        write_atomic(file, [json.dumps(metadata, indent=2).encode()])


def _files(root: Path, elements: Iterable[str]) -> list[str]:
    """Keys of all files of some elements, sorted."""
    paths = (path for element in elements for path in (root / element).rglob("*") if path.is_file())
    return sorted(path.relative_to(root).as_posix() for path in paths)


def _read_sealed(store: Store) -> tuple[dict[str, Any], list[Any]]:
    """Read the root metadata and the manifest of a store, and check their digests."""
    try:
        metadata = json.loads(store.reader.read(_ROOT, 0, store.reader.size(_ROOT) or 0))
        entries = store.read_manifest()
        is_intact = manifest_digest(entries) == store.attrs["manifest_digest"]
        is_intact &= root_digest(metadata) == metadata["attributes"][MARKER]["root_digest"]
    except StoreDamagedError:
        raise
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise store_damaged(MANIFEST, f"the manifest cannot be read ({error})") from error
    if not is_intact:
        raise store_damaged(_ROOT, "it or the manifest changed since it was written")
    return metadata, entries
