"""A split of a screen as a value: the cells that train, validate and test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lazypert.splits.digest import digest_of
from lazypert.splits.names import SPLITS, Split, split_name
from lazypert.splits.report import make_report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows
    from lazypert.splits.cell_content import HasContent
    from lazypert.splits.report import SplitReport


@dataclass(frozen=True, eq=False, repr=False)
class SplitResult:
    """Three disjoint lists of store rows, sorted by group.

    Two splits are equal if the same cells, by name, are in the same splits: see `digest`.

    Attributes
    ----------
    train_indices, valid_indices, test_indices
        `Rows`, which behave like (n,) int64 arrays and are stored as intervals.
    groups
        The cells that the split belongs to. Those without a label, and those that a rule leaves out, are in no split.
    """

    train_indices: Rows
    valid_indices: Rows
    test_indices: Rows
    groups: Groups

    def __getitem__(self, name: str) -> Rows:
        """Rows of ``"train"``, ``"valid"`` (or ``"val"``) or ``"test"``."""
        rows: Rows = getattr(self, f"{split_name(name)}_indices")
        return rows

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, SplitResult) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """Which cells are in which split, as 64 hexadecimal digits.

        It depends on the cells' names, and on their dataset labels if the screen has several datasets; not on the
        order of rows, on batches, or on how the split was made. Computing it reads the name hash of every cell.
        """
        return digest_of(self.groups, [self[name] for name in SPLITS])

    @property
    def n_in_no_split(self) -> int:
        """Number of cells in no split: without a label, or left out by a rule."""
        return self.groups.n_obs - sum(len(self[name]) for name in SPLITS)

    def keep(self, mask: NDArray[np.bool_]) -> SplitResult:
        """Return the splits without the rows for which the (n_obs,) mask is False."""
        return SplitResult(*(self[name].keep(mask) for name in SPLITS), self.groups)

    def report(
        self, source: HasContent | None = None, *, content: bool = False, separator: str | None = None
    ) -> SplitReport:
        """Report what the splits hold and what leaks between them; see `lazypert.splits.report.make_report`."""
        return make_report(self.groups, [self[name] for name in SPLITS], source, content=content, separator=separator)

    def __repr__(self) -> str:
        counts = [f"{name} {len(self[name]):,}" for name in SPLITS]
        if self.n_in_no_split:
            counts.append(f"in no split {self.n_in_no_split:,}")
        return f"SplitResult({', '.join(counts)})"


def split_by_run(groups: Groups, names: Sequence[Split | None]) -> SplitResult:
    """Assign each run to the split named for it; None leaves the run out."""
    split_of_run = np.array([name or "" for name in names])
    return SplitResult(*(groups.rows(split_of_run == name) for name in SPLITS), groups)
