"""The error for a store whose bytes are not the ones that were written."""

from __future__ import annotations

from lazypert.errors import StoreDamagedError


def store_damaged(key: str, problem: str) -> StoreDamagedError:
    """Make the error for a damaged file of a store.

    Parameters
    ----------
    key
        The file or array, such as ``"X/data/c/0"``.
    problem
        What is wrong with it.
    """
    return StoreDamagedError(
        f"{key}: {problem}. The store is damaged. "
        "Run lazypert.verify(store) to list every damaged file, then restore those files from a copy or "
        "convert the source again."
    )
