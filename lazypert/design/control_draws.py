"""Draws from pools of controls: for which cells, from which part of a pool, and which numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lazypert._internal.randomness import counter_hash, draw_distinct

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Streams of random numbers; the others of pools are in `lazypert.design.control_pools`.
_SLOT, _DRAW = 101, 104

_DRAW_BITS = 28  # of a counter; the others are the position


@dataclass(frozen=True, slots=True, eq=False)
class DrawnCells:
    """The cells that controls are drawn for.

    Attributes
    ----------
    position, row, run
        (m,) position in the run table, store row, and run of each.
    draw
        (m,) number of the occurrence of the cell in the epoch, from 0: each gets other controls.
    phase
        (m,) how far through the epoch the cell comes, from 0 to below 1; used with a reach only.
    """

    position: NDArray[np.int64]
    row: NDArray[np.int64]
    run: NDArray[np.int64]
    draw: NDArray[np.int64] | int = 0
    phase: NDArray[np.float64] | float = 0.0

    @property
    def counter(self) -> NDArray[np.int64]:
        """(m,) a different number for each cell and draw, whatever the order of the rows in the store."""
        return (self.position.astype(np.int64) << _DRAW_BITS) + self.draw


@dataclass(frozen=True, slots=True)
class Reach:
    """The part of each pool that may be drawn from at a time.

    Attributes
    ----------
    n_controls
        Controls of one pool within reach; pools that are not larger are always within reach.
    turns
        How many times the reach passes through a pool in one epoch.
    """

    n_controls: int
    turns: float


def draw_numbers(
    words: tuple[int, ...], counter: NDArray[np.int64], sizes: NDArray[np.int64], n: int
) -> NDArray[np.int64]:
    """(m, n) numbers below ``sizes[i]``, distinct where there are enough, and each of the n alike."""
    drawn = draw_distinct((*words, _DRAW), counter, np.maximum(sizes, 1), n)
    if n == 1:
        return drawn
    # The draws of Floyd's algorithm are uniform only as a set: the j-th one comes from a range that depends on j.
    # Rotating them at random makes the slots alike.
    shift = (counter_hash((*words, _SLOT), counter) % np.uint64(n)).astype(np.int64)
    return np.take_along_axis(drawn, (np.arange(n) + shift[:, None]) % n, axis=1)
