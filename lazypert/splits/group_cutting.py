"""Cutting groups into parts at exact totals, so that each part is a random sample of every group.

Which cells go where is a function of a seed, of the cells' names and of the labels of their groups. It depends neither
on the order in which cells are stored, nor on their batches, nor on how they are divided among files, and other groups
have an influence on rounding only. Cells of the same name in several datasets mostly go to the same part.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lazypert._internal.randomness import counter_hash, generator, permute_index
from lazypert.screen.rows import Rows
from lazypert.splits.label_keys import group_keys

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups

UNIT_SIZE = 16
"""Cells that stay together in large groups. They are neighbours in the order of their names' hashes, so they have
nothing in common; and they are stored together, so that reading a small part of a group does not read all of it."""

_UNITS_PER_GROUP = 8
"""Groups of fewer than 128 cells are divided into smaller units, down to single cells, so that there are several."""

_UNITS, _CUTS, _SHIFT = 301, 302, 304  # streams of random numbers; 303 is used in `label_keys`

_UNITS_AT_ONCE = 1 << 20


def cut_groups(
    groups: Groups,
    is_divided: NDArray[np.bool_],
    totals: Sequence[int],
    seed: int,
    undivided: Sequence[NDArray[np.bool_] | None] = (),
    n_kept: Mapping[int, int] | None = None,
) -> list[Rows]:
    """Divide groups into parts.

    Parameters
    ----------
    groups
        The cells.
    is_divided
        (n_runs,) whether a run's group is divided.
    totals
        For each part, the number of cells of divided groups in it and the parts before it. Every group
        contributes in proportion to its size.
    seed
        Determines which cells go where.
    undivided
        For each part, (n_runs,) whether it also gets all of a run; None for no run.
    n_kept
        For parts by number, how many of their cells from divided groups to keep; the others are in no part, and the
        other parts stay as they are.

    Returns
    -------
    Rows of each part, sorted by run.
    """
    runs = np.flatnonzero(is_divided)
    ids, group_of_run = np.unique(groups.ids[runs], return_inverse=True)
    sizes = np.bincount(group_of_run, weights=groups.sizes[runs], minlength=len(ids)).astype(np.int64)
    keys = np.empty(len(ids), dtype=np.uint64)
    keys[group_of_run] = group_keys(groups)[runs]
    bounds = cut_bounds(sizes, totals, np.argsort(counter_hash((seed, _CUTS), keys), kind="stable"), seed, n_kept)
    found: list[list[_Intervals]] = [[] for _ in totals]
    for chosen in _in_chunks(sizes):
        units = Units.of(sizes[chosen], keys[chosen], seed)
        ranks: dict[int, list[NDArray[np.int64]]] = {}
        for part, (low, high) in enumerate(bounds):
            group, start, stop = units.between(low[chosen], high[chosen])
            found[part].append(_to_positions(groups, runs, group_of_run, chosen[group], start, stop, ranks))
    for part, whole in enumerate(undivided):
        if whole is not None:
            which = np.flatnonzero(whole)
            found[part].append(_Intervals(which, groups.start[which], groups.stop[which]))
    return [_merge(groups, parts) for parts in found]


def cut_bounds(
    sizes: NDArray[np.int64],
    totals: Sequence[int],
    order: NDArray[np.int64],
    seed: int,
    n_kept: Mapping[int, int] | None = None,
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """For each part, (n_groups,) the first of its cells in every group, and the first one after them.

    Parameters
    ----------
    sizes
        (n_groups,) cells of each group.
    totals, n_kept
        As in `cut_groups`.
    order
        (n_groups,) numbers of the groups; consecutive ones get their share together.
    seed
        Determines how shares are rounded.
    """
    rng = generator(seed, _CUTS)
    cuts, upper = [sizes], sizes
    for total in reversed(totals):  # each cut lies below the next one, so that parts nest
        upper = apportion(upper, total, order, int(rng.integers(2**63)))
        cuts.insert(0, upper)
    bounds = list(pairwise([np.zeros_like(sizes), *cuts[:-1]]))
    if len(bounds) > 1:
        # The second part comes first: validation then begins with a whole unit, and fewer stretches are read for it.
        (_, first), (_, second) = bounds[:2]
        bounds[:2] = [(second - first, second), (np.zeros_like(sizes), second - first)]
    for part, count in (n_kept or {}).items():
        low, high = bounds[part]
        bounds[part] = low, low + apportion(high - low, count, order, int(rng.integers(2**63)))
    return bounds


def apportion(sizes: NDArray[np.int64], count: int, order: NDArray[np.int64], start: int) -> NDArray[np.int64]:
    """Apportion `count` cells to groups in proportion to their sizes.

    Systematic sampling: equally spaced points on a circle of all cells, beginning at a random cell.
    Every cell is equally likely to be selected, and any consecutive groups in `order` together get
    their share, rounded up or down.
    """
    total = int(sizes.sum())
    if total == 0:
        return np.zeros_like(sizes)
    ends = start % total + np.cumsum(np.concatenate([[0], sizes[order]]))
    out = np.empty_like(sizes)
    out[order] = np.diff(_floor_product(ends, Fraction(count, total)))
    return out


def _floor_product(totals: NDArray[np.int64], fraction: Fraction) -> NDArray[np.int64]:
    """``floor(totals * fraction)`` in Python integers: 64-bit products overflow for fractions such as 1/3."""
    products: NDArray[np.object_] = totals.astype(object) * fraction.numerator // fraction.denominator
    return products.astype(np.int64)


def _in_chunks(sizes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Numbers of groups, in chunks of about `_UNITS_AT_ONCE` units."""
    chunk = np.cumsum(-(-sizes // _unit_size(sizes))) // _UNITS_AT_ONCE
    return np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(chunk)) + 1) if len(sizes) else []


