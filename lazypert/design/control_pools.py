"""Pools of control cells, and draws from them.

A pool is the controls of one (cell type, dataset), or of one (cell type, dataset, batch). The
controls that a cell gets are a pure function of (seed, epoch, row): no table of pairs is needed, and
neither the order of the cells nor the number of workers matters.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lazypert._internal.randomness import counter_hash, draw_distinct, permute_index
from lazypert.errors import EmptyPoolError
from lazypert.screen.rows import Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.design.splits import SplitResult
    from lazypert.screen.groups import Groups

STRETCH_SIZE = 64
"""Consecutive controls of a pool that are read together (more for cells with many controls)."""

INITIAL_STRETCHES = 4

# Streams of random numbers.
_WHICH_STRETCH, _STRATUM, _IN_STRATUM = 101, 102, 103


class ControlPools:
    """Control cells by cell type, dataset and batch, for one split or for all cells.

    Parameters
    ----------
    groups
        The screen's groups.
    controls
        Rows that may serve as controls, in run order.
    by_batch
        Prefer controls of the same batch.
    """

    def __init__(self, groups: Groups, controls: Rows, *, by_batch: bool) -> None:
        self.groups = groups
        run = groups.run_of(controls.starts)
        keys, batch_keys = _keys(groups)
        by_key = np.argsort(batch_keys[run], kind="stable")
        self.controls = Rows(controls.starts[by_key], controls.stops[by_key], controls.row_order)
        run, sizes = run[by_key], (controls.stops - controls.starts)[by_key]
        ends = np.cumsum(sizes)
        # Sorted by (cell type, dataset, batch), the pools of both kinds are slices of one list.
        self._first, self._size = _slices(keys[run], ends, keys)
        if by_batch:
            first, size = _slices(batch_keys[run], ends, batch_keys)
            has_controls = size > 0
            self._first = np.where(has_controls, first, self._first)
            self._size = np.where(has_controls, size, self._size)

    def __repr__(self) -> str:
        return f"ControlPools({len(self.controls):,} controls in {self.n_pools:,} pools)"

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n_runs,) size of the pool that each run's cells draw from."""
        return self._size

    @cached_property
    def n_pools(self) -> int:
        """Number of different pools."""
        return len(np.unique(self._first[self._size > 0]))

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
            cell_type, perturbation = (
                self.groups.labels[axis][self.groups.codes[axis][empty]] for axis in ("cell_type", "perturbation")
            )
            names = sorted({f"({c}, {p})" for c, p in zip(cell_type, perturbation, strict=True)})
            cell_types = sorted(set(cell_type.tolist()))
            raise EmptyPoolError(
                f"{len(names)} {'groups have' if len(names) > 1 else 'group has'} no controls: {', '.join(names[:5])}"
                f"{', ...' if len(names) > 5 else ''}. Expected cells labelled {self.groups.roles.control_pert!r} "
                f"of the cell type{'s' if len(cell_types) > 1 else ''} {', '.join(cell_types)}. "
                "Check control_pert, leave out these cell types, or pass on_empty='mask'."
            )

    def sample_size(self, n_controls: int, n_cached_together: int = 0) -> int:
        """Controls per pool to draw from at a time so that all pools together need about `n_controls`.

        Parameters
        ----------
        n_controls
            Controls that fit into memory.
        n_cached_together
            Consecutive controls that are cached together. A stretch takes up more of the cache than its own
            size, because the boundaries differ, and its controls remain cached after it has left the sample.
        """
        if n_controls >= len(self.controls):
            return max(1, len(self.controls))
        return max(1, n_controls * STRETCH_SIZE // (STRETCH_SIZE + 2 * n_cached_together) // max(1, self.n_pools))

    def draw(
        self, rows: NDArray[np.integer], runs: NDArray[np.integer], n: int, words: tuple[int, ...]
    ) -> NDArray[np.int64]:
        """Draw controls for cells.

        Parameters
        ----------
        rows
            (m,) store rows of the cells.
        runs
            (m,) run of each cell.
        n
            Controls per cell.
        words
            Key of the random numbers, such as ``(seed, epoch)``.

        Returns
        -------
        (m, n) int64 store rows of controls. A cell whose pool is empty gets its own row: call `check`
        first, or exclude such cells by `sizes`.
        """
        size = self._size[runs]
        if not len(self.controls):
            return np.repeat(np.asarray(rows, dtype=np.int64)[:, None], n, axis=1)
        drawn = self.controls[self.control_index(rows, runs, n, words)]
        return np.where(size[:, None] > 0, drawn, np.asarray(rows)[:, None])

    def control_index(
        self,
        rows: NDArray[np.integer],
        runs: NDArray[np.integer],
        n: int,
        words: tuple[int, ...],
        *,
        sample_size: int | None = None,
        rotation: int = 0,
    ) -> NDArray[np.int64]:
        """Draw controls for cells, as indices into `controls`.

        With a `sample_size`, controls are drawn from a rotating sample of a large pool, which consists of
        stretches of 64 consecutive controls. As `rotation` increases, new stretches enter the sample, and
        once it holds as many as `sample_size` allows, the oldest ones leave. Thus only a few controls have
        to be read at first, and at any one time. Over all rotations, every control is drawn equally often.

        Parameters
        ----------
        rows, runs, n, words
            As in `draw`.
        sample_size
            Controls of one pool to draw from at a time; None allows all.
        rotation
            How many times the samples have rotated.

        Returns
        -------
        (m, n) int64; 0 for a cell whose pool is empty.
        """
        first, size = self._first[runs], self._size[runs]
        # Large enough that the draws of one cell are distinct, and mostly those of its neighbours too.
        stretch = max(STRETCH_SIZE, 4 * n)
        is_large = size > INITIAL_STRETCHES * stretch if sample_size is not None else np.zeros(len(runs), dtype=bool)
        drawn = draw_distinct(words, rows, np.maximum(np.where(is_large, stretch, size), 1), n)
        if sample_size is not None and is_large.any():
            newest = rotation // max(1, self.n_pools // 2)  # so that many pools also cost little per rotation
            n_stretches = max(1, min(sample_size // stretch, INITIAL_STRETCHES + newest))
            number = newest - (counter_hash((*words, _WHICH_STRETCH), rows) % np.uint64(n_stretches)).astype(np.int64)
            offset = self._stretch_offsets(first, size, number, words[0])
            drawn = np.where(is_large[:, None], drawn + offset[:, None], drawn)
            drawn %= np.maximum(size, 1)[:, None]
        return np.where(size[:, None] > 0, first[:, None] + drawn, 0)

    def _stretch_offsets(
        self, first: NDArray[np.int64], size: NDArray[np.int64], number: NDArray[np.int64], seed: int
    ) -> NDArray[np.int64]:
        """Offset in its pool at which each stretch begins.

        A pool is divided into as many strata as stretches fit into it. Consecutive stretches begin in different
        strata, in random order, and at a random offset within the stratum.
        """
        strata = np.maximum(size // STRETCH_SIZE, 1)
        cycle, nth = np.divmod(number, strata)
        stratum = permute_index((seed, _STRATUM), first * 1_000_003 + cycle, nth, strata)
        bits = counter_hash((seed, _IN_STRATUM), first * 1_000_003 + number) >> np.uint64(11)
        return ((stratum + bits.astype(np.float64) / 2**53) / strata * size).astype(np.int64)


def control_pools(
    groups: Groups, *, by_batch: bool, splits: SplitResult | None = None, name: str = "train"
) -> ControlPools:
    """Make the pools that the cells of a split draw from.

    Cells are matched with controls from the same split. If it has none of a cell type (as in few-shot
    validation and test, because all controls are in train), the training split's controls are used.
    """
    is_control = groups.is_control & (groups.ids >= 0)
    if splits is None:
        return ControlPools(groups, groups.rows(is_control), by_batch=by_batch)
    own, train = (_in_runs(groups, splits[split], is_control) for split in (name, "train"))
    keys, _ = _keys(groups)
    is_lacking = ~np.isin(keys[groups.run_of(train.starts)], keys[groups.run_of(own.starts)])
    rows = Rows(
        np.concatenate([own.starts, train.starts[is_lacking]]),
        np.concatenate([own.stops, train.stops[is_lacking]]),
        own.row_order,
    )
    return ControlPools(groups, rows, by_batch=by_batch)


def _in_runs(groups: Groups, rows: Rows, runs: NDArray[np.bool_]) -> Rows:
    """Those of the rows that are in the chosen runs."""
    chosen = runs[groups.run_of(rows.starts)]
    return Rows(rows.starts[chosen], rows.stops[chosen], rows.row_order)


def _keys(groups: Groups) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(n_runs,) keys of the (cell type, dataset) and of the (cell type, dataset, batch)."""
    cell_type, dataset, batch = (groups.codes[axis].astype(np.int64) for axis in ("cell_type", "dataset", "batch"))
    key = cell_type * len(groups.labels["dataset"]) + dataset
    return key, key * (len(groups.labels["batch"]) + 1) + batch + 1


def _slices(
    keys: NDArray[np.int64], ends: NDArray[np.int64], wanted: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First element and length of each wanted key's slice of the sorted list."""
    lo, hi = np.searchsorted(keys, wanted, side="left"), np.searchsorted(keys, wanted, side="right")
    bounds = np.concatenate([[0], ends])
    return bounds[lo], bounds[hi] - bounds[lo]
