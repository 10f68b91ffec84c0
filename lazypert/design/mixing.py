"""How far the cells of a group are mixed in an epoch: cells of a stretch, and sentences of a window."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST_STRETCH, SHORTEST_STRETCH = 64, 16
"""Bounds of a stretch. More cells make more use of what is decoded for them; fewer mix better. A group whose windows
are single sentences may have stretches half as long as the shortest."""

WINDOW_SIZE = 256
"""Cells of a window at most, unless one sentence is longer."""

GROUP_SLICE = 4096
"""Cells of a group that are read at once and divided by batch, for sentences of one batch."""

# Two cells of a sentence meet again in the next epoch about 2/3 * stretch * group / window**2 times as often as by
# chance. This is the largest value of stretch * group / window**2, which a group of 9,600 has with the longest
# stretches and windows.
_MIXING = 9.4


class Mixing(NamedTuple):
    """How the cells of each group are mixed.

    Attributes
    ----------
    sentences_per_window
        (n_groups,) sentences that are cut from one window.
    stretch
        (n_groups,) cells of a stretch.
    """

    sentences_per_window: NDArray[np.int64]
    stretch: NDArray[np.int64]

    @classmethod
    def of_groups(cls, sizes: NDArray[np.int64], length: int) -> Mixing:
        """Choose the shortest windows that mix well enough with stretches that are long enough."""
        per_window = np.full(len(sizes), max(1, WINDOW_SIZE // length))
        stretch = np.full(len(sizes), SHORTEST_STRETCH)
        k = 1 << max(0, WINDOW_SIZE // length).bit_length()
        while k >= 1:
            window = k * length
            longest = SHORTEST_STRETCH if k == 1 and window < WINDOW_SIZE else LONGEST_STRETCH
            fits = np.minimum(_MIXING * window**2 / np.maximum(sizes, 1), min(window, longest))
            shortest = min(length, SHORTEST_STRETCH // 2 if k == 1 else SHORTEST_STRETCH)
            is_enough = (fits >= shortest) & (k <= max(1, WINDOW_SIZE // length))
            per_window[is_enough] = k
            stretch[is_enough] = np.maximum(1, 2 ** np.floor(np.log2(fits[is_enough]))).astype(np.int64)
            k //= 2
        # A group that is hardly larger than a sentence is read once.
        is_tiny = sizes <= min(LONGEST_STRETCH, 2 * length)
        return cls(np.where(is_tiny, np.maximum(1, -(-sizes // length)), per_window), stretch)

    @classmethod
    def of_batches(cls, sizes: NDArray[np.int64], whole: NDArray[np.int64], length: int) -> Mixing:
        """Windows that divide a group, of `whole` cells in all batches, into slices; cells are mixed within them."""
        slice_size = np.ceil(sizes / np.ceil(whole / GROUP_SLICE))
        return cls(np.maximum(1, np.ceil(slice_size / length)).astype(np.int64), np.maximum(1, sizes))
