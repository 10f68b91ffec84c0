"""Which control cells serve the cells of a split, and which control cells are delivered with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from lazypert.errors import EmptyPoolError
from lazypert.screen.cell_order import name_hashes
from lazypert.screen.rows import Rows
from lazypert.splits.group_cutting import Units
from lazypert.splits.label_keys import combine_keys
from lazypert.splits.names import SPLITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.splits.split_result import SplitResult

ControlPolicy = Literal["split", "train", "shared", "disjoint"]


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

    Each such split gets a random share in proportion to its perturbed cells of this cell type and dataset, and at least
    one control. Splits that have controls of their own stay as they are.

    Parameters
    ----------
    seed
        Determines which controls are moved.

    Raises
    ------
    EmptyPoolError
        If there are fewer controls than splits that need some.
    """
    lacking = {split: _lacking(groups, splits[split]) for split in SPLITS}
    contested = np.unique(np.concatenate(list(lacking.values())))
    if not len(contested):
        return splits
    train = _controls(groups, splits["train"])
    run_of_train, run_keys = groups.run_of(train.starts), _pool_keys(groups)
    moved: dict[str, list[Rows]] = {split: [] for split in SPLITS}
    for key in contested.tolist():
        is_key = groups.matching_ids == key
        rows, n_cells = _in_runs(groups, train, is_key), {"train": 0}
        for split in SPLITS:
            if split == "train" or key in lacking[split]:
                n_cells[split] = len(_in_runs(groups, _perturbed(groups, splits[split]), is_key))
        shares = _shares(len(rows), n_cells, _cell_type(groups, is_key))
        units = Units.of(np.array([len(rows)]), run_keys[is_key][:1], seed)
        start = 0
        for split in ("valid", "test", "train"):
            stop = start + shares[split]
            _, low, high = units.between(np.array([start]), np.array([stop]))
            chosen = np.zeros(len(rows), dtype=bool)
            for begin, end in zip(low.tolist(), high.tolist(), strict=True):
                chosen[begin:end] = True
            moved[split].append(rows.where(chosen))
            start = stop
    kept = ~np.isin(groups.matching_ids[run_of_train], contested)
    moved["train"].append(Rows(train.starts[kept], train.stops[kept], train.row_order))
    moved["train"].append(_perturbed(groups, splits["train"]))
    return replace(
        splits,
        train_indices=_union(groups, moved["train"]),
        valid_indices=_union(groups, [splits["valid"], *moved["valid"]]),
        test_indices=_union(groups, [splits["test"], *moved["test"]]),
        rule=None,  # the rule alone would not move them
    )


def _shares(n_controls: int, n_cells: dict[str, int], cell_type: str) -> dict[str, int]:
    """Divide controls in proportion to perturbed cells, with at least one for each split that has some."""
    needed = [split for split in SPLITS if n_cells.get(split, 0)]
    if n_controls < len(needed):
        raise EmptyPoolError(
            f"controls: got 'disjoint', but cell type {cell_type!r} has {n_controls} training controls for "
            f"{len(needed)} splits ({', '.join(needed)}), expected at least one for each. "
            "Use controls='split' or 'shared', or leave out this cell type."
        )
    total = sum(n_cells.values())
    shares: dict[str, int] = dict.fromkeys(SPLITS, 0)
    for split in ("valid", "test"):
        if split in needed:
            shares[split] = max(1, n_controls * n_cells[split] // total)
    surplus = sum(shares.values()) + ("train" in needed) - n_controls
    if surplus > 0:  # only in tiny pools, where shares were rounded up
        shares["valid" if shares["valid"] > shares["test"] else "test"] -= surplus
    shares["train"] = n_controls - shares["valid"] - shares["test"]
    return shares


def _pool_keys(groups: Groups) -> NDArray[np.uint64]:
    """(n_runs,) key of the cell type and dataset of each run, from the texts of their labels."""
    keys = np.zeros(len(groups.start), dtype=np.uint64)
    for axis in ("cell_type", "dataset"):
        keys = combine_keys(keys, np.append(name_hashes(groups.labels[axis]), np.uint64(0))[groups.codes[axis]])
    return keys


def _cell_type(groups: Groups, is_key: NDArray[np.bool_]) -> str:
    return str(groups.labels["cell_type"][groups.codes["cell_type"][is_key][0]])


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
