"""Per-cell summary statistics collected during conversion: totals, genes detected, own targets, control sums.

With these, knockdown quality control of a fresh store reads no matrix.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.files import write_atomic
from lazypert._internal.kernels import kernel
from lazypert.screen.targets import target_genes, target_sums

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.sparse.csr import CSRBlock


@dataclass(frozen=True, slots=True)
class CellStatsPlan:
    """The statistics to collect for each subgroup of cells; small, and the same for every task.

    A subgroup is the cells of one run and one batch.

    Attributes
    ----------
    gene_col
        var column in which the perturbations were found; None is the var index.
    target
        (n_perturbations,) gene that each perturbation is named after, -1 for none.
    target_of_run
        (n_runs,) own target of a run's cells, -1 for none and for controls.
    run_of_subgroup
        (n_subgroups,) run of a subgroup's cells.
    control_number
        (n_subgroups,) number of a subgroup among those of controls, -1 for others.
    """

    gene_col: str | None
    target: NDArray[np.int64]
    target_of_run: NDArray[np.int64]
    run_of_subgroup: NDArray[np.int64]
    control_number: NDArray[np.int64]

    @classmethod
    def of(cls, groups: Groups, var: pd.DataFrame) -> CellStatsPlan:
        """Find the perturbations in the var index or the text column that names most of them."""
        candidates: dict[str | None, Any] = {None: var.index}
        candidates |= {str(name): var[name] for name in var.columns if var[name].dtype.kind not in "fiubcmM"}
        targets = {
            name: target_genes(groups, np.asarray(values).astype(str).astype(np.str_))
            for name, values in candidates.items()
        }
        best = max(targets, key=lambda name: int((targets[name] >= 0).sum()))  # the first one wins a tie
        is_control = groups.is_control
        target_of_run = np.where(is_control, -1, np.append(targets[best], -1)[groups.codes["perturbation"]])
        run = groups.batch_counts.run
        control_number = np.where(is_control[run], np.cumsum(is_control[run]) - 1, -1)
        return cls(best, targets[best], target_of_run, run, control_number)

    @property
    def n_control_subgroups(self) -> int:
        """Number of subgroups of control cells."""
        return int(self.control_number.max(initial=-1)) + 1

    def find_control_rows(self, subgroup: NDArray[np.integer], first_row: int, found: NDArray[np.int64]) -> None:
        """Note the first row of each subgroup of controls.

        Parameters
        ----------
        subgroup
            (n,) subgroup of each of some consecutive rows.
        first_row
            The first of these rows.
        found
            (n_control_subgroups,) rows that are known from earlier rows, -1 for unknown ones; updated.
        """
        number = self.control_number[subgroup]
        rows = np.flatnonzero(number >= 0)
        numbers, first = np.unique(number[rows], return_index=True)
        is_new = found[numbers] < 0
        found[numbers[is_new]] = first_row + rows[first[is_new]]

    @property
    def control_sums_bytes(self) -> int:
        """Size of all control sums in bytes."""
        return 8 * self.n_control_subgroups * len(self.target)


@dataclass(frozen=True, slots=True)
class CellStats:
    """Statistics of `n` consecutive rows, starting at `first_row`.

    Attributes
    ----------
    total
        (n,) float64 sum of each row.
    n_genes
        (n,) int32 number of nonzero values in each row.
    own_target
        (n,) float64 expression of the target of each cell; NaN for controls and for cells without a target.
    control_subgroups
        (k,) numbers of the subgroups of controls that contain any of the rows.
    control_sums
        (k, n_perturbations) sums of every target over these rows of each such subgroup.
    """

    first_row: int
    total: NDArray[np.float64]
    n_genes: NDArray[np.int32]
    own_target: NDArray[np.float64]
    control_subgroups: NDArray[np.int64]
    control_sums: NDArray[np.float64]

    @classmethod
    def of(cls, plan: CellStatsPlan, subgroups: NDArray[np.integer], first_row: int, block: CSRBlock) -> CellStats:
        """Compute the statistics of a block.

        Parameters
        ----------
        subgroups
            (n,) subgroup of each row.
        first_row
            Row number of the block's first row.
        """
        n = block.shape[0]
        total, n_genes, own_target = np.zeros(n), np.zeros(n, np.int32), np.full(n, np.nan)
        zero = np.int64(0) if block.data.dtype.kind in "iu" else np.float64(0)
        _totals(block.indptr, block.data, zero, total, n_genes)
        present = np.unique(plan.control_number[subgroups])
        present = present[present >= 0]
        stratum = np.full(plan.n_control_subgroups + 1, -1, dtype=np.int64)  # the last element serves index -1
        stratum[present] = np.arange(len(present))
        slot = np.full(block.n_cols, -1, dtype=np.int64)
        targeting = np.flatnonzero(plan.target >= 0)
        slot[plan.target[targeting]] = targeting
        control_sums = np.zeros((len(present), len(plan.target)))
        row_target = plan.target_of_run[plan.run_of_subgroup[subgroups]]
        row_stratum = stratum[plan.control_number[subgroups]]
        target_sums(block.indptr, block.indices, block.data, row_target, row_stratum, slot, own_target, control_sums)
        control_sums[:, targeting] = control_sums[:, slot[plan.target[targeting]]]  # targets may be shared
        return cls(first_row, total, n_genes, own_target, present, control_sums)

    def save(self, path: Path) -> tuple[int, int]:
        """Write to a file; return its size and CRC-32."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
        np.savez(buffer, **arrays)
        return write_atomic(path, [buffer.getbuffer()])

    @classmethod
    def load(cls, path: Path) -> CellStats:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, Any] = {name: file[name] for name in file.files}
        return cls(**(arrays | {"first_row": int(arrays["first_row"])}))


@kernel
def _totals(indptr: Any, data: Any, zero: Any, total: Any, n_genes: Any) -> None:
    for row in range(len(indptr) - 1):
        value_sum, n_nonzero = zero, 0
        values = data[indptr[row] : indptr[row + 1]]
        for k in range(len(values)):
            value_sum += values[k]
        for k in range(len(values)):
            n_nonzero += values[k] != 0
        total[row], n_genes[row] = value_sum, n_nonzero
