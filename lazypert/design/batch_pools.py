"""The controls of a pool by batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows


@dataclass(frozen=True, slots=True, eq=False)
class BatchPools:
    """Controls sorted by pool and batch.

    Attributes
    ----------
    index
        (n_controls,) control index; ascending within a pool and batch.
    key
        (n_slices,) ascending ``pool * (n_batches + 1) + batch + 1``, where `pool` is the first control of the pool.
    first
        (n_slices + 1,) where in `index` the controls of each key begin.
    n_batches
        Number of batch labels.
    """

    index: NDArray[np.int64]
    key: NDArray[np.int64]
    first: NDArray[np.int64]
    n_batches: int

    @classmethod
    def of(cls, groups: Groups, controls: Rows) -> BatchPools:
        """Sort controls, which are sorted by pool already."""
        n_batches = len(groups.labels["batch"])
        pool_keys = groups.matching_ids[groups.run_of(controls.starts)]
        sizes = controls.stops - controls.starts
        starts = np.cumsum(sizes) - sizes
        first = np.repeat(starts[np.searchsorted(pool_keys, pool_keys)], sizes)
        key = first * (n_batches + 1) + groups.batch_of(controls[:]) + np.int64(1)
        index = np.argsort(key, kind="stable")
        keys, first_of_key = np.unique(key[index], return_index=True)
        return cls(index, keys, np.append(first_of_key, len(index)).astype(np.int64), n_batches)

    def key_of(self, pool: NDArray[np.int64], batch: NDArray[np.integer]) -> NDArray[np.int64]:
        """Key of a pool and batch."""
        return pool * (self.n_batches + 1) + batch + 1

    def slice(self, pool: NDArray[np.int64], batch: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Bounds in `index` of the controls of a pool and batch."""
        key = self.key_of(pool, batch)
        lo, hi = np.searchsorted(self.key, key, side="left"), np.searchsorted(self.key, key, side="right")
        return self.first[lo], self.first[hi]
