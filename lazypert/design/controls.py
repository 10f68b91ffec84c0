"""Matching cells with control cells of their own kind.

A pool is the controls of one (cell type, dataset), or one (cell type, dataset, batch). Which
controls a cell gets is a pure function of (seed, epoch, row): no table of pairs is needed, and
neither the order nor the number of workers that ask changes the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from lazypert._internal.randomness import counter_hash, draw_distinct, permute_index
from lazypert._internal.validation import require_choice, require_flag, require_integer
from lazypert.design.splits import SPLITS, SplitResult
from lazypert.errors import ConfigError, EmptyPoolError
from lazypert.screen.rows import Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups, HasGroups

STRATEGIES = ("random", "batch")

ARC = 64
"""Neighbouring controls that are read together (more for cells with many controls)."""

ARCS_AT_FIRST = 4

# What random numbers are for.
_WHICH_ARC, _STRATUM, _WITHIN = 101, 102, 103


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlMappingConfig:
    """How cells are matched with controls.

    Parameters
    ----------
    strategy
        ``"random"``: any control of the same cell type and dataset. ``"batch"``: one of the same
        batch too, or of the cell type where the batch has none.
    n_basal_samples
        Controls for each cell; distinct where the pool is large enough.
    seed
        Decides the pairs.
    map_controls
        Map control cells too (to controls, themselves included).
    on_empty
        What to do about cells whose pool is empty: ``"error"``, or ``"mask"`` them in the result.
    """

    strategy: str = "random"
    n_basal_samples: int = 1
    seed: int = 42
    map_controls: bool = False
    on_empty: str = "error"

    def __post_init__(self) -> None:
        require_choice("strategy", self.strategy, STRATEGIES)
        require_integer("n_basal_samples", self.n_basal_samples, 1)
        require_choice("on_empty", self.on_empty, ("error", "mask"))
        require_integer("seed", self.seed)
        require_flag("map_controls", self.map_controls)


class ControlMappingKwargs(TypedDict, total=False):
    """Keyword arguments of `ControlMappingConfig`."""

    strategy: str
    n_basal_samples: int
    seed: int
    map_controls: bool
    on_empty: str


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
        # Sorted by (cell type, dataset, batch), both kinds of pool are slices of one list.
        self._first, self._size = _slices(keys[run], ends, keys)
        if by_batch:
            first, size = _slices(batch_keys[run], ends, batch_keys)
            filled = size > 0
            self._first, self._size = np.where(filled, first, self._first), np.where(filled, size, self._size)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n_runs,) size of the pool that each run's cells draw from."""
        return self._size

    def check(self, runs: NDArray[np.integer]) -> None:
        """Raise `EmptyPoolError`, naming the groups, when cells of any of these runs have no control."""
        runs = np.unique(runs)
        empty = runs[self._size[runs] == 0]
        if len(empty):
            cell_type, perturbation = (
                self.groups.labels[axis][self.groups.codes[axis][empty]] for axis in ("cell_type", "perturbation")
            )
            names = sorted({f"({c}, {p})" for c, p in zip(cell_type, perturbation, strict=True)})
            cell_types = sorted(set(cell_type.tolist()))
            raise EmptyPoolError(
                f"{len(names)} groups have no control cell to be matched with: {', '.join(names[:5])}"
                f"{', ...' if len(names) > 5 else ''}. Expected cells labelled {self.groups.roles.control_pert!r} "
                f"of the cell type{'s' if len(cell_types) > 1 else ''} {', '.join(cell_types)}. "
                "Check control_pert, leave these cell types out, or pass on_empty='mask'."
            )

    def reach(self, n_controls: int, piece: int = 0) -> int:
        """Controls of one pool that may be drawn at a time so that about `n_controls` of all serve.

        Parameters
        ----------
        piece
            Neighbours that are kept together: some at both ends of an arc don't serve, and some linger on.
        """
        if n_controls >= len(self.controls):
            return max(1, len(self.controls))
        return max(1, n_controls * ARC // (ARC + 2 * piece) // max(1, self.n_pools))

    @cached_property
    def n_pools(self) -> int:
        """Number of different pools."""
        return len(np.unique(self._first[self._size > 0]))

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
            Controls a cell.
        words
            Key of the draw, such as ``(seed, epoch)``.

        Returns
        -------
        (m, n) int64 store rows of controls. A cell whose pool is empty gets its own row: call `check`
        first, or leave such cells out by `sizes`.
        """
        size = self._size[runs]
        if not len(self.controls):
            return np.repeat(np.asarray(rows, dtype=np.int64)[:, None], n, axis=1)
        found = self.controls[self.control_index(rows, runs, n, words)]
        return np.where(size[:, None] > 0, found, np.asarray(rows)[:, None])

    def control_index(
        self,
        rows: NDArray[np.integer],
        runs: NDArray[np.integer],
        n: int,
        words: tuple[int, ...],
        *,
        reach: int | None = None,
        turn: int = 0,
    ) -> NDArray[np.int64]:
        """Draw controls for cells, as places in `controls`.

        With a `reach`, a large pool is drawn from in part: from *arcs*, 64 neighbouring controls each. As
        `turn` counts up a new arc comes in, and once there are as many as `reach` allows the oldest one
        goes: so little has to be read at first, and at a time. Over the turns every member is drawn as
        often as any other.

        Parameters
        ----------
        rows, runs, n, words
            As in `draw`.
        reach
            Controls of one pool that may be drawn at a time; None allows all.
        turn
            How often the arcs have moved on.

        Returns
        -------
        (m, n) int64; 0 for a cell whose pool is empty.
        """
        first, size = self._first[runs], self._size[runs]
        arc = max(ARC, 4 * n)  # so that draws of one cell are distinct, and those of its neighbours mostly
        large = size > ARCS_AT_FIRST * arc if reach is not None else np.zeros(len(runs), dtype=bool)
        drawn = draw_distinct(words, rows, np.maximum(np.where(large, arc, size), 1), n)
        if reach is not None and large.any():
            latest = turn // max(1, self.n_pools // 2)  # so that a turn costs about as little for many pools
            n_arcs = max(1, min(reach // arc, ARCS_AT_FIRST + latest))
            moved = latest - (counter_hash((*words, _WHICH_ARC), rows) % np.uint64(n_arcs)).astype(np.int64)
            drawn = np.where(large[:, None], drawn + self._arcs(first, size, moved, words[0])[:, None], drawn)
            drawn %= np.maximum(size, 1)[:, None]
        return np.where(size[:, None] > 0, first[:, None] + drawn, 0)

    def _arcs(
        self, first: NDArray[np.int64], size: NDArray[np.int64], moved: NDArray[np.int64], seed: int
    ) -> NDArray[np.int64]:
        """Where in its pool each arc begins: somewhere else in each of as many strata as arcs go into the pool."""
        strata = np.maximum(size // ARC, 1)
        cycle, nth = np.divmod(moved, strata)
        stratum = permute_index((seed, _STRATUM), first * 1_000_003 + cycle, nth, strata)
        within = (counter_hash((seed, _WITHIN), first * 1_000_003 + moved) >> np.uint64(11)).astype(np.float64) / 2**53
        return ((stratum + within) / strata * size).astype(np.int64)


def control_pools(
    groups: Groups, *, by_batch: bool, splits: SplitResult | None = None, name: str = "train"
) -> ControlPools:
    """Make the pools that cells of a split draw from.

    A split's cells are matched with its own controls. Where it has none of a cell type (few-shot
    validation and test: all controls train), the training split's controls serve.
    """
    control = groups.is_control & (groups.ids >= 0)
    if splits is None:
        return ControlPools(groups, groups.rows(control), by_batch=by_batch)
    own, train = (_only(groups, splits[which], control) for which in (name, "train"))
    keys, _ = _keys(groups)
    lacking = ~np.isin(keys[groups.run_of(train.starts)], keys[groups.run_of(own.starts)])
    rows = Rows(
        np.concatenate([own.starts, train.starts[lacking]]),
        np.concatenate([own.stops, train.stops[lacking]]),
        own.row_order,
    )
    return ControlPools(groups, rows, by_batch=by_batch)


def _only(groups: Groups, rows: Rows, runs: NDArray[np.bool_]) -> Rows:
    chosen = runs[groups.run_of(rows.starts)]
    return Rows(rows.starts[chosen], rows.stops[chosen], rows.row_order)


def _keys(groups: Groups) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(n_runs,) numbers of the (cell type, dataset) and of the (cell type, dataset, batch)."""
    cell_type, dataset, batch = (groups.codes[axis].astype(np.int64) for axis in ("cell_type", "dataset", "batch"))
    key = cell_type * len(groups.labels["dataset"]) + dataset
    return key, key * (len(groups.labels["batch"]) + 1) + batch + 1


