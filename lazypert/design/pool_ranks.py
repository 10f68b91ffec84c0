"""Numbers of cells among those that draw from the same pool, counted without sorting the cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.kernels import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.design.key_pools import KeyPools, MatchedPools


def count_up(number: NDArray[np.integer], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) how often each number occurred before, including what `counts` says, which is updated.

    Parameters
    ----------
    number
        (n,) numbers below ``len(counts)``.
    """
    out = np.empty(len(number), dtype=np.int64)
    _count_up(number, counts, out)
    return out


@kernel
def _count_up(number: Any, counts: Any, out: Any) -> None:
    for i in range(len(number)):
        out[i] = counts[number[i]]
        counts[number[i]] += 1


class PoolNumbers:
    """One number for each pool, of whatever level; cells without a pool have one as well.

    Parameters
    ----------
    first, size
        (n_runs,) pools of the cell type and dataset of each run.
    by_key
        Pools by further keys, or None.
    """

    def __init__(self, first: NDArray[np.int64], size: NDArray[np.int64], by_key: KeyPools | None) -> None:
        self._firsts = [np.unique(first[size > 0]), *([] if by_key is None else [p.first[:-1] for p in by_key.levels])]
        self._before = np.cumsum([1, *map(len, self._firsts)])  # number 0 is for cells without a pool

    def __len__(self) -> int:
        return int(self._before[-1])

    def of(self, pools: MatchedPools) -> NDArray[np.int64]:
        """(m,) number of the pool of each cell."""
        out = np.zeros(len(pools.first), dtype=np.int64)
        for level, firsts in enumerate(self._firsts):
            cells = np.flatnonzero((pools.level == level) & (pools.size > 0))
            out[cells] = self._before[level] + np.searchsorted(firsts, pools.first[cells])
        return out
