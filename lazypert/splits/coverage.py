"""Which cells of a screen are in some split, and which in none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypert.screen.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazypert.screen.groups import Groups


def covered(groups: Groups, parts: Sequence[Rows]) -> Rows:
    """Return the cells in any split, by position, each once even if splits overlap."""
    starts, stops = (np.concatenate([getattr(rows, name) for rows in parts]) for name in ("starts", "stops"))
    order = np.argsort(starts, kind="stable")
    ends = np.maximum.accumulate(np.concatenate([[0], stops[order]]))
    return Rows(np.maximum(starts[order], ends[:-1]), stops[order], groups.row_order)


def uncovered(groups: Groups, parts: Sequence[Rows]) -> Rows:
    """Return the cells in no split, by position."""
    inside = covered(groups, parts)
    return Rows(np.concatenate([[0], inside.stops]), np.concatenate([inside.starts, [groups.n_obs]]), groups.row_order)
