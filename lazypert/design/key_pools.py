"""The controls of a pool by further keys: one level of smaller pools for each key."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.design.match_keys import MatchKeys
    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows


@dataclass(frozen=True, slots=True, eq=False)
class MatchedPools:
    """The pool that each of some cells draws from.

    Attributes
    ----------
    level
        (m,) number of keys beyond cell type and dataset that the pool shares with the cell.
    first
        (m,) where the pool begins: in the controls at level 0, in the `index` of its level at others.
    size
        (m,) its number of controls; 0 if the cell has none.
    """

    level: NDArray[np.int8]
    first: NDArray[np.int64]
    size: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PoolLevel:
    """Controls sorted by pools that share one more key than those of the level above.

    Attributes
    ----------
    index
        (n_controls,) control index, in one order within all pools. Controls without the key are left out.
    key
        (n_pools,) ascending ``parent * (n_labels + 1) + code + 1``, where `parent` is the number of the pool one level
        above, which at the first level is its first control.
    first
        (n_pools + 1,) where in `index` the controls of each pool begin.
    n_labels
        Number of labels of the key.
    """

    index: NDArray[np.integer]
    key: NDArray[np.int64]
    first: NDArray[np.int64]
    n_labels: int

    @classmethod
    def of(
        cls, parent: NDArray[np.int64], code: NDArray[np.integer], n_labels: int, *, missing_is_label: bool
    ) -> PoolLevel:
        """Sort controls.

        Parameters
        ----------
        parent
            (n_controls,) pool of each control one level above; -1 if it is in none.
        code
            (n_controls,) code of the key.
        """
        key = parent * (n_labels + 1) + code + np.int64(1)
        index = np.flatnonzero((parent >= 0) & (missing_is_label | (code >= 0)))
        index = index[np.argsort(key[index], kind="stable")]
        keys, first = np.unique(key[index], return_index=True)
        dtype = np.int32 if len(key) < 2**31 else np.int64
        return cls(index.astype(dtype), keys, np.append(first, len(index)).astype(np.int64), n_labels)

    def find(self, parent: NDArray[np.int64], code: NDArray[np.integer]) -> NDArray[np.int64]:
        """(m,) number of the pool with a code within a pool one level above; -1 if there is none."""
        if not len(self.key):
            return np.full(len(parent), -1)
        key = parent * (self.n_labels + 1) + code + np.int64(1)
        number = np.minimum(np.searchsorted(self.key, key), len(self.key) - 1)
        return np.where((parent >= 0) & (self.key[number] == key), number, -1)


@dataclass(frozen=True, slots=True, eq=False)
class KeyPools:
    """The pools of each level, from one key to all.

    Attributes
    ----------
    keys
        The keys.
    levels
        Pools that share one key, two, and so on.
    """

    keys: MatchKeys
    levels: tuple[PoolLevel, ...]

    @classmethod
    def of(cls, keys: MatchKeys, groups: Groups, controls: Rows, order: NDArray[np.integer] | None = None) -> KeyPools:
        """Sort controls, which are sorted by cell type and dataset already.

        Parameters
        ----------
        order
            (n_controls,) order of the controls within each pool; None for that of `controls`.
        """
        pool_keys = groups.matching_ids[groups.run_of(controls.starts)]
        sizes = controls.stops - controls.starts
        starts = np.cumsum(sizes) - sizes
        parent = np.repeat(starts[np.searchsorted(pool_keys, pool_keys)], sizes)
        order = np.arange(len(controls)) if order is None else order
        positions, parent = controls.positions(np.arange(len(controls)))[order], parent[order]
        levels = []
        for name in keys.names:
            code = keys.codes(name, positions)
            level = PoolLevel.of(parent, code, keys.n_labels(name), missing_is_label=keys.missing_is_label)
            parent = level.find(parent, code)
            levels.append(replace(level, index=order[level.index].astype(level.index.dtype, copy=False)))
        return cls(keys, tuple(levels))

    def match(self, positions: NDArray[np.int64], first: NDArray[np.int64], size: NDArray[np.int64]) -> MatchedPools:
        """Find the pool of each cell: with as many of the keys as any control has.

        Parameters
        ----------
        positions
            (m,) positions of the cells.
        first, size
            (m,) first control and number of controls of each cell's cell type and dataset.
        """
        level, first, size = np.zeros(len(positions), np.int8), first.copy(), size.copy()
        parent = np.where(size > 0, first, -1)
        for number, (name, pools) in enumerate(zip(self.keys.names, self.levels, strict=True), start=1):
            parent = pools.find(parent, self.keys.codes(name, positions))
            found = parent >= 0
            level[found] = number
            first[found] = pools.first[parent[found]]
            size[found] = pools.first[parent[found] + 1] - first[found]
        return MatchedPools(level, first, size)

    def to_controls(self, level: NDArray[np.int8], drawn: NDArray[np.int64]) -> NDArray[np.int64]:
        """(m, n) control index of elements of the `index` of each cell's level."""
        for number, pools in enumerate(self.levels, start=1):
            cells = np.flatnonzero(level == number)
            drawn[cells] = pools.index[drawn[cells]]
        return drawn
