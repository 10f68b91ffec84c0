"""Numba kernels that release the GIL and are cached on disk where possible."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numba import njit

if TYPE_CHECKING:
    from collections.abc import Callable


def kernel(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile a function with Numba so that it runs without the GIL.

    Compiled code is cached on disk, so that only the first process waits for the compiler. If Numba
    finds no writable directory (a read-only installation and no home directory), each process compiles
    the kernels that it uses.
    """
    try:
        return njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:  # Numba's "cannot cache function ...: no locator available"
        return njit(nogil=True, **options)(function)


def cache_directory() -> str | None:
    """Return the directory in which Numba caches lazypert's kernels, or None if none is writable."""
    directory: str | None = kernel(_identity).stats.cache_path  # type: ignore[attr-defined]
    return directory


def _identity(x: Any) -> Any:
    return x
