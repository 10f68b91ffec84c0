"""Every exception that lazypert raises on purpose.

Each is a `LazypertError` and also the built-in exception that fits, so both
``except LazypertError`` and ``except KeyError`` catch a missing column::

    LazypertError
    ├── ConfigError (ValueError)                         an option has a value that cannot be used
    │   └── ExperimentFileNotFoundError (FileNotFoundError)
    ├── ColumnNotFoundError (KeyError)                   no such column, layer, embedding or gene
    ├── LabelNotFoundError (KeyError)                    no such perturbation, cell type or batch
    ├── SourceFormatError (ValueError)                   a source file cannot be read or stored exactly
    │   └── SourceMissingError (FileNotFoundError)
    ├── StoreNotFoundError (FileNotFoundError)           no finished store at this path
    ├── StoreExistsError (FileExistsError)               the output of a conversion already exists
    ├── StoreDamagedError (OSError)                      the bytes of a store have changed
    ├── StoreChangedError (OSError)                      a store, or a column, was replaced after it was opened
    ├── DiskFullError (OSError)                          not enough space on the disk
    ├── MachineError (OSError)                           open files, locks, permissions, or a failing disk
    │   └── StorageError                                 object storage that does not answer, or answers with an error
    │       └── AccessDeniedError (PermissionError)      credentials that are missing, wrong or not sufficient
    ├── ClusterError (RuntimeError)                      a Dask cluster was lost, or a worker lacks what it needs
    ├── RunChangedError (ValueError)                     something that a run manifest describes has changed
    ├── EmptyPoolError (ValueError)                      a group has no controls to match with
    └── NotCountsError (ValueError)                      the matrix does not hold raw counts

Messages say what was wrong and what to do: ``name: got X, expected Y. What to do.``

`NotCopiedWarning` (UserWarning) says what a conversion leaves out.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


_LONGEST_SHOWN, _SHOWN = 120, 100  # characters of a name in a message


class LazypertError(Exception):
    """Base class of all exceptions that lazypert raises on purpose."""

    def __str__(self) -> str:
        # KeyError prints the repr of its argument, which escapes line breaks and adds quotes.
        return str(self.args[0]) if len(self.args) == 1 else super().__str__()


class ConfigError(LazypertError, ValueError):
    """An option has a value that cannot be used."""


class ColumnNotFoundError(LazypertError, KeyError):
    """A named obs or var column, layer, embedding or gene does not exist in the screen."""


class LabelNotFoundError(LazypertError, KeyError):
    """A named perturbation, cell type or batch does not occur in the screen."""


class SourceFormatError(LazypertError, ValueError):
    """A source file is not in the format that it claims, or holds values that cannot be stored exactly."""


class StoreNotFoundError(LazypertError, FileNotFoundError):
    """The given path or URL holds no finished lazypert store."""


class StoreExistsError(LazypertError, FileExistsError):
    """The output of a conversion already exists."""


class DiskFullError(LazypertError, OSError):
    """The disk has too little free space for the output."""


class MachineError(LazypertError, OSError):
    """The machine could not read a file, which may be intact: too many open files, a lock, a failing disk."""


class StorageError(MachineError):
    """Object storage did not answer, or answered with an error; what it holds may be intact."""


class StoreDamagedError(LazypertError, OSError):
    """The bytes of a store are not those that were written."""


class StoreChangedError(LazypertError, OSError):
    """A store, or an obs column of it, was replaced after the store was opened; open it again."""


class ClusterError(LazypertError, RuntimeError):
    """A Dask cluster was lost, or one of its workers cannot see the files that it needs."""


class RunChangedError(LazypertError, ValueError):
    """Something that a run manifest describes is not what it was when the manifest was written."""


class EmptyPoolError(LazypertError, ValueError):
    """A group of cells has no controls to match with."""


class NotCountsError(LazypertError, ValueError):
    """Raw counts are required, but the matrix holds other values."""


class NotCopiedWarning(UserWarning):
    """A conversion leaves out something that the source files hold."""


# A built-in error comes first in the next classes: only `OSError.__new__` can construct both of their bases, and
# libraries that rebuild exceptions in another process call the `__new__` of the first base.


class ExperimentFileNotFoundError(FileNotFoundError, ConfigError):
    """An experiment's TOML file, or a dataset that it names, does not exist."""


class AccessDeniedError(PermissionError, StorageError):
    """Object storage refuses access: credentials are missing, wrong or not sufficient."""


class SourceMissingError(FileNotFoundError, SourceFormatError):
    """The source file of a conversion does not exist."""


def quoted(name: str) -> str:
    """Return a name in quotes for a message; the end of a long one is left out.

    Examples
    --------
    >>> quoted("TP53"), len(quoted("x" * 700))
    ("'TP53'", 122)
    """
    return repr(name) if len(name) <= _LONGEST_SHOWN else f"{name[:_SHOWN]!r}... ({len(name):,} characters)"


def near_matches(name: str, known: Iterable[str], *, limit: int = 5) -> str:
    """Suggest known names that resemble `name`, or list the first few if none does.

    Returns
    -------
    The last sentence of an error message, such as ``"Did you mean 'non-targeting'?"``.
    """
    names = [str(item) for item in known]
    folded: dict[str, str] = {}
    for item in names:
        folded.setdefault(item.casefold(), item)
    close = difflib.get_close_matches(str(name).casefold(), list(folded), n=limit, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(quoted(folded[item]) for item in close)}?"
    if not names:
        return "There are none."
    shown = ", ".join(map(quoted, names[:limit]))
    return f"There are {len(names):,}: {shown}{', ...' if len(names) > limit else ''}."


def no_such_column(
    name: str, column: str, kind: str, known: Iterable[str], *, of: object = None, hint: str = ""
) -> ColumnNotFoundError:
    """Return the error for a column, layer, embedding or gene that does not exist.

    Parameters
    ----------
    name
        The option that named it, such as ``"pert_col"``.
    column
        The name that was given.
    kind
        What was expected, such as ``"an obs column"``.
    known
        The names that exist.
    of
        The file or store, if the message should name it.
    hint
        Further advice, appended to the message.
    """
    where = "" if of is None else f" of {str(of)!r}"
    return ColumnNotFoundError(
        f"{name}: got {column!r}, expected {kind}{where}. {near_matches(column, known)} {hint}".rstrip()
    )
