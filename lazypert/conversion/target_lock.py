"""Lock files: one process writes to a path at a time."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from pathlib import Path

_LOCKS_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class TargetLock:
    """A lock file, held until `release`, or until its owner dies. On a file system without locks it locks nothing.

    Parameters
    ----------
    path
        The lock file, which is deleted on release.
    wait
        Whether to wait until another owner releases it.

    Raises
    ------
    Timeout
        If another process holds it, and `wait` is False.
    OSError
        If the file cannot be created.
    """

    def __init__(self, path: Path, *, wait: bool) -> None:
        self._path = path
        # The owner may release it in another thread. A marker file in place of flock would outlive a killed owner.
        self._lock: FileLock | None = FileLock(path, thread_local=False, fallback_to_soft=False)
        while True:
            try:
                self._lock.acquire(blocking=wait)
            except Timeout:
                if not path.exists():  # its owner has just deleted it: see `release`
                    continue
                raise
            except OSError as error:
                if error.errno not in _LOCKS_UNSUPPORTED:
                    raise
                path.unlink(missing_ok=True)
                self._lock = None
            return

    def release(self) -> None:
        """Delete and unlock the file."""
        if self._lock is None:
            return
        # Deleted while it is still locked. A process that has opened the deleted file gets no lock on it, because
        # filelock rejects a file without links; a process that opens the path from now on creates a new file.
        with contextlib.suppress(PermissionError):  # Windows: filelock deletes the file itself
            self._path.unlink(missing_ok=True)
        self._lock.release()
        self._lock = None
