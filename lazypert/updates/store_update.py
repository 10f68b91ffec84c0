"""Adding to a finished store: a new version of it takes the place of the old one in a single step.

The new version consists of hard links to the files of the old one, and of new files. Readers see either all of it or
none, whichever file of the store they begin with.

<store>.partial.lock           the lock that conversions take too
<store>.partial-add-<id>       an unfinished update
    store/                     the new version
    work/                      temporary files
<store>.partial-old-<id>       the old version, which is being deleted
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from lazypert._internal.files import remove_folder, swap, sync, write_atomic
from lazypert._internal.paths import local_path
from lazypert.conversion.array_writer import ArrayWriter, read_nodes
from lazypert.conversion.target_lock import TargetLock
from lazypert.errors import ConfigError, DiskFullError, LazypertError, MachineError, StoreDamagedError
from lazypert.store.added import ADDED, element_digest, is_within
from lazypert.store.damage import store_damaged
from lazypert.store.format import MARKER
from lazypert.store.manifest import MANIFEST, manifest_digest, root_digest
from lazypert.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_LOG = logging.getLogger("lazypert")
_OLDEST = 3
"""Oldest format version that can be added to."""

_ROOT, _OBS = "zarr.json", "obs/zarr.json"
_NO_LINKS = (
    errno.EPERM, errno.EACCES, errno.EMLINK, errno.EXDEV, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL,
)  # fmt: skip
_FULL, _READ_ONLY = (errno.ENOSPC, errno.EDQUOT), (errno.EACCES, errno.EPERM, errno.EROFS)
_SYNC_THREADS = 16
_LITTLE = 64 << 20  # free bytes of a disk that is full for what is written at once
_COPY = "Only local stores can be changed: add or append to a local copy, then upload it again. Nothing was changed."


class StoreUpdate:
    """An update of a finished store, which is locked meanwhile. Use it as a context manager.

    Leaving it before `publish` leaves the store as it was.

    Parameters
    ----------
    path
        The store, a local folder.

    Attributes
    ----------
    store
        The store, opened for reading.

    Raises
    ------
    ConfigError
        If the path is a URL, or the store has an old format version.
    StoreNotFoundError
        If there is no store.
    StoreDamagedError
        If its manifest is damaged: what is added would hide that.
    MachineError
        If another process writes to the store, or its folder is not writable.
    """

    def __init__(self, path: str | Path) -> None:
        given = local_path("store", path, _COPY).absolute()
        self.target = given.resolve() if given.is_symlink() else given
        self._prefix = f"{self.target.name}.partial"
        if not self._interrupted_swaps():
            Store(self.target)  # before a lock file appears beside it
        self._lock = self._acquire()
        try:
            self._clean_up()
            self.store = Store(self.target)
            self._metadata, self._entries = _read_sealed(self.store)
            if self.store.format_version < _OLDEST:
                raise ConfigError(
                    f"store: got format version {self.store.format_version} in {str(path)!r}, expected {_OLDEST} or "
                    "later. Convert the source again, then add to the new store."
                )
        except BaseException:
            self._lock.release()
            raise
        self._folder = self.target.with_name(f"{self._prefix}-add-{uuid.uuid4().hex[:12]}")
        self._root, self.work = self._folder / "store", self._folder / "work"
        self._linked: set[str] = set()
        self._copied: list[Path] = []
        self._dropped: tuple[str, ...] = ()
        self._is_at_work = False  # during `start` and `publish`, and after an error in them

    def __repr__(self) -> str:
        return f"StoreUpdate({str(self.target)!r})"

    def __enter__(self) -> StoreUpdate:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        remove_folder(self._folder, after_error=error is not None)
        self._lock.release()
        if not isinstance(error, OSError) or isinstance(error, LazypertError) or not self._is_of_store(error):
            return
        if error.errno in _FULL:
            raise DiskFullError(
                f"The disk of {str(self.target)!r} is full ({error}). The store is as it was. Free some space, then "
                "add again."
            ) from error
        if error.errno in _READ_ONLY:
            raise self._not_writable(error) from error

    def _is_of_store(self, error: OSError) -> bool:
        """Whether an error is about files of the store, and not about others that the caller reads or writes."""
        if self._is_at_work:
            return True
        if error.filename is not None:
            named = Path(os.fsdecode(error.filename)).absolute()
            if not named.is_relative_to(self.target.parent):
                return False
            first = next(iter(named.relative_to(self.target.parent).parts), "")
            return first in ("", self.target.name) or first.startswith(self._prefix)
        # Writing to an open file names none.
        if error.errno == errno.EDQUOT:  # free bytes of a disk say nothing of a quota
            return True
        return error.errno in _FULL and shutil.disk_usage(self.target.parent).free < _LITTLE

    def start(self, replaced: Iterable[str] = ()) -> ArrayWriter:
        """Link the files of the store into its new version, and return a writer for what is added to it.

        Parameters
        ----------
        replaced
            Elements to leave out, such as ``"obs/guide"``, which are then written again.
        """
        self._dropped, self._is_at_work = tuple(replaced), True
        self.work.mkdir(parents=True)
        rewritten = {_ROOT, _OBS, *(f"{MANIFEST}/{name}" for name in ("key", "size", "crc32"))}
        self._link(self.target, self._root, "", rewritten.union(self._dropped))
        if self._copied:
            _LOG.info("%s: the disk has no hard links, so %d files were copied", self.target, len(self._copied))
        for key in (_ROOT, _OBS):
            shutil.copy2(self.target / key, self._root / key)
        self._writer = ArrayWriter(self._root)
        self._is_at_work = False
        return self._writer

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
        new = [key for key in _files(self._root, added) if key not in self._linked]
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
        self._sync([*new, *manifest_files, _ROOT, _OBS])
        self._swap()
        self._is_at_work = False

    @property
    def writer(self) -> ArrayWriter:
        """What writes into the new version, once it has been started."""
        return self._writer

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
        new = [key for key in files if key not in known or not self._is_link(key)]
        fresh = {key: writer.entry(key) for key in new}
        entries = [fresh.get(key) or known[key] for key in sorted(files)]
        writer.write_manifest(entries)
        manifest_files = _files(self._root, [f"{MANIFEST}/{name}" for name in ("key", "size", "crc32")])
        old, present = self._metadata["consolidated_metadata"]["metadata"], set(files)
        nodes = {path: node for path, node in old.items() if f"{path}/zarr.json" in present}
        nodes |= read_nodes(self._root, [*new, *manifest_files])
        writer.write_root({**attrs, "manifest_digest": manifest_digest(entries)}, nodes)
        self._sync([*new, *manifest_files, _ROOT])
        self._swap()

    def _is_link(self, key: str) -> bool:
        """Whether a file of the new version is that of the old one; copies on a disk without links count as new."""
        file = self._root / key
        with contextlib.suppress(FileNotFoundError):
            return file.samefile(self.target / key)
        return False

    def _list_columns(self, columns: Sequence[str]) -> None:
        """Append new columns to the ``column-order`` of obs; replaced ones keep their place."""
        file = self._root / _OBS
        metadata = json.loads(file.read_bytes())
        order = metadata["attributes"]["column-order"]
        metadata["attributes"]["column-order"] = order + [name for name in columns if name not in order]
        write_atomic(file, [json.dumps(metadata, indent=2).encode()])

    def _link(self, source: Path, copy: Path, prefix: str, left_out: set[str]) -> None:
        copy.mkdir()
        with os.scandir(source) as found:
            items = sorted(found, key=lambda item: item.name)
        for item in items:
            key = prefix + item.name
            if key in left_out:
                continue
            if item.is_symlink():
                (copy / item.name).symlink_to((source / item.name).readlink())
                self._linked.add(key)
            elif item.is_dir():
                self._link(source / item.name, copy / item.name, f"{key}/", left_out)
            else:
                self._link_file(source / item.name, copy / item.name)
                self._linked.add(key)
        shutil.copystat(source, copy)

    def _link_file(self, source: Path, copy: Path) -> None:
        """Link a file, or copy it if the disk has no hard links or does not permit this one."""
        if not self._copied:
            try:
                copy.hardlink_to(source)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
            else:
                return
        shutil.copy2(source, copy)
        self._copied.append(copy)

    def _sync(self, new: Iterable[str]) -> None:
        """Flush new files and all folders to disk, because the swap implies that they are there."""
        files = [self._root / key for key in new] + self._copied
        folders = [Path(folder) for folder, _, _ in os.walk(self._root)]
        with ThreadPoolExecutor(_SYNC_THREADS) as pool:  # disks combine what is flushed at the same time
            for paths in (files, folders):
                list(pool.map(sync, paths))

    def _swap(self) -> None:
        old = self.target.with_name(f"{self._prefix}-old-{uuid.uuid4().hex[:12]}")
        self._root.rename(old)
        swap(old, self.target)
        with contextlib.suppress(OSError):  # the update is complete
            sync(self.target.parent)
        remove_folder(old)

    # The lock, and what killed processes left.

    def _acquire(self) -> TargetLock:
        lock = self.target.with_name(f"{self._prefix}.lock")
        try:
            return TargetLock(lock, wait=False)
        except Timeout as error:
            raise MachineError(
                f"store: another process is writing {str(self.target)!r} (it holds {lock.name!r}). Wait for it to "
                "finish, then add again. Nothing was changed."
            ) from error
        except OSError as error:
            raise self._not_writable(error) from error

    def _not_writable(self, error: OSError) -> MachineError:
        return MachineError(
            f"store: got {str(self.target)!r}, but its folder {str(self.target.parent)!r} or the store is not writable "
            f"({error.strerror}). The new version is written beside the store: ask for permission, or add to a copy of "
            "it. Nothing was changed."
        )

    def _interrupted_swaps(self) -> list[Path]:
        """Old versions of a store that is missing, because a process was killed while it swapped them by renaming.

        Only a disk that cannot exchange two folders at once can leave one.
        """
        return [] if self.target.exists() else self._leftovers(r"-old-[0-9a-f]{12}\.swap")

    def _clean_up(self) -> None:
        for path in self._interrupted_swaps()[:1]:
            path.rename(self.target)
            _LOG.warning("%s: put back after an interrupted update", self.target)
        for path in self._leftovers(r"-(add|old)-[0-9a-f]{12}(\.swap)?"):
            remove_folder(path)

    def _leftovers(self, suffix: str) -> list[Path]:
        pattern = re.compile(re.escape(self._prefix) + suffix)
        with contextlib.suppress(FileNotFoundError):
            return [path for path in self.target.parent.iterdir() if pattern.fullmatch(path.name) and _is_ours(path)]
        return []


def _is_ours(path: Path) -> bool:
    """Whether a folder with the name of a leftover also has its content: a user's backup may have a similar name."""
    return path.is_dir() and ((path / _ROOT).exists() or {item.name for item in path.iterdir()} <= {"store", "work"})


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
