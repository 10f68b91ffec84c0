"""The controls of a pool by further keys: one level of smaller pools for each key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lazypert.design.pool_ranks import count_up
from lazypert.screen.rows import index_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


class KeyedControls(NamedTuple):
    """Some controls.

    Attributes
    ----------
    control
        (n,) their numbers.
    parent
        (n,) pool of each one level above; -1 if it is in none.
    code
        (n,) code of the key.
    """

    control: NDArray[np.integer]
    parent: NDArray[np.int64]
    code: NDArray[np.integer]


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
        cls, read: Callable[[], Iterator[KeyedControls]], n_controls: int, n_labels: int, *, missing_is_label: bool
    ) -> PoolLevel:
        """Sort controls, a bounded number at a time.

        Parameters
        ----------
        read
            Iterates over the controls, and again when it is called again.
        n_controls
            Number of all controls.
        """

        def keys() -> Iterator[tuple[NDArray[np.integer], NDArray[np.int64]]]:
            for control, parent, code in read():
                chosen = (parent >= 0) & (missing_is_label | (code >= 0))
                yield control[chosen], parent[chosen] * (n_labels + 1) + code[chosen] + np.int64(1)

        known, n_of = np.empty(0, np.int64), np.empty(0, np.int64)
        for _, key in keys():
            found, n_found = np.unique(key, return_counts=True)
            known, number = np.unique(np.concatenate([known, found]), return_inverse=True)
            n_of = np.bincount(number, np.concatenate([n_of, n_found]), len(known)).astype(np.int64)
        first = np.append(0, np.cumsum(n_of))
        index = np.empty(first[-1], dtype=index_dtype(n_controls))
        next_place = first[:-1].copy()
        for control, key in keys():
            index[count_up(np.searchsorted(known, key), next_place)] = control
        return cls(index, known, first, n_labels)

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
        first_of_pool = (np.cumsum(sizes) - sizes)[np.searchsorted(pool_keys, pool_keys)]
        levels: list[PoolLevel] = []

        def read() -> Iterator[KeyedControls]:
            """Controls in their order, with their pool at the last level so far and their code of the next key."""
            names = keys.names[: len(levels) + 1]
            for index, positions in controls.chunks():
                control: NDArray[np.integer] = index
                if order is not None:
                    control = order[index[0] : index[-1] + 1]
                    positions = controls.positions(control)
                parent = first_of_pool[controls.interval_of(positions)]
                for name, pools in zip(names, levels, strict=False):
                    parent = pools.find(parent, keys.codes(name, positions))
                yield KeyedControls(control, parent, keys.codes(names[-1], positions))

        for name in keys.names:
            n_labels, missing = keys.n_labels(name), keys.missing_is_label
            levels.append(PoolLevel.of(read, len(controls), n_labels, missing_is_label=missing))
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
