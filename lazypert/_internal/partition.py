"""Dividing elements into parts, in linear time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.kernels import kernel
from lazypert._internal.texts import bounds_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


def partition(part: NDArray[np.integer], n_parts: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sort elements by part; those of one part stay in order.

    Parameters
    ----------
    part
        (n,) part of each element.

    Returns
    -------
    order
        (n,) int64 number of the element at each position.
    bounds
        (n_parts + 1,) int64: part ``k`` has the positions ``bounds[k]`` to ``bounds[k + 1]``.
    """
    bounds = bounds_of(np.bincount(part, minlength=n_parts))
    order = np.empty(len(part), np.int64)
    _partition(part, bounds[:-1].copy(), order)
    return order, bounds


@kernel
def _partition(part: Any, filled: Any, order: Any) -> None:
    for i in range(len(part)):
        position = filled[part[i]]
        order[position] = i
        filled[part[i]] = position + 1
