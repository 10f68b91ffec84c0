"""What a sentence plan is made of: groups, divided by batch if asked for, and their shares of an epoch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lazypert.design.pool_ranks import count_up
from lazypert.design.sampler_config import choose_sentence_size
from lazypert.errors import ConfigError
from lazypert.screen.rows import index_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lazypert.design.sampler_config import PerturbationSamplerConfig
    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows


def check_shares(config: PerturbationSamplerConfig, *, shuffle: bool, weights: object = None) -> None:
    """Check that shares of an epoch are given in one way, and for training only."""
    if config.balance is not None and weights is not None:
        raise ConfigError(f"balance: got {config.balance!r} together with weights, expected only one of them.")
    if not shuffle and (config.balance is not None or weights is not None):
        name = "balance" if weights is None else "weights"
        raise ConfigError(f"{name}: needs shuffle=True, because evaluation visits every cell once.")


def with_size(config: PerturbationSamplerConfig, sizes: NDArray[np.int64]) -> PerturbationSamplerConfig:
    """The config with a sentence size, chosen from the sizes of the groups if it has none."""
    if config.sentence_size is not None:
        return config
    if config.downsample_cells is not None:
        sizes = np.minimum(sizes, config.downsample_cells)
    return replace(config, sentence_size=choose_sentence_size(sizes))


def divide_by_batch(
    groups: Groups, rows: Rows
) -> tuple[NDArray[np.integer], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Sort a split's cells by run and batch, in four bytes per cell.

    Parameters
    ----------
    rows
        The cells, sorted by run.

    Returns
    -------
    split_index
        (n_cells,) split index of the cells in that order.
    first, run, size
        (n_groups,) first cell, run, and number of cells of each (run, batch).
    """

    def subgroups() -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        for index, positions in rows.chunks():
            yield index, groups.subgroup_of(groups.run_of(positions), rows.to_rows(positions))

    size = np.zeros(len(groups.batch_counts.run), dtype=np.int64)
    for _, subgroup in subgroups():
        size += np.bincount(subgroup, minlength=len(size))
    first = np.cumsum(size) - size
    split_index, place = np.empty(len(rows), dtype=index_dtype(len(rows))), first.copy()
    for index, subgroup in subgroups():
        split_index[count_up(subgroup, place)] = index
    occurs = size > 0
    return split_index, first[occurs], groups.batch_counts.run[occurs], size[occurs]


def n_conditions_of(groups: Groups, run: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) number of conditions that the cell type and perturbation of each run occurs in, among these runs."""
    _, first = np.unique(groups.ids[run], return_index=True)
    _, pair = np.unique(groups.pair_ids[run], return_inverse=True)
    return np.bincount(pair[first])[pair]


def share_of_group(ids: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n,) part of its group's cells in each of its runs or batches."""
    _, group = np.unique(ids, return_inverse=True)
    return size / np.bincount(group, weights=size)[group]