def _slices(
    keys: NDArray[np.int64], ends: NDArray[np.int64], wanted: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First element and length, for each wanted key, of its slice of the sorted list."""
    lo, hi = np.searchsorted(keys, wanted, side="left"), np.searchsorted(keys, wanted, side="right")
    bounds = np.concatenate([[0], ends])
    return bounds[lo], bounds[hi] - bounds[lo]


class _Mapping:
    strategy: str

    def __init__(self, config: ControlMappingConfig | None = None) -> None:
        self.config = config or ControlMappingConfig(strategy=self.strategy)
        if self.config.strategy != self.strategy:
            raise ConfigError(
                f"{type(self).__name__} maps with strategy {self.strategy!r}, got a config of {self.config.strategy!r}."
            )

    def mapped_rows(self, source: HasGroups) -> NDArray[np.int64]:
        """(n_mapped,) store rows that `build_mapping` maps, ascending."""
        groups = source.groups
        mapped = (groups.ids >= 0) & (self.config.map_controls | ~groups.is_control)
        return np.sort(groups.rows(mapped)[:])

    def build_mapping(self, source: HasGroups, splits: SplitResult | None = None) -> NDArray[np.int64]:
        """Map every perturbed cell to controls.

        Parameters
        ----------
        splits
            Match within the split of each cell; cells in no split draw from all controls.

        Returns
        -------
        (n_mapped, n_basal_samples) int64 store rows of controls, one line for each of
        `mapped_rows`; a masked array with ``on_empty="mask"``.

        Raises
        ------
        EmptyPoolError
            When a group has no control and ``on_empty`` is ``"error"``.
        """
        groups, by_batch = source.groups, self.strategy == "batch"
        rows = self.mapped_rows(source)
        everyone = control_pools(groups, by_batch=by_batch)
        run_of_row = groups.expand(np.arange(len(groups.start)), _n_rows(groups))
        runs = run_of_row[rows]
        n, words = self.config.n_basal_samples, (self.config.seed,)
        out, pool_size = everyone.draw(rows, runs, n, words), everyone.sizes[runs]
        outside = np.ones(len(rows), dtype=bool)
        for name in SPLITS if splits is not None else ():
            inside = np.isin(rows, np.asarray(splits[name])) if splits is not None else np.zeros(0, bool)
            outside &= ~inside
            pools = control_pools(groups, by_batch=by_batch, splits=splits, name=name)
            if self.config.on_empty == "error":
                pools.check(runs[inside])
            out[inside] = pools.draw(rows[inside], runs[inside], n, words)
            pool_size[inside] = pools.sizes[runs[inside]]
        if self.config.on_empty == "error":
            everyone.check(runs[outside])
        if self.config.on_empty == "mask":
            masked: Any = np.ma.masked_array(out, mask=np.repeat(pool_size[:, None] == 0, n, axis=1))
            return masked
        return out


def _n_rows(groups: Groups) -> int:
    return groups.n_obs if groups.row_order is None else int(groups.row_order.max(initial=-1)) + 1


class RandomControlMapping(_Mapping):
    """Map cells to random controls of the same cell type and dataset."""

    strategy = "random"


class BatchControlMapping(_Mapping):
    """Map cells to controls of the same cell type, dataset and batch; of the cell type where a batch has none."""

    strategy = "batch"


def control_mapping(config: ControlMappingConfig) -> RandomControlMapping | BatchControlMapping:
    """Make the mapping that a config asks for."""
    return BatchControlMapping(config) if config.strategy == "batch" else RandomControlMapping(config)
