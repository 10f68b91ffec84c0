"""What a sentence plan is made of: groups, divided by batch if asked for, and their shares of an epoch."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

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


class BatchOrder:
    """Split index of a split's cells, sorted by run and batch; made when it is first used, in four bytes per cell.

    Parameters
    ----------
    groups
        The screen's groups.
    rows
        The cells, sorted by run.
    first
        (n_subgroups,) where the cells of each (run, batch) of ``groups.batch_counts`` begin.
    """

    def __init__(self, groups: Groups, rows: Rows, first: NDArray[np.int64]) -> None:
        self._groups, self._rows, self._first = groups, rows, first

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_index"}

    def __getitem__(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._index[cells].astype(np.int64)

    @cached_property
    def _index(self) -> NDArray[np.integer]:
        index, place = np.empty(len(self._rows), dtype=index_dtype(len(self._rows))), self._first.copy()
        for number, subgroup in _subgroups(self._groups, self._rows):
            index[count_up(subgroup, place)] = number
        return index


def _subgroups(groups: Groups, rows: Rows) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Split index and subgroup of all cells, a bounded number at a time."""
    for index, positions in rows.chunks():
        yield index, groups.subgroup_of(groups.run_of(positions), rows.to_rows(positions))


def divide_by_batch(
    groups: Groups, rows: Rows
) -> tuple[BatchOrder, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Sort a split's cells by run and batch.

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
    size = np.zeros(len(groups.batch_counts.run), dtype=np.int64)
    for _, subgroup in _subgroups(groups, rows):
        size += np.bincount(subgroup, minlength=len(size))
    first = np.cumsum(size) - size
    occurs = size > 0
    return BatchOrder(groups, rows, first), first[occurs], groups.batch_counts.run[occurs], size[occurs]


def n_conditions_of(groups: Groups, run: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) number of conditions that the cell type and perturbation of each run occurs in, among these runs."""
    _, first = np.unique(groups.ids[run], return_index=True)
    _, pair = np.unique(groups.pair_ids[run], return_inverse=True)
    return np.bincount(pair[first])[pair]


def share_of_group(ids: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n,) part of its group's cells in each of its runs or batches."""
    _, group = np.unique(ids, return_inverse=True)
    return size / np.bincount(group, weights=size)[group]
