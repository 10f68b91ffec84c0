"""What a sentence plan is made of: groups, divided by batch if asked for, and their shares of an epoch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lazypert.design.sampler_config import choose_sentence_size
from lazypert.errors import ConfigError

if TYPE_CHECKING:
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
    groups: Groups, rows: Rows, run: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Sort a split's cells by run and batch.

    Parameters
    ----------
    run
        (n_cells,) run of each cell, ascending.

    Returns
    -------
    split_index
        (n_cells,) split index of the cells in that order.
    first, run, size
        (n_groups,) first cell, run, and number of cells of each (run, batch).
    """
    batch = groups.batch_of(rows[:])
    key = run * (len(groups.labels["batch"]) + 1) + batch + 1
    split_index = np.argsort(key, kind="stable")
    key = key[split_index]
    first = np.flatnonzero(np.diff(key, prepend=-1) != 0)
    return split_index, first, run[split_index[first]], np.diff(np.append(first, len(key)))


def n_conditions_of(groups: Groups, run: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) number of conditions that the cell type and perturbation of each run occurs in, among these runs."""
    _, first = np.unique(groups.ids[run], return_index=True)
    _, pair = np.unique(groups.pair_ids[run], return_inverse=True)
    return np.bincount(pair[first])[pair]


def share_of_group(ids: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n,) part of its group's cells in each of its runs or batches."""
    _, group = np.unique(ids, return_inverse=True)
    return size / np.bincount(group, weights=size)[group]
