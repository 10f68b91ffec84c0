"""Errors of the machine, which say nothing about the file or store that was read."""

from __future__ import annotations

import errno
import re

from lazypert.errors import LazypertError, MachineError

_ADVICE = {
    "Close other files, or raise the limit of open files (ulimit -n).": (errno.EMFILE, errno.ENFILE),
    "Another program has locked it, probably to write to it. Wait until that has finished.": (
        errno.EAGAIN,
        errno.EDEADLK,
    ),
    "Free some memory, or lower memory_limit.": (errno.ENOMEM,),
    "Check its permissions.": (errno.EACCES, errno.EPERM),
    "The disk or the network failed. Try again, and check the disk if it fails again.": (
        errno.EIO,
        errno.ESTALE,
        errno.ENXIO,
        errno.ENODEV,
        errno.ETIMEDOUT,
        errno.ECONNRESET,
    ),
}
_ADVICE_ON = {code: advice for advice, codes in _ADVICE.items() for code in codes}

# HDF5 puts the number into the text of errors during reads.
_ERRNO_IN_TEXT = re.compile(r"\berrno = (\d+)")


def machine_error(name: object, error: Exception) -> LazypertError:
    """Return the error for a file that exists and could not be read, whatever the reason.

    An error of lazypert's own is returned as it is: it says what happened.
    """
    if isinstance(error, LazypertError):
        return error
    advice = _ADVICE_ON.get(_errno(error), "Try again, and check the disk or the network if it fails again.")
    return MachineError(f"{str(name)!r} cannot be read now ({error}). This does not mean that it is damaged. {advice}")


def raise_machine_error(name: object, error: BaseException) -> None:
    """Raise if an error, or what caused it, is one of the machine; otherwise the file itself is at fault.

    Parameters
    ----------
    name
        What was read, such as the path of a file.
    error
        What a library raised.

    Raises
    ------
    MemoryError
        If there was too little memory.
    MachineError
        If too many files are open, the file is locked or not permitted to be read, or the disk or network failed.
    """
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, MemoryError | MachineError):
            raise cause
        advice = _ADVICE_ON.get(_errno(cause))
        if advice is not None:
            raise MachineError(
                f"{str(name)!r} cannot be read now ({cause}). This does not mean that it is damaged. {advice}"
            ) from error
        cause = cause.__cause__ or cause.__context__


def _errno(error: BaseException) -> int:
    if not isinstance(error, OSError | RuntimeError):
        return 0
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = _ERRNO_IN_TEXT.search(str(error))
    return int(found[1]) if found else 0
