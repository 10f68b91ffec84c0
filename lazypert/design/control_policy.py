"""Which control cells serve the cells of a split, and which control cells are delivered with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from lazypert._internal.inverse_permutation import inverse
from lazypert._internal.randomness import counter_hash
from lazypert.screen.rows import Rows
from lazypert.splits.names import SPLITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.splits.split_result import SplitResult

ControlPolicy = Literal["split", "train", "shared", "disjoint"]

_UNIT_SIZE = 16
"""Controls that are set aside together: neighbours in hash order, so that those that remain are still read in long
stretches."""

_SET_ASIDE = 311  # stream of random numbers


@dataclass(frozen=True, slots=True, eq=False)
class SplitControls:
    """The control cells of one split.

    Attributes
    ----------
    pool
        Control cells that serve the split's cells, in run order.
    cells
        The cells that are delivered, in run order.
    """

    pool: Rows
    cells: Rows

    @classmethod
    def of(
        cls, groups: Groups, splits: SplitResult, name: str, policy: ControlPolicy, *, delivered: bool | None = None
    ) -> SplitControls:
        """Apply a policy to a split.

        Parameters
        ----------
        policy
            See `lazypert.design.controls.ControlMappingConfig`. With ``"disjoint"``, the splits must be those that
            `with_own_controls` returns.
        delivered
            Which control cells are delivered: True for all of `pool`, False for none, and None for those that are in
            the split.
        """
        own, perturbed = _controls(groups, splits[name]), _perturbed(groups, splits[name])
        train = _controls(groups, splits["train"])
        if policy == "train":
            pool = train
        elif policy == "shared":
            pool = _union(groups, [_controls(groups, splits[split]) for split in SPLITS])
        elif policy == "disjoint":
            pool = own
        else:
            lacking = np.isin(groups.matching_ids, _lacking(groups, splits[name]))
            pool = _union(groups, [own, _in_runs(groups, train, lacking)])
        controls = {True: [pool], False: [], None: [own]}[delivered]
        return cls(pool, _union(groups, [perturbed, *controls]))


def with_own_controls(groups: Groups, splits: SplitResult, seed: int) -> SplitResult:
    """Move training controls to the splits that have none of a cell type and dataset.

    Each such split gets a share in proportion to its perturbed cells of this cell type and dataset, and at least one
    control; training keeps at least one. Splits that have controls of their own stay as they are.

    Parameters
    ----------
    seed
        Determines which controls are moved.
    """
    moved: dict[str, list[Rows]] = {split: [] for split in SPLITS}
    lacking = {split: _lacking(groups, splits[split]) for split in SPLITS}
    train = _controls(groups, splits["train"])
    run = groups.run_of(train.starts)
    contested = np.unique(np.concatenate(list(lacking.values())))
    for key in contested.tolist():
        is_key = groups.matching_ids == key
        rows = _in_runs(groups, train, is_key)
        n_cells = {
            split: len(_in_runs(groups, _perturbed(groups, splits[split]), is_key))
            for split in SPLITS
            if split == "train" or key in lacking[split]
        }
        units = counter_hash((seed, _SET_ASIDE), np.arange(len(rows)) // _UNIT_SIZE)
        rank, start = inverse(np.lexsort((np.arange(len(rows)), units))), 0
        for split in ("valid", "test"):
            share = len(rows) * n_cells.get(split, 0) // max(1, sum(n_cells.values()))
            stop = min(start + max(share, int(split in n_cells)), max(start, len(rows) - 1))
            moved[split].append(rows.where((rank >= start) & (rank < stop)))
            start = stop
        moved["train"].append(rows.where(rank >= start))
    if not len(contested):
        return splits
    kept = ~np.isin(groups.matching_ids[run], contested)
    moved["train"] += [
        Rows(train.starts[kept], train.stops[kept], train.row_order),
        _perturbed(groups, splits["train"]),
    ]
    return replace(
        splits,
        train_indices=_union(groups, moved["train"]),
        valid_indices=_union(groups, [splits["valid"], *moved["valid"]]),
        test_indices=_union(groups, [splits["test"], *moved["test"]]),
        rule=None,  # the rule alone would not move them
    )


def _controls(groups: Groups, rows: Rows) -> Rows:
    return _in_runs(groups, rows, groups.is_control & (groups.ids >= 0))


def _perturbed(groups: Groups, rows: Rows) -> Rows:
    return _in_runs(groups, rows, ~groups.is_control & (groups.ids >= 0))


def _lacking(groups: Groups, rows: Rows) -> NDArray[np.int64]:
    """Ids of the (cell type, dataset) of which there are perturbed cells and no controls."""
    keys = groups.matching_ids
    perturbed, controls = (
        keys[groups.run_of(part.starts)] for part in (_perturbed(groups, rows), _controls(groups, rows))
    )
    return np.setdiff1d(perturbed, controls)


def _in_runs(groups: Groups, rows: Rows, runs: NDArray[np.bool_]) -> Rows:
    """Those of the rows that are in the chosen runs."""
    chosen = runs[groups.run_of(rows.starts)]
    return Rows(rows.starts[chosen], rows.stops[chosen], rows.row_order)


def _union(groups: Groups, parts: Sequence[Rows]) -> Rows:
    """Disjoint lists of rows as one, in run order, with adjacent intervals of a run joined."""
    starts, stops = (np.concatenate([getattr(rows, name) for rows in parts]) for name in ("starts", "stops"))
    run = groups.run_of(starts)
    order = np.lexsort((starts, run))
    starts, stops, run = starts[order], stops[order], run[order]
    begins = np.ones(len(starts), dtype=bool)
    begins[1:] = (starts[1:] != stops[:-1]) | (run[1:] != run[:-1])
    ends = np.append(begins[1:], True)[: len(starts)]
    return Rows(starts[begins], stops[ends], parts[0].row_order)
