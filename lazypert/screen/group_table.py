"""The groups of a screen as a table for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from lazypert.screen.conditions import Conditions
    from lazypert.screen.groups import Groups

CONDITION = "condition"
"""Column with the rank of each condition, in place of the covariates."""

_AXES = ("cell_type", "perturbation", CONDITION)


def group_table(groups: Groups) -> pd.DataFrame:
    """Return one row per group; see `lazypert.screen.groups.Groups.table`."""
    is_labelled = groups.ids >= 0
    codes = groups.codes | {CONDITION: groups.conditions.rank()[groups.condition]}
    frame = pd.DataFrame(
        {
            **{axis: codes[axis][is_labelled] for axis in _AXES},
            "n_cells": groups.sizes[is_labelled],
            "is_control": groups.is_control[is_labelled],
        }
    )
    axes = list(_AXES)
    grouped = frame.groupby(axes, sort=True)
    table = grouped.agg(n_cells=("n_cells", "sum"), is_control=("is_control", "any")).reset_index()
    in_group = is_labelled[groups.batch_counts.run]
    run = groups.batch_counts.run[in_group]
    of_batches = pd.DataFrame({axis: codes[axis][run] for axis in (*axes, "dataset")})
    of_batches["batch"] = groups.batch_counts.batch[in_group]
    n_batches = of_batches.drop_duplicates().groupby(axes, sort=True).size()
    table.insert(4, "n_batches", n_batches.to_numpy())
    for axis in ("cell_type", "perturbation"):
        table[axis] = groups.labels[axis][table[axis].to_numpy(dtype=np.int64)]
    replace_ranks(table, groups.conditions)
    return table


def replace_ranks(table: pd.DataFrame, conditions: Conditions) -> None:
    """Replace the column `CONDITION`, which holds ranks, by a column of labels for each covariate."""
    place = table.columns.get_loc(CONDITION)
    condition = np.argsort(conditions.rank())[table.pop(CONDITION).to_numpy(dtype=np.int64)]
    for number, (name, labels) in enumerate(conditions.labels.items(), int(place)):
        table.insert(number, name, labels[condition], allow_duplicates=True)
