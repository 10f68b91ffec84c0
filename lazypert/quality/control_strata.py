"""Which controls each cell is compared with, by its run and batch: no table of all cells is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.quality.config import ControlMatch
    from lazypert.quality.contexts import Contexts
    from lazypert.screen.groups import Groups


@dataclass(frozen=True, slots=True, eq=False)
class ControlStrata:
    """Strata of cells that are compared with the same controls.

    Attributes
    ----------
    of_run
        (n_runs,) number of each run's stratum; with `batch_keys`, that of the (cell type, dataset) of the run.
    wider
        (n_strata,) number of the stratum whose controls serve a stratum that has none.
    batch_keys
        (n_strata,) ascending ``of_run * (n_batches + 1) + batch + 1`` of each stratum, or None if batches do not
        matter.
    n_batches
        Number of batch labels.
    """

    of_run: NDArray[np.int64]
    wider: NDArray[np.int64]
    batch_keys: NDArray[np.int64] | None = None
    n_batches: int = 0

    @classmethod
    def of(cls, groups: Groups, match: ControlMatch, contexts: Contexts) -> ControlStrata:
        """Divide the cells of a screen into strata; they are compared only with controls of their own context."""
        if match == "all":
            return cls(contexts.of_run, np.arange(len(contexts.labels)))
        keys, of_run = np.unique(groups.matching_ids, return_inverse=True)
        if match == "cell_type":
            return cls(of_run, np.arange(len(keys)))
        counts, n_batches = groups.batch_counts, len(groups.labels["batch"])
        batch_keys = np.unique(of_run[counts.run].astype(np.int64) * (n_batches + 1) + counts.batch + 1)
        return cls(of_run, batch_keys // (n_batches + 1), batch_keys, n_batches)

    def __len__(self) -> int:
        return len(self.wider)

    def of_cells(self, run: NDArray[np.integer], batch: NDArray[np.integer] | None) -> NDArray[np.int64]:
        """(n,) stratum of cells, -1 for those in no run, from their runs and, with `batch_keys`, batch codes."""
        of_run = np.append(self.of_run, -1)[run]
        if self.batch_keys is None:
            return of_run
        assert batch is not None
        found = np.searchsorted(self.batch_keys, of_run * (self.n_batches + 1) + batch + 1)
        return np.where(of_run < 0, -1, found)

    def count(self, groups: Groups, runs: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(n_strata,) cells of the chosen runs in each stratum."""
        if self.batch_keys is None:
            return np.bincount(self.of_run[runs], groups.sizes[runs], len(self)).astype(np.int64)
        counts = groups.batch_counts
        chosen = runs[counts.run]
        stratum = self.of_cells(counts.run[chosen], counts.batch[chosen])
        return np.bincount(stratum, counts.n_cells[chosen], len(self)).astype(np.int64)
