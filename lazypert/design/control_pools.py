"""Pools of control cells, and which of them a cell draws from.

A pool is the controls of one (cell type, dataset), or those of them that share further keys, such as the batch. The
controls that a cell gets are a pure function of (seed, epoch, draw, position), where `draw` counts the cell's
occurrences in the epoch: no table of pairs is needed, and neither the order of the cells nor the number of workers
matters.

A pool that does not fit into memory is drawn from a part at a time: its *reach*. The controls of a run are in random
order, and those of the runs of a pool are evenly mixed. So any interval of a pool is a random sample of each run, and
it moves through the pool as the epoch goes on.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lazypert._internal.randomness import counter_uniform, permute_index
from lazypert.design.control_draws import Reach, draw_numbers
from lazypert.design.control_policy import SplitControls
from lazypert.design.key_pools import KeyPools, MatchedPools
from lazypert.design.match_keys import MatchKeys
from lazypert.design.pool_errors import incomplete_matches, no_controls
from lazypert.screen.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lazypert.design.control_draws import DrawnCells
    from lazypert.design.control_policy import ControlPolicy
    from lazypert.screen.groups import Groups
    from lazypert.splits.split_result import SplitResult

# Streams of random numbers; 101 and 104 are used in `lazypert.design.control_draws`.
_REACH, _FIXED = 102, 103

_ODD = 0x9E3779B97F4A7  # spreads the numbers of pools over 64 bits

_LEVEL = 0x6A09E667F3BCD  # spreads the levels of keys

_CELLS_AT_ONCE = 1_048_576


class ControlPools:
    """Control cells by cell type, dataset and further keys, for one split or for all cells.

    Parameters
    ----------
    groups
        The screen's groups.
    controls
        Rows that may serve as controls, in run order.
    members
        The cells that controls are drawn for; needed for fixed pairs only.
    by_batch
        Prefer controls of the same batch, unless `match` is given.
    match
        Keys that controls share with the cell.
    """

    def __init__(
        self,
        groups: Groups,
        controls: Rows,
        members: Rows | None = None,
        *,
        by_batch: bool,
        match: MatchKeys | None = None,
    ) -> None:
        self.groups, self.by_batch, self.match, self._members = groups, by_batch, match, members
        run = groups.run_of(controls.starts)
        keys = groups.matching_ids
        by_key = np.argsort(keys[run], kind="stable")
        self.controls = Rows(controls.starts[by_key], controls.stops[by_key], controls.row_order)
        sizes = (controls.stops - controls.starts)[by_key]
        # Sorted by (cell type, dataset), pools are slices of one list.
        self._first, self._size = _slices(keys[run[by_key]], np.cumsum(sizes), keys)

    def __repr__(self) -> str:
        return f"ControlPools({len(self.controls):,} controls in {self.n_pools:,} pools)"

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n_runs,) controls of the cell type and dataset of each run's cells."""
        return self._size

    @cached_property
    def n_pools(self) -> int:
        """Number of different pools."""
        return len(np.unique(self._first[self._size > 0]))

    @cached_property
    def _by_key(self) -> KeyPools | None:
        match = MatchKeys.of_batch(self.groups) if self.match is None and self.by_batch else self.match
        return None if match is None else KeyPools.of(match, self.groups, self.controls, self._order)

    @cached_property
    def _order(self) -> NDArray[np.integer] | None:
        """(n_controls,) order of the controls of each pool in which those of its runs are evenly mixed.

        Runs are of one label and condition, so only then is an interval of a pool a fair sample of it. None if every
        pool is one run.
        """
        run, sizes = self.groups.run_of(self.controls.starts), self.controls.stops - self.controls.starts
        pool = self.groups.matching_ids[run]
        if len(np.unique(run)) == len(np.unique(pool)):
            return None
        run, pool = np.repeat(run, sizes), np.repeat(pool, sizes)
        first = np.flatnonzero(np.diff(run, prepend=-1) != 0)
        n = np.diff(np.append(first, len(run)))
        place = (np.arange(len(run)) - np.repeat(first, n) + 0.5) / np.repeat(n, n)
        return np.lexsort((place, pool)).astype(np.int32 if len(pool) < 2**31 else np.int64, copy=False)

    def matched(
        self, positions: NDArray[np.int64], run: NDArray[np.int64] | None = None, *, strict: bool = True
    ) -> MatchedPools:
        """Find the pool that each cell draws from.

        Parameters
        ----------
        positions, run
            (m,) positions of cells, and their runs if they are known.
        strict
            Whether the pool of a cell without a complete match is empty if the keys' fallback is ``"error"``.
        """
        run = self.groups.run_of(positions) if run is None else run
        first, size = self._first[run], self._size[run]
        if self._by_key is None:
            return MatchedPools(np.zeros(len(positions), np.int8), first, size)
        pools = self._by_key.match(positions, first, size)
        if strict and self._by_key.keys.fallback == "error":
            is_complete = pools.level == len(self._by_key.levels)
            first, size = np.where(is_complete, pools.first, first), np.where(is_complete, pools.size, 0)
            return MatchedPools(np.where(is_complete, pools.level, 0), first, size)
        return pools

    def _to_controls(self, pools: MatchedPools, drawn: NDArray[np.int64]) -> NDArray[np.int64]:
        """(m, n) control index of elements of the pools; 0 where a pool is empty."""
        drawn = np.where(pools.size[:, None] > 0, drawn, 0)
        if self._order is not None:
            cells = np.flatnonzero((pools.level == 0) & (pools.size > 0))
            drawn[cells] = self._order[drawn[cells]]
        return drawn if self._by_key is None else self._by_key.to_controls(pools.level, drawn)

    def check(self, runs: NDArray[np.integer]) -> None:
        """Check that the cells of all these runs have controls.

        Raises
        ------
        EmptyPoolError
            If some have none; the message names their groups.
        """
        runs = np.unique(runs)
        empty = runs[self._size[runs] == 0]
        if len(empty):
            raise no_controls(self.groups, empty)

    def check_matches(self, cells: Rows | NDArray[np.int64]) -> None:
        """Check that all these cells have a complete match, if the keys' fallback is ``"error"``.

        Parameters
        ----------
        cells
            The cells, or their positions.

        Raises
        ------
        EmptyPoolError
            If some have none; the message names their groups.
        """
        if self.match is None or self.match.fallback != "error":
            return
        n_lacking = np.zeros(len(self.groups.start), np.int64)
        for positions in _chunks(cells):
            lacking = positions[self.matched(positions).size == 0]
            n_lacking += np.bincount(self.groups.run_of(lacking), minlength=len(n_lacking))
        runs = np.flatnonzero(n_lacking)
        if len(runs):
            raise incomplete_matches(self.groups, self.match.match, runs, int(n_lacking.sum()))

    def reach(self, n_controls: int, n_cells: int, n: int = 1) -> Reach | None:
        """Choose the part of each pool that may be drawn from at a time.

        Parameters
        ----------
        n_controls
            Controls that fit into memory.
        n_cells
            Cells that controls are drawn for in one epoch. At most one control is read for every four of them,
            and each control at most once.
        n
            Controls per cell; a reach has at least as many.

        Returns
        -------
        None if all controls fit.
        """
        if n_controls >= len(self.controls):
            return None
        has_pool = self._size > 0
        sizes = np.sort(self._size[has_pool][np.unique(self._first[has_pool], return_index=True)[1]])
        # Small pools fit; the large ones share what is left.
        left = n_controls - np.concatenate([[0], np.cumsum(sizes)[:-1]])
        share = left // np.arange(len(sizes), 0, -1)
        is_large = sizes > share
        n_large = int(sizes[is_large].sum())
        return Reach(max(n, int(share[np.argmax(is_large)])), min(1.0, n_cells / 4 / n_large))

    def fixed_controls(self, positions: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
        """(m, n) store rows of the controls that `fixed_control_index` gives.

        A cell whose pool is empty gets its own row: call `check` first, or exclude such cells by `sizes`.
        """
        own = np.repeat(self.controls.to_rows(positions)[:, None], n, axis=1)
        if not len(self.controls):
            return own
        drawn = self.controls[self.fixed_control_index(positions, n, seed)]
        return np.where(self.matched(positions).size[:, None] > 0, drawn, own)

    def control_index(
        self, cells: DrawnCells, n: int, words: tuple[int, ...], reach: Reach | None = None
    ) -> NDArray[np.int64]:
        """Draw controls for cells, as indices into `controls`.

        The controls of a cell are distinct if its pool has enough of them, and each is equally likely to be any of
        the pool; within a reach, each is equally likely to be any of those within it.

        Parameters
        ----------
        n
            Controls per cell.
        words
            Key of the random numbers, such as ``(seed, epoch)``.
        reach
            Draw from this part of large pools; None draws from all of each.

        Returns
        -------
        (m, n) int64; 0 for a cell whose pool is empty.
        """
        if not len(self.controls):
            return np.zeros((len(cells.row), n), dtype=np.int64)
        first, size = self._first[cells.run], self._size[cells.run]
        turn = np.zeros(len(first)) if reach is None else self._turn(cells, reach, words)
        part = np.ones(len(first)) if reach is None else np.minimum(1.0, reach.n_controls / np.maximum(size, 1))
        pools = self.matched(cells.position, cells.run)
        first, size = pools.first, pools.size
        # What is drawn from begins at a fraction of the pool, or of its controls with the same keys, and wraps around.
        # Those of a batch are spread evenly over the pool, so those within reach are about the same ones.
        length = np.where(part < 1, np.minimum(size, np.maximum(n, np.ceil(size * part))), size).astype(np.int64)
        start = np.where(length < size, (turn * size).astype(np.int64), 0)
        number = start[:, None] + draw_numbers(words, cells.counter, length, n)
        return self._to_controls(pools, first[:, None] + number % np.maximum(size, 1)[:, None])

    def fixed_control_index(self, positions: NDArray[np.int64], n: int, seed: int) -> NDArray[np.int64]:
        """Pair cells with controls without replacement, in turns through the pool.

        In each turn no control is used twice, and all but at most ``n - 1`` are used.

        Parameters
        ----------
        positions
            (m,) positions of cells, each one of `members`.
        n
            Controls per cell.

        Returns
        -------
        (m, n) int64 indices into `controls`; 0 for a cell whose pool is empty.
        """
        assert self._members is not None
        run = self.groups.run_of(positions)
        pools, base = self.matched(positions, run), self._first[run]
        first, size = pools.first, pools.size
        # Each turn through the pool gives every cell n of a new order of its controls.
        turn, nth = np.divmod(self._fixed_rank[self._members.find(positions)], np.maximum(size // n, 1))
        within = (nth[:, None] * n + np.arange(n)) % np.maximum(size, 1)[:, None]
        which = (first * 2 + (first != base)) * _ODD + np.maximum(pools.level - np.int64(1), 0) * _LEVEL + turn
        drawn = first[:, None] + permute_index((seed, _FIXED), which[:, None], within, size[:, None])
        return self._to_controls(pools, drawn)

    @cached_property
    def _fixed_rank(self) -> NDArray[np.int64]:
        """(n_members,) number of each member among those that draw from the same pool, perturbed cells first."""
        assert self._members is not None
        positions = self._members.positions(np.arange(len(self._members)))
        run = self.groups.run_of(positions)
        pools = self.matched(positions, run)
        key = pools.level * np.int64(len(self.controls) + 1) + pools.first
        key = np.where(pools.size > 0, key, np.iinfo(np.int64).max)  # cells without a pool
        order = np.lexsort((self.groups.is_control[run], key))
        starts = np.flatnonzero(np.diff(key[order], prepend=np.iinfo(np.int64).min) != 0)
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
        return rank

    def _turn(self, cells: DrawnCells, reach: Reach, words: tuple[int, ...]) -> NDArray[np.float64]:
        """How far around its pool the reach of each cell begins: anywhere at first, then moving on."""
        begin = counter_uniform((*words, _REACH), self._first[cells.run])
        return (begin + np.asarray(cells.phase) * reach.turns) % 1.0


def _chunks(cells: Rows | NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Positions of cells, a bounded number at a time."""
    for begin in range(0, len(cells), _CELLS_AT_ONCE):
        index = np.arange(begin, min(len(cells), begin + _CELLS_AT_ONCE))
        yield cells.positions(index) if isinstance(cells, Rows) else cells[index]


def control_pools(
    groups: Groups,
    *,
    by_batch: bool,
    match: MatchKeys | None = None,
    splits: SplitResult | None = None,
    name: str = "train",
    policy: ControlPolicy = "split",
) -> ControlPools:
    """Make the pools that the cells of a split draw from, by a policy; without splits, those of all cells."""
    if splits is None:
        labelled = groups.ids >= 0
        controls = groups.rows(groups.is_control & labelled)
        return ControlPools(groups, controls, groups.rows(labelled), by_batch=by_batch, match=match)
    served = SplitControls.of(groups, splits, name, policy)
    return ControlPools(groups, served.pool, served.cells, by_batch=by_batch, match=match)


def _slices(
    keys: NDArray[np.int64], ends: NDArray[np.int64], wanted: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First element and length of each wanted key's slice of the sorted list."""
    lo, hi = np.searchsorted(keys, wanted, side="left"), np.searchsorted(keys, wanted, side="right")
    bounds = np.concatenate([[0], ends])
    return bounds[lo], bounds[hi] - bounds[lo]
