"""How many cells of each group share which keys with their controls, and how large their pools are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert.design.controls import mapped_cells, pools_of_splits, split_numbers, splits_to_match
from lazypert.design.match_options import CELL_TYPE
from lazypert.screen.group_table import CONDITION, replace_ranks
from lazypert.screen.roles import RUN_AXES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.design.control_pools import ControlPools
    from lazypert.design.controls import ControlMappingConfig
    from lazypert.screen.groups import Groups, HasGroups
    from lazypert.splits.split_result import SplitResult

_CELLS_AT_ONCE = 1_048_576

NO_SPLIT = "none"
"""Name in the table of cells that are in no split."""


def control_coverage(
    source: HasGroups,
    config: ControlMappingConfig,
    splits: SplitResult | None = None,
    *,
    kept: NDArray[np.bool_] | None = None,
    only_splits: bool = False,
) -> pd.DataFrame:
    """Count the cells of each group by the keys that controls share with them.

    Counts what `config` would match if its fallback were ``"drop_last"``, so it shows what ``"error"`` would refuse.

    Parameters
    ----------
    source
        The screen.
    config
        How cells are matched: `match` or `strategy`, `controls` and, with ``controls="disjoint"``, `seed`; with
        `map_controls`, control cells are counted too.
    splits
        If given, cells are matched as in each split, and counted by split.
    kept
        (n_obs,) bool by store row: the cells that are counted; all by default.
    only_splits
        Leave out cells that are in no split. Otherwise they draw from all controls, and the split ``"none"`` has them.

    Returns
    -------
    One row per group: `split` if there are splits, `cell_type`, `perturbation`, the covariates, and `dataset` if the
    screen has several; and of its cells

    - ``n_cells``: how many there are.
    - ``matched_<key>``, for each key of `match` from the last to the first: how many have controls that share this key
      and all before it, and no control that shares more. These cells draw from controls of this level.
    - ``smallest_pool_<key>``, ``median_pool_<key>``: the smallest and the median number of controls that these cells
      draw from, each cell counted once; missing if there are no such cells.
    - ``unmatched``: how many have no controls at all.
    """
    groups, names = source.groups, _level_names(config)
    splits = splits_to_match(groups, config, splits)
    parts = pools_of_splits(source, config, splits)
    counts = [_PoolCounts(groups, pools, len(names)) for _, pools in parts]
    mapped = mapped_cells(groups, map_controls=config.map_controls)
    mapped = mapped if kept is None else mapped.keep(kept)
    for begin in range(0, len(mapped), _CELLS_AT_ONCE):
        positions = mapped.positions(np.arange(begin, min(len(mapped), begin + _CELLS_AT_ONCE)))
        number = split_numbers(splits, positions)
        for i, of_split in enumerate(counts):
            of_split.add(positions[number == i])
    frames = [
        of_split.frame().assign(split=i)
        for i, ((name, _), of_split) in enumerate(zip(parts, counts, strict=True))
        if name is not None or not only_splits
    ]
    by = [*(["split"] if splits is not None else []), CELL_TYPE, "perturbation", CONDITION]
    by += ["dataset"] if len(groups.labels["dataset"]) > 1 else []
    table = _by_group(pd.concat(frames, ignore_index=True), by, names)
    labels = {axis: [*groups.labels[axis].tolist(), None] for axis in RUN_AXES}  # code -1 selects the last
    labels["split"] = [NO_SPLIT if name is None else name for name, _ in parts]
    for axis in set(by).intersection(labels):
        table[axis] = np.array(labels[axis], object)[table[axis]]
    replace_ranks(table, groups.conditions)
    return table


def _level_names(config: ControlMappingConfig) -> tuple[str, ...]:
    if config.match is not None:
        return config.match
    return (CELL_TYPE, "batch") if config.strategy == "batch" else (CELL_TYPE,)


class _PoolCounts:
    """Numbers of cells by run, level and pool size, counted a bounded number of cells at a time."""

    def __init__(self, groups: Groups, pools: ControlPools, n_levels: int) -> None:
        self._groups, self._pools, self._n_levels = groups, pools, n_levels
        self._keys, self._n_cells = np.empty(0, np.int64), np.empty(0, np.int64)

    def add(self, positions: NDArray[np.int64]) -> None:
        """Count more cells."""
        if not len(positions):
            return
        run = self._groups.run_of(positions)
        pools = self._pools.matched(positions, run, strict=False)
        key = (run * self._n_levels + pools.level) * (len(self._pools.controls) + 1) + pools.size
        keys, n_cells = np.unique(key, return_counts=True)
        self._keys, number = np.unique(np.concatenate([self._keys, keys]), return_inverse=True)
        self._n_cells = np.bincount(number, np.concatenate([self._n_cells, n_cells])).astype(np.int64)

    def frame(self) -> pd.DataFrame:
        """One row per run, level and pool size, with the codes of the run's labels and the rank of its condition."""
        key, size = np.divmod(self._keys, len(self._pools.controls) + 1)
        run, level = np.divmod(key, self._n_levels)
        axes = {axis: codes[run] for axis, codes in self._groups.codes.items()}
        rank = self._groups.conditions.rank()[self._groups.condition[run]]
        return pd.DataFrame({**axes, CONDITION: rank, "level": level, "size": size, "n": self._n_cells})


def _by_group(counts: pd.DataFrame, by: list[str], names: tuple[str, ...]) -> pd.DataFrame:
    """One row per group, with the counts and pool sizes of each level."""
    grouped = counts.groupby(by, sort=True)
    group, n_groups = grouped.ngroup().to_numpy(), grouped.ngroups
    level, size, n = (counts[name].to_numpy() for name in ("level", "size", "n"))
    table: dict[str, Any] = {"n_cells": _total(group, n, n_groups)}
    for number, name in reversed(list(enumerate(names))):
        chosen = (level == number) & (size > 0)
        matched, smallest, median = _pool_sizes(group[chosen], size[chosen], n[chosen], n_groups)
        table[f"matched_{name}"] = matched
        table[f"smallest_pool_{name}"] = pd.array(np.where(matched > 0, smallest, 0), "Int64")
        table[f"smallest_pool_{name}"][matched == 0] = pd.NA
        table[f"median_pool_{name}"] = median
    table["unmatched"] = _total(group[size == 0], n[size == 0], n_groups)
    return pd.concat([grouped.size().index.to_frame(index=False), pd.DataFrame(table)], axis=1)


def _total(group: NDArray[np.int64], n: NDArray[np.int64], n_groups: int) -> NDArray[np.int64]:
    return np.bincount(group, weights=n, minlength=n_groups).astype(np.int64)


def _pool_sizes(
    group: NDArray[np.int64], size: NDArray[np.int64], n: NDArray[np.int64], n_groups: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """(n_groups,) cells of each group, and the smallest and median pool of these cells; 0 and NaN without any."""
    order = np.lexsort((size, group))
    group, size, n = group[order], size[order], n[order]
    matched = _total(group, n, n_groups)
    last = np.cumsum(n)  # cells up to each entry, so that cell number k is in the first entry that exceeds k
    begin = np.cumsum(matched) - matched
    has_cells = matched > 0
    smallest, median = np.zeros(n_groups, np.int64), np.full(n_groups, np.nan)
    nth = [begin[has_cells] + at for at in (0, (matched[has_cells] - 1) // 2, matched[has_cells] // 2)]
    smallest[has_cells], low, high = (size[np.searchsorted(last, cell, side="right")] for cell in nth)
    median[has_cells] = (low + high) / 2
    return matched, smallest, median
