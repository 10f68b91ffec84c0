"""Cell statistics of X that conversion collected, as a store holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lazypert.store.sharded_array import ShardedArray


@dataclass(frozen=True, slots=True, eq=False)
class StoredCellStats:
    """Cell statistics of X, read from a store (see `lazypert.conversion.cell_stats`).

    Attributes
    ----------
    gene_col
        var column in which the perturbations were looked up as genes; None is the var index.
    total, n_genes
        (n_obs,) sum of each cell's values, and number of its genes with a non-zero value.
    own_target
        (n_obs,) value of each cell's own target; NaN for controls and for cells without a target.
    target
        (n_perturbations,) column of each perturbation's target, -1 for none.
    control_sum
        (n_control_subgroups, n_perturbations) sum of every target over the cells of each (run, batch) of controls.
    control_row
        (n_control_subgroups,) first row of each of these subgroups.
    """

    gene_col: str | None
    total: ShardedArray
    n_genes: ShardedArray
    own_target: ShardedArray
    target: NDArray[np.int32]
    control_sum: NDArray[np.float64]
    control_row: NDArray[np.int64]

    def __repr__(self) -> str:
        return f"StoredCellStats({len(self.total):,} cells, {len(self.target):,} perturbations)"