def _unit_size(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.clip(sizes // _UNITS_PER_GROUP, 1, UNIT_SIZE)


class Units(NamedTuple):
    """Units of several groups, in a random order within each group.

    Attributes
    ----------
    group
        (n_units,) group of each unit, ascending.
    first_rank, size
        (n_units,) rank of its first cell among the group's cells in hash order, and number of its cells.
    before
        (n_units,) cells of the group in the units before it.
    group_size
        (n_groups,) cells of each group.
    shift
        (n_groups,) rank at which the first unit of each group begins; the last ones wrap around. Without it, the last
        cells of a unit, which is divided between two parts now and then, would be drawn less often than the first.
    """

    group: NDArray[np.int64]
    first_rank: NDArray[np.int64]
    size: NDArray[np.int64]
    before: NDArray[np.int64]
    group_size: NDArray[np.int64]
    shift: NDArray[np.int64]

    @classmethod
    def of(cls, sizes: NDArray[np.int64], keys: NDArray[np.uint64], seed: int) -> Units:
        """Make the units of groups with these sizes and keys."""
        unit_size = _unit_size(sizes)
        n_units = -(-sizes // unit_size)
        group = np.repeat(np.arange(len(sizes)), n_units)
        number = np.arange(len(group)) - np.repeat(np.cumsum(n_units) - n_units, n_units)
        place = permute_index((seed, _UNITS), keys[group], number, n_units[group])
        order = np.lexsort((place, group))
        first_rank = (number * unit_size[group])[order]
        size = np.minimum(unit_size[group], sizes[group] - first_rank)
        before = np.cumsum(size) - size
        shift = (counter_hash((seed, _SHIFT), keys) % np.maximum(sizes, 1).astype(np.uint64)).astype(np.int64)
        return cls(group, first_rank, size, before - np.repeat(np.cumsum(sizes) - sizes, n_units), sizes, shift)

    def between(
        self, low: NDArray[np.int64], high: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Group, and first and last rank, of the intervals of cells number `low` to `high` of each group."""
        begin = np.clip(low[self.group] - self.before, 0, self.size)
        end = np.clip(high[self.group] - self.before, 0, self.size)
        filled = end > begin
        group, first = self.group[filled], self.first_rank[filled]
        size = self.group_size[group]
        start = (first + begin[filled] + self.shift[group]) % size
        stop = start + (end - begin)[filled]
        wraps = stop > size
        order = np.argsort(np.concatenate([group, group[wraps]]), kind="stable")
        return (
            np.concatenate([group, group[wraps]])[order],
            np.concatenate([start, np.zeros(int(wraps.sum()), np.int64)])[order],
            np.concatenate([np.minimum(stop, size), (stop - size)[wraps]])[order],
        )


class _Intervals(NamedTuple):
    """Intervals of positions and the run that each belongs to."""

    run: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]


def _to_positions(
    groups: Groups,
    runs: NDArray[np.int64],
    group_of_run: NDArray[np.int64],
    group: NDArray[np.int64],
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
    ranks_of_group: dict[int, list[NDArray[np.int64]]],
) -> _Intervals:
    """Positions of intervals of ranks; the cells of a group may be in several runs, one for each dataset."""
    by_group = np.argsort(group_of_run, kind="stable")
    n_runs = np.bincount(group_of_run)
    first_run = np.cumsum(n_runs) - n_runs
    is_single = n_runs[group] == 1
    run = runs[by_group[first_run[group[is_single]]]]
    offset = groups.start[run]
    found = [_Intervals(run, offset + start[is_single], offset + stop[is_single])]
    group, start, stop = group[~is_single], start[~is_single], stop[~is_single]
    numbers, first = np.unique(group, return_index=True)
    for number, low, high in zip(numbers.tolist(), first, np.append(first[1:], len(group)), strict=False):
        of_group = runs[by_group[first_run[number] : first_run[number] + n_runs[number]]]
        if number not in ranks_of_group:
            ranks_of_group[number] = _ranks(groups, of_group)
        for run_number, ranks in zip(of_group, ranks_of_group[number], strict=True):
            begin, end = np.searchsorted(ranks, start[low:high]), np.searchsorted(ranks, stop[low:high])
            offset = groups.start[run_number]
            found.append(_Intervals(np.full(len(begin), run_number), offset + begin, offset + end))
    return _Intervals(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))


def _ranks(groups: Groups, runs: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """For each of a group's runs, the rank of each of its cells among the cells of all of them, ascending."""
    hashes = [groups.cells.hashes(groups.rows(np.array([run]))[:]) for run in runs]
    ends = np.cumsum([len(part) for part in hashes])
    run = np.repeat(np.arange(len(runs)), np.diff(ends, prepend=0))
    order = np.lexsort((run, np.concatenate(hashes)))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    # They ascend already, except those of cells of the same name.
    return [np.sort(ranks) for ranks in np.split(rank, ends[:-1])]


def unite(groups: Groups, parts: Sequence[Rows]) -> Rows:
    """Return the rows of several disjoint lists, sorted by run."""
    return _merge(groups, [_Intervals(groups.run_of(rows.starts), rows.starts, rows.stops) for rows in parts])


def _merge(groups: Groups, parts: list[_Intervals]) -> Rows:
    """Sort intervals by run and position, and join adjacent ones."""
    if not parts:
        return Rows([], [], groups.row_order)
    run, start, stop = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    filled = stop > start
    order = np.lexsort((start[filled], run[filled]))
    run, start, stop = run[filled][order], start[filled][order], stop[filled][order]
    begins = np.concatenate([[True], (run[1:] != run[:-1]) | (start[1:] != stop[:-1])])[: len(run)]
    firsts = np.flatnonzero(begins)
    ends = np.append(firsts[1:], len(run))[: len(firsts)] - 1
    return Rows(start[firsts], stop[ends], groups.row_order)
