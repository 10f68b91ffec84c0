"""Staging directory of an unfinished conversion: locked while in use, kept after an interruption.

<store>.partial.lock           lock file, held by the one process that converts to <store>
<store>.partial-<fingerprint>  the staging directory
    store/                     renamed to <store> when it is complete
    work/                      spills, and a checkpoint of every completed task
<store>.partial-old-<id>       a replaced store that is being deleted
<store>.partial-add-<id>       an unfinished update of a store (see `store_update`)
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import uuid
from typing import TYPE_CHECKING

from filelock import Timeout

from lazypert._internal.files import directory_size, remove_folder, swap, sync
from lazypert.conversion.store_files import FolderFiles
from lazypert.conversion.target_lock import TargetLock
from lazypert.errors import ConfigError, StoreExistsError

if TYPE_CHECKING:
    from pathlib import Path

    from lazypert.conversion.store_files import StoreFiles

_LOG = logging.getLogger("lazypert")
_TARGET_EXISTS = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


class StagingDirectory:
    """The directory in which one process builds the store for a target.

    Parameters
    ----------
    target
        Final path of the store.
    fingerprint
        Identifies what is written and how. Work with the same fingerprint is resumed; work with
        any other is deleted. None starts from scratch and never resumes.

    Attributes
    ----------
    folder
        Path of the staging directory.
    is_resumed
        Whether work with this fingerprint was found.
    is_restarted
        Whether work with another fingerprint was deleted.
    files
        Where the shards of the store are written.

    Raises
    ------
    StoreExistsError
        If another process is writing to the same target.
    ConfigError
        If the target's parent folder cannot be created or written to.
    """

    def __init__(self, target: Path, fingerprint: str | None = None) -> None:
        self.target, self._prefix = target, _prefix(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"store: got {str(target)!r}, but the folder {str(target.parent)!r} cannot be created "
                f"({error.strerror}). Choose another path. Nothing was written."
            ) from error
        self._lock_path = target.with_name(f"{self._prefix}.lock")
        self._lock = self._acquire()
        self.folder = target.with_name(f"{self._prefix}-{fingerprint or uuid.uuid4().hex[:12]}")
        outdated = [path for path in _leftovers(target) if path != self.folder]
        self.is_restarted = fingerprint is not None and bool(outdated)
        for path in outdated:
            remove_folder(path)
        self.is_resumed = self.folder.exists()
        self.store.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(exist_ok=True)
        self.files: StoreFiles = FolderFiles(self.store)

    def __repr__(self) -> str:
        return f"StagingDirectory({str(self.folder)!r})"

    @property
    def location(self) -> str:
        """Where the store will be, for messages."""
        return str(self.target)

    @property
    def store(self) -> Path:
        """The unfinished store."""
        return self.folder / "store"

    @property
    def work(self) -> Path:
        """Spills and checkpoints."""
        return self.folder / "work"

    def expect(self, sizes: dict[str, int]) -> None:
        """Say which files a store consists of; in a folder, they are what is there."""

    def publish(self, *, overwrite: bool) -> None:
        """Put the complete store in its place: only one writer can win, and a replaced store is never missing.

        Raises
        ------
        StoreExistsError
            If a store has appeared at the target in the meantime.
        """
        _sync_tree(self.store)
        if overwrite and self.target.exists():
            old = self.target.with_name(f"{self._prefix}-old-{uuid.uuid4().hex[:12]}")
            self.store.rename(old)
            swap(old, self.target)
            sync(self.target.parent)
            remove_folder(old)
            if old.exists():
                _LOG.warning("the replaced store could not be deleted: %s", old)
            return
        try:
            self.store.rename(self.target)
        except OSError as error:
            if error.errno not in _TARGET_EXISTS:
                raise
            raise target_exists(self.target) from error
        sync(self.target.parent)

    def _acquire(self) -> TargetLock:
        """Lock the target. On a file system without locks, the final rename still lets only one writer win."""
        try:
            return TargetLock(self._lock_path, wait=False)
        except Timeout as error:
            raise StoreExistsError(
                f"store: another process is writing {str(self.target)!r} (it holds {self._lock_path.name!r}). "
                "Wait for it to finish, or choose another path. Nothing was written."
            ) from error
        except OSError as error:
            raise ConfigError(
                f"store: got {str(self.target)!r}, but its folder is not writable ({error.strerror}). "
                "Choose another path. Nothing was written."
            ) from error

    def release(self, *, keep: bool, after_error: bool = False) -> None:
        """Unlock the target, and delete the staging directory unless `keep` is True."""
        if not keep:
            remove_folder(self.folder, after_error=after_error)
        self._lock.release()


def held_bytes(target: Path) -> int:
    """Bytes that unfinished conversions to a target hold, which the next one reuses or deletes."""
    return sum(map(directory_size, _leftovers(target)))


def _prefix(target: Path) -> str:
    return f"{target.name}.partial"


def _leftovers(target: Path) -> list[Path]:
    """Directories left by killed processes: staging directories, and replaced stores.

    Both the name and the content must match, because a user's own backup may have a similar name.
    """
    pattern = re.compile(re.escape(_prefix(target)) + r"-((old-|add-)?[0-9a-f]{12})")
    siblings = target.parent.iterdir() if target.parent.is_dir() else ()
    folders = [path for path in siblings if pattern.fullmatch(path.name) and path.is_dir()]
    return [path for path in folders if (path / "zarr.json").exists() or _names_in(path) <= {"store", "work"}]


def _names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def check_folder(target: Path, *, overwrite: bool) -> None:
    """Raise `StoreExistsError` if a folder exists and may not be replaced by a store."""
    if target.exists() and not overwrite:
        raise target_exists(target)
    if target.exists() and not _is_replaceable(target):
        raise StoreExistsError(
            f"store: {str(target)!r} exists and is not a Zarr store. overwrite=True replaces only stores, so that "
            "a mistyped path deletes nothing else. Choose another path. Nothing was written."
        )


def target_exists(target: Path) -> StoreExistsError:
    """Return the error for a store that exists already."""
    return StoreExistsError(
        f"store: {str(target)!r} exists already. Pass overwrite=True to replace it once the new store is complete, "
        "or choose another path. Nothing was written."
    )


def _is_replaceable(target: Path) -> bool:
    """Whether a path is a Zarr store, intact or damaged, or an empty folder."""
    return target.is_dir() and ((target / "zarr.json").exists() or not any(target.iterdir()))


def _sync_tree(root: Path) -> None:
    """Sync all files and folders, because the rename implies that they are on disk."""
    for path in sorted(root.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            sync(path)
    sync(root)
