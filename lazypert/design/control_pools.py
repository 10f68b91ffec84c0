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
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lazypert._internal.randomness import counter_uniform, permute_index
from lazypert.design.control_draws import Reach, draw_numbers
from lazypert.design.control_policy import SplitControls
from lazypert.design.key_pools import KeyPools, MatchedPools
from lazypert.design.match_keys import MatchKeys
from lazypert.design.pool_errors import incomplete_matches, no_controls
from lazypert.design.pool_ranks import PoolNumbers, count_up
from lazypert.screen.rows import Rows, index_dtype

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

_CELLS_AT_ONCE = 262_144


class FixedPairs(NamedTuple):
    """Cells with their controls.

    Attributes
    ----------
    positions, rows
        (m,) positions and store rows of the cells.
    controls
        (m, n) store rows of the controls; those of a cell without a pool are the cell itself.
    has_controls
        (m,) whether a cell's pool has controls.
    """

    positions: NDArray[np.int64]
    rows: NDArray[np.int64]
    controls: NDArray[np.int64]
    has_controls: NDArray[np.bool_]

    def where(self, chosen: NDArray[np.bool_]) -> FixedPairs:
        """Return some of the cells."""
        return FixedPairs(self.positions[chosen], self.rows[chosen], self.controls[chosen], self.has_controls[chosen])


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
        order = np.empty(len(self.controls), dtype=index_dtype(len(self.controls)))
        begin = 0
        for intervals in np.split(np.arange(len(run)), np.flatnonzero(np.diff(pool)) + 1):
            of_run = np.repeat(run[intervals], sizes[intervals])
            first = np.flatnonzero(np.diff(of_run, prepend=-1) != 0)
            n = np.diff(np.append(first, len(of_run)))
            place = (np.arange(len(of_run)) - np.repeat(first, n) + 0.5) / np.repeat(n, n)
            order[begin : begin + len(place)] = begin + np.argsort(place, kind="stable")
            begin += len(place)
        return order

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
        chunks = (part for _, part in cells.chunks()) if isinstance(cells, Rows) else [cells]
        for positions in chunks:
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
        return self._fixed_pairs(positions, self._rank_of(positions), n, seed).controls

    def fixed_pairs(self, n: int, seed: int, *, with_controls: bool) -> Iterator[FixedPairs]:
        """Pair all members with controls as `fixed_control_index` does, a bounded number at a time.

        Nothing is kept of the members that were paired before, so this takes less memory than to look them up.

        Parameters
        ----------
        n
            Controls per cell.
        with_controls
            Whether members that are controls are paired too; they come last.
        """
        for positions, rank in self._ranked_members(with_controls=with_controls):
            yield self._fixed_pairs(positions, rank, n, seed)

    def _fixed_pairs(self, positions: NDArray[np.int64], rank: NDArray[np.int64], n: int, seed: int) -> FixedPairs:
        rows, run = self.controls.to_rows(positions), self.groups.run_of(positions)
        own = np.repeat(rows[:, None], n, axis=1)
        if not len(self.controls):
            return FixedPairs(positions, rows, own, np.zeros(len(rows), bool))
        pools = self.matched(positions, run)
        drawn = self.controls[self._fixed_index(run, pools, rank, n, seed)]
        has_controls = pools.size > 0
        return FixedPairs(positions, rows, np.where(has_controls[:, None], drawn, own), has_controls)

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
        run = self.groups.run_of(positions)
        return self._fixed_index(run, self.matched(positions, run), self._rank_of(positions), n, seed)

    def _fixed_index(
        self, run: NDArray[np.int64], pools: MatchedPools, rank: NDArray[np.int64], n: int, seed: int
    ) -> NDArray[np.int64]:
        first, size, base = pools.first, pools.size, self._first[run]
        # Each turn through the pool gives every cell n of a new order of its controls.
        turn, nth = np.divmod(rank, np.maximum(size // n, 1))
        within = (nth[:, None] * n + np.arange(n)) % np.maximum(size, 1)[:, None]
        which = (first * 2 + (first != base)) * _ODD + np.maximum(pools.level - np.int64(1), 0) * _LEVEL + turn
        drawn = first[:, None] + permute_index((seed, _FIXED), which[:, None], within, size[:, None])
        return self._to_controls(pools, drawn)

    def _rank_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """(m,) number of each member among those that draw from the same pool, perturbed cells first."""
        assert self._members is not None
        if self._by_key is None:
            interval = self._members.interval_of(positions)
            return self._first_rank[interval] + positions - self._members.starts[interval]
        return self._ranks[self._members.find(positions)].astype(np.int64)

    @cached_property
    def _first_rank(self) -> NDArray[np.int64]:
        """(n_intervals,) what `_rank_of` gives for the first member of each interval, which are of one run each."""
        assert self._members is not None
        sizes, run = self._members.stops - self._members.starts, self.groups.run_of(self._members.starts)
        key = np.where(self._size[run] > 0, self._first[run], -1)
        order = np.lexsort((self.groups.is_control[run], key))
        before = np.cumsum(sizes[order]) - sizes[order]
        of_pool = before[np.searchsorted(key[order], key[order])]
        rank = np.empty_like(before)
        rank[order] = before - of_pool
        return rank

    @cached_property
    def _ranks(self) -> NDArray[np.integer]:
        """(n_members,) what `_rank_of` gives for each member."""
        assert self._members is not None
        ranks = np.empty(len(self._members), dtype=index_dtype(len(self._members)))
        for positions, rank in self._ranked_members(with_controls=True):
            ranks[self._members.find(positions)] = rank
        return ranks

    def _ranked_members(self, *, with_controls: bool) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Positions of the members, controls last, and what `_rank_of` gives for them, counted on the way."""
        assert self._members is not None
        numbers = PoolNumbers(self._first, self._size, self._by_key)
        counts = np.zeros(len(numbers), np.int64)
        is_control = self.groups.is_control[self.groups.run_of(self._members.starts)]
        for chosen in [~is_control, is_control][: 1 + with_controls]:
            for _, positions in self._members.take_intervals(chosen).chunks(_CELLS_AT_ONCE):
                pool = numbers.of(self.matched(positions)) if len(self.controls) else np.zeros(len(positions), np.int64)
                yield positions, count_up(pool, counts)

    def _turn(self, cells: DrawnCells, reach: Reach, words: tuple[int, ...]) -> NDArray[np.float64]:
        """How far around its pool the reach of each cell begins: anywhere at first, then moving on."""
        begin = counter_uniform((*words, _REACH), self._first[cells.run])
        return (begin + np.asarray(cells.phase) * reach.turns) % 1.0


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
