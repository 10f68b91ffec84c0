"""Every error lazypert raises on purpose: what happened, got and expected, what to do.

Each is a `LazypertError` and also the builtin that fits, so ``except KeyError`` and
``except LazypertError`` both work.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class LazypertError(Exception):
    """Base class of every error that lazypert raises on purpose."""

    def __str__(self) -> str:
        # KeyError prints the repr of its argument, which turns a message into one escaped line.
        return str(self.args[0]) if len(self.args) == 1 else super().__str__()


class ConfigError(LazypertError, ValueError):
    """An option has a value that cannot be used."""


class ColumnNotFoundError(LazypertError, KeyError):
    """A named obs/var column, layer, embedding or gene is not in the screen."""


class LabelNotFoundError(LazypertError, KeyError):
    """A named perturbation, cell type or batch does not occur in the screen."""


class SourceFormatError(LazypertError, ValueError):
    """A source file is not what it claims to be, or cannot be carried exactly."""


class StoreNotFoundError(LazypertError, FileNotFoundError):
    """There is no finished lazypert store at the given place."""


class StoreExistsError(LazypertError, FileExistsError):
    """The target of a conversion exists already."""


class DiskFullError(LazypertError, OSError):
    """There is no room on the disk for what is to be written."""


class StoreDamagedError(LazypertError, OSError):
    """A store's bytes are not the ones that were written."""


class EmptyPoolError(LazypertError, ValueError):
    """A group of cells has no control cell to be matched with."""


class NotCountsError(LazypertError, ValueError):
    """Raw counts were needed, and the matrix holds something else."""


class ExperimentFileNotFoundError(ConfigError, FileNotFoundError):
    """An experiment's TOML file, or a dataset that it names, is not there."""


class SourceMissingError(SourceFormatError, FileNotFoundError):
    """There is no source file at the given path."""


def near_matches(name: str, known: Iterable[str], *, limit: int = 5) -> str:
    """Say which known names look like `name`, or list the first few when none does.

    Returns a phrase for the end of an error message, such as
    ``"Did you mean 'non-targeting'?"``.
    """
    names = [str(item) for item in known]
    folded: dict[str, str] = {}
    for item in names:
        folded.setdefault(item.casefold(), item)
    close = difflib.get_close_matches(str(name).casefold(), list(folded), n=limit, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(repr(folded[item]) for item in close)}?"
    if not names:
        return "There are none."
    shown = ", ".join(repr(item) for item in names[:limit])
    return f"There are {len(names):,}: {shown}{', ...' if len(names) > limit else ''}."


def no_such_column(
    name: str, column: str, kind: str, known: Iterable[str], *, of: object = None, hint: str = ""
) -> ColumnNotFoundError:
    """Make the error for a column, layer, embedding or gene that does not exist.

    Parameters
    ----------
    name
        The option that named it, such as ``"pert_col"``.
    kind
        What it should have been, such as ``"an obs column"``.
    known
        Those that exist.
    of
        The file or store, if one is to be named.
    hint
        What else to do about it.
    """
    where = "" if of is None else f" of {str(of)!r}"
    return ColumnNotFoundError(
        f"{name}: got {column!r}, expected {kind}{where}. {near_matches(column, known)} {hint}".rstrip()
    )
