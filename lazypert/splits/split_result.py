"""A split of a screen: the cells that train, validate and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lazypert.splits.names import SPLITS, Split, split_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows


@dataclass(frozen=True, slots=True)
class SplitResult:
    """Three disjoint lists of store rows, sorted by group.

    Attributes
    ----------
    train_indices, valid_indices, test_indices
        `Rows`, which behave like (n,) int64 arrays and are stored as intervals.
    """

    train_indices: Rows
    valid_indices: Rows
    test_indices: Rows

    def __getitem__(self, name: str) -> Rows:
        """Rows of ``"train"``, ``"valid"`` (or ``"val"``) or ``"test"``."""
        rows: Rows = getattr(self, f"{split_name(name)}_indices")
        return rows

    def keep(self, mask: NDArray[np.bool_]) -> SplitResult:
        """Return the splits without the rows for which the (n_obs,) mask is False."""
        return SplitResult(*(self[name].keep(mask) for name in SPLITS))

    def __repr__(self) -> str:
        return "SplitResult(" + ", ".join(f"{name} {len(self[name]):,}" for name in SPLITS) + ")"


def split_by_run(groups: Groups, names: Sequence[Split | None]) -> SplitResult:
    """Assign each run to the split named for it; None leaves the run out."""
    split_of_run = np.array([name or "" for name in names])
    return SplitResult(*(groups.rows(split_of_run == name) for name in SPLITS))
