"""Cutting groups into parts evenly within the values of further columns, such as batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypert._internal.randomness import counter_hash
from lazypert.screen.cell_order import name_hashes
from lazypert.splits.group_cutting import Units, cut_bounds
from lazypert.splits.label_keys import combine_keys, group_keys

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows
    from lazypert.splits.cell_labels import CellLabels

_GROUPS, _STRATA = 304, 305  # streams of random numbers


def cut_strata(
    groups: Groups,
    is_divided: NDArray[np.bool_],
    totals: Sequence[int],
    seed: int,
    strata: CellLabels,
    n_kept: Mapping[int, int] | None = None,
) -> list[Rows]:
    """Divide groups into parts, evenly within each of their strata.

    As `lazypert.splits.group_cutting.cut_groups`, with the same exact totals: every stratum contributes in proportion
    to its size, rounded up or down, and so does every group. Takes memory in proportion to the number of cells.

    Parameters
    ----------
    strata
        Values of the cells of the divided runs; cells without a value form a stratum of their group.
    """
    rows, runs = groups.rows(is_divided), np.flatnonzero(is_divided)
    run = np.repeat(runs, groups.sizes[runs])
    value = np.repeat(strata.codes, groups.sizes[runs]) if strata.of_runs else strata.codes
    key = groups.ids[run] * (len(strata.labels) + 1) + value + 1
    found, stratum = np.unique(key, return_inverse=True)
    group_of_id = dict(zip(groups.ids[runs].tolist(), group_keys(groups)[runs], strict=True))
    ids, values = np.divmod(found, len(strata.labels) + 1)
    group_key = np.array([group_of_id[number] for number in ids.tolist()], dtype=np.uint64)
    keys = combine_keys(group_key, np.append(np.uint64(0), _value_keys(strata))[values])
    sizes = np.bincount(stratum, minlength=len(found))
    # Strata of one group follow one another, so that their group gets its share as well.
    order = np.lexsort((counter_hash((seed, _STRATA), keys), counter_hash((seed, _GROUPS), group_key)))
    bounds = cut_bounds(sizes, totals, order, seed, n_kept)
    by_stratum = np.lexsort((groups.cells.hashes(rows[:]), stratum))
    units, first = Units.of(sizes, keys, seed), np.cumsum(sizes) - sizes
    part_of_cell = np.full(len(rows), -1, dtype=np.int8)
    for part, (low, high) in enumerate(bounds):
        number, start, stop = units.between(low, high)
        index = _ranges(first[number] + start, stop - start)
        part_of_cell[by_stratum[index]] = part
    return [rows.where(part_of_cell == part) for part in range(len(totals))]


def _value_keys(strata: CellLabels) -> NDArray[np.uint64]:
    keys = np.zeros(len(strata.labels), dtype=np.uint64)
    for texts in zip(*strata.labels, strict=True):
        keys = combine_keys(keys, name_hashes(texts))
    return keys


def _ranges(start: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.int64]:
    """Concatenate the numbers from each start on."""
    ends = np.cumsum(length)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(start - (ends - length), length)
