"""The groups of several screens, one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypert.screen.cell_table import ConcatCells
from lazypert.screen.conditions import Conditions
from lazypert.screen.groups import Groups
from lazypert.screen.labels import renumber
from lazypert.screen.roles import AXES, RUN_AXES, joint_roles
from lazypert.screen.run_keys import encode, in_run_order, run_radices

if TYPE_CHECKING:
    from collections.abc import Sequence


def concat_groups(screens: Sequence[Groups], n_rows: Sequence[int]) -> Groups:
    """Concatenate screens under the union of their labels and conditions, which are renumbered.

    Parameters
    ----------
    screens
        Groups of each screen.
    n_rows
        Number of rows of each screen's store; its rows follow those of the stores before it.
    """
    roles = joint_roles([(s.roles, [*s.labels["perturbation"], *s.control_parts]) for s in screens])
    labels = {axis: np.unique(np.concatenate([screen.labels[axis] for screen in screens])) for axis in AXES}
    codes = {
        axis: np.concatenate([renumber(s.codes[axis], s.labels[axis], labels[axis]) for s in screens])
        for axis in RUN_AXES
    }
    conditions, numbers = Conditions.unite([screen.conditions for screen in screens])
    condition = np.concatenate([number[s.condition] for s, number in zip(screens, numbers, strict=True)])
    cells_before = np.cumsum([0, *(screen.n_obs for screen in screens)])[:-1]
    starts = np.concatenate([s.start + before for s, before in zip(screens, cells_before, strict=True)])
    stops = np.concatenate([s.stop + before for s, before in zip(screens, cells_before, strict=True)])
    row_order = None
    if any(s.row_order is not None or s.n_obs != n for s, n in zip(screens, n_rows, strict=True)):
        rows_before = np.cumsum([0, *n_rows])[:-1]
        row_order = np.concatenate(
            [
                (np.arange(screen.n_obs) if screen.row_order is None else screen.row_order) + before
                for screen, before in zip(screens, rows_before, strict=True)
            ]
        )
    by_key = np.argsort(encode(in_run_order(codes, condition), run_radices(labels, conditions)), kind="stable")
    batch_labels = [screen.labels["batch"] for screen in screens]
    return Groups(
        roles=roles,
        labels=labels,
        start=starts[by_key],
        stop=stops[by_key],
        codes={axis: code[by_key] for axis, code in codes.items()},
        condition=condition[by_key],
        row_order=row_order,
        n_obs=int(sum(screen.n_obs for screen in screens)),
        cells=ConcatCells([screen.cells for screen in screens], n_rows, batch_labels, labels["batch"]),
        conditions=conditions,
        control_parts=tuple(sorted({part for screen in screens for part in screen.control_parts})),
    )
