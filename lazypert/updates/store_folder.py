"""A local store that is being updated: its new version consists of hard links to the old files, and of new files.

Readers see either all of an update or none, whichever file of the store they begin with.

<store>.partial.lock           the lock that conversions take too
<store>.partial-add-<id>       an unfinished update
    store/                     the new version
    work/                      temporary files
<store>.partial-old-<id>       the old version, which is being deleted
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import Timeout

from lazypert._internal.files import remove_folder, swap, sync
from lazypert.conversion.target_lock import TargetLock
from lazypert.errors import MachineError
from lazypert.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_LOG = logging.getLogger("lazypert")
_NO_LINKS = (
    errno.EPERM, errno.EACCES, errno.EMLINK, errno.EXDEV, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL,
)  # fmt: skip
_SYNC_THREADS = 16
_ROOT = "zarr.json"


class StoreFolder:
    """A local store, locked until `release`.

    Parameters
    ----------
    path
        Its folder.

    Attributes
    ----------
    path
        The folder itself, if a link was given; what is temporary is beside it.
    store
        The store, opened for reading.

    Raises
    ------
    StoreNotFoundError
        If there is no store.
    MachineError
        If another process writes to the store, or its folder is not writable.
    """

    def __init__(self, path: Path) -> None:
        given = path.absolute()
        self.path = given.resolve() if given.is_symlink() else given
        if not self._interrupted_swaps():
            Store(self.path)  # before a lock file appears beside it
        self._lock = lock_beside(self.path, str(self.path), self.not_writable)
        self._copied: list[Path] = []
        try:
            self._clean_up()
            self.store = Store(self.path)
        except BaseException:
            self._lock.release()
            raise

    def __str__(self) -> str:
        return str(self.path)

    def fill(self, root: Path, left_out: set[str]) -> None:
        """Link all files into the folder of a new version, apart from some files and folders."""
        self._link(self.path, root, "", left_out)
        if self._copied:
            _LOG.info("%s: the disk has no hard links, so %d files were copied", self.path, len(self._copied))

    def is_old(self, root: Path, key: str) -> bool:
        """Whether a file of the new version is that of the old one; copies on a disk without links count as new."""
        with contextlib.suppress(FileNotFoundError):
            return (root / key).samefile(self.path / key)
        return False

    def read_old(self, key: str) -> bytes:
        """Read a file of the old version."""
        return (self.path / key).read_bytes()

    def commit(self, root: Path, written: Iterable[str], replaced: Iterable[str]) -> None:  # noqa: ARG002
        """Put the new version in the place of the old one.

        Parameters
        ----------
        root
            Folder of the new version.
        written
            Keys of its new files.
        replaced
            Elements that were written again.
        """
        self._sync(root, written)
        old = self.path.with_name(f"{self.path.name}.partial-old-{uuid.uuid4().hex[:12]}")
        root.rename(old)
        swap(old, self.path)
        with contextlib.suppress(OSError):  # the update is complete
            sync(self.path.parent)
        remove_folder(old)

    def release(self) -> None:
        """Unlock the store."""
        self._lock.release()

    def not_writable(self, error: OSError) -> MachineError:
        """Make the error for a folder that cannot be written to."""
        return MachineError(
            f"store: got {str(self.path)!r}, but its folder {str(self.path.parent)!r} or the store is not writable "
            f"({error.strerror}). The new version is written beside the store: ask for permission, or add to a copy of "
            "it. Nothing was changed."
        )

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
            elif item.is_dir():
                self._link(source / item.name, copy / item.name, f"{key}/", left_out)
            else:
                self._link_file(source / item.name, copy / item.name)
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

    def _sync(self, root: Path, written: Iterable[str]) -> None:
        """Flush new files and all folders to disk, because the swap implies that they are there."""
        files = [root / key for key in written] + self._copied
        folders = [Path(folder) for folder, _, _ in os.walk(root)]
        with ThreadPoolExecutor(_SYNC_THREADS) as pool:  # disks combine what is flushed at the same time
            for paths in (files, folders):
                list(pool.map(sync, paths))

    # What killed processes left.

    def _interrupted_swaps(self) -> list[Path]:
        """Old versions of a store that is missing, because a process was killed while it swapped them by renaming.

        Only a disk that cannot exchange two folders at once can leave one.
        """
        return [] if self.path.exists() else _leftovers(self.path, r"-old-[0-9a-f]{12}\.swap")

    def _clean_up(self) -> None:
        for path in self._interrupted_swaps()[:1]:
            path.rename(self.path)
            _LOG.warning("%s: put back after an interrupted update", self.path)
        remove_leftovers(self.path)


def lock_beside(path: Path, shown: str, not_writable: Callable[[OSError], MachineError]) -> TargetLock:
    """Take the lock of a store, whose file is beside a path.

    Parameters
    ----------
    shown
        Name of the store, for errors.
    not_writable
        Makes the error for a folder that cannot be written to.

    Raises
    ------
    MachineError
        If another process holds it.
    """
    lock = path.with_name(f"{path.name}.partial.lock")
    try:
        return TargetLock(lock, wait=False)
    except Timeout as error:
        raise MachineError(
            f"store: another process is writing {shown!r} (it holds {lock.name!r}). Wait for it to finish, then add "
            "again. Nothing was changed."
        ) from error
    except OSError as error:
        raise not_writable(error) from error


def remove_leftovers(path: Path) -> None:
    """Delete what killed updates have left beside a path."""
    for left in _leftovers(path, r"-(add|old)-[0-9a-f]{12}(\.swap)?"):
        remove_folder(left)


def _leftovers(path: Path, suffix: str) -> list[Path]:
    pattern = re.compile(re.escape(f"{path.name}.partial") + suffix)
    with contextlib.suppress(FileNotFoundError):
        return [left for left in path.parent.iterdir() if pattern.fullmatch(left.name) and _is_ours(left)]
    return []


def _is_ours(path: Path) -> bool:
    """Whether a folder with the name of a leftover also has its content: a user's backup may have a similar name."""
    return path.is_dir() and ((path / _ROOT).exists() or {item.name for item in path.iterdir()} <= {"store", "work"})
