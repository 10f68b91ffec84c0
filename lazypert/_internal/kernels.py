"""Compiling kernels with Numba: without the GIL, cached on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numba import njit

if TYPE_CHECKING:
    from collections.abc import Callable


def kernel(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile with numba: no GIL, and cached on disk so that only the first run ever waits."""
    return njit(nogil=True, cache=True, **options)(function)
