"""The folder in which a store comes to be: locked, and kept when the work is cut off, to be resumed.

<store>.partial.lock           held by the one process that converts to <store>
<store>.partial-<fingerprint>  what that process has done so far
    store/                     becomes <store> by one rename
    work/                      spills, and a record of every task that is done
<store>.partial-old-<id>       a store that was replaced, while it is being deleted
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from typing import TYPE_CHECKING

from lazypert.errors import ConfigError, StoreExistsError

if TYPE_CHECKING:
    from pathlib import Path


class StagingDirectory:
    """The one folder in which a target is being made.

    Parameters
    ----------
    target
        Where the store will be.
    fingerprint
        Says what is written there, and how. Work of the same fingerprint is resumed, other work
        is thrown away. None begins anew each time and keeps nothing.

    Attributes
    ----------
    is_resumed
        Whether there was work of this fingerprint.
    is_restarted
        Whether work of another fingerprint was thrown away.

    Raises
    ------
    StoreExistsError
        When another process is making the same target.
    """

    def __init__(self, target: Path, fingerprint: str | None = None) -> None:
        self.target, self._prefix = target, f"{target.name}.partial"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"The folder {str(target.parent)!r} for the store cannot be made ({error.strerror}). "
                "Nothing was written. Choose another target."
            ) from error
        self._lock = self._acquire()
        self.folder = target.with_name(f"{self._prefix}-{fingerprint or uuid.uuid4().hex[:12]}")
        others = [path for path in self._leftovers() if path != self.folder]
        self.is_restarted = fingerprint is not None and bool(others)
        for path in others:
            shutil.rmtree(path, ignore_errors=True)
        self.is_resumed = self.folder.exists()
        self.store.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(exist_ok=True)

    @property
    def store(self) -> Path:
        """The store as far as it has come."""
        return self.folder / "store"

    @property
    def work(self) -> Path:
        """Spills and records."""
        return self.folder / "work"

    def _leftovers(self) -> list[Path]:
        """Folders that killed processes left behind: unfinished work, and stores that were replaced.

        Only what is named and built as ours: a user's own copy may have a similar name.
        """
        named = re.compile(re.escape(self._prefix) + r"-([0-9a-f]{12}|old-[0-9a-f]{12})")
        folders = [p for p in self.target.parent.iterdir() if named.fullmatch(p.name) and p.is_dir()]
        return [p for p in folders if (p / "zarr.json").exists() or {c.name for c in p.iterdir()} <= {"store", "work"}]

    def name_for_old(self) -> Path:
        """Where a store that is being replaced lies until it is deleted."""
        return self.target.with_name(f"{self._prefix}-old-{uuid.uuid4().hex[:12]}")

    def _acquire(self) -> int | None:
        try:
            import fcntl
        except ImportError:  # Windows: no lock; the final rename still lets one writer win
            return None
        path = self.target.with_name(f"{self._prefix}.lock")
        while True:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise ConfigError(
                    f"Nothing can be written beside {str(self.target)!r} ({error.strerror}). Choose another target."
                ) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(fd)
                raise StoreExistsError(
                    f"Another process is writing {str(self.target)!r} at this moment (it holds {path.name!r}). "
                    "Nothing was written. Wait for it, or choose another target."
                ) from error
            except OSError:  # a file system without locks
                os.close(fd)
                path.unlink(missing_ok=True)
                return None
            # The one who held it before may have unlinked it since: then it locks nobody out.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(fd).st_ino:
                    return fd
            os.close(fd)

    def release(self, *, keep: bool) -> None:
        """Let go of the target; without `keep` the folder goes too."""
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            self.target.with_name(f"{self._prefix}.lock").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None
