"""Inverse of a permutation of integers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def inverse(permutation: NDArray[Any]) -> NDArray[Any]:
    """Return the inverse of a permutation: the position of each of its elements."""
    out = np.empty_like(permutation)
    out[permutation] = np.arange(len(permutation), dtype=permutation.dtype)
    return out
