"""What conversion notes of the cells that pass by anyway: totals, genes detected, own targets, control sums.

With these, knockdown QC of a fresh store reads no matrix at all.
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
    """What to note of each run of cells; small, and the same for every task.

    Attributes
    ----------
    gene_col
        var column in which perturbations were found; None is the var index.
    target
        (n_perturbations,) column of the gene each perturbation is named for, -1 for none.
    own
        (n_runs,) column of the own target of a run's cells, -1 for none and for controls.
    control
        (n_runs,) number of a run among the control runs, -1 for others.
    """

    gene_col: str | None
    target: NDArray[np.int64]
    own: NDArray[np.int64]
    control: NDArray[np.int64]

    @classmethod
    def of(cls, groups: Groups, var: pd.DataFrame) -> CellStatsPlan:
        """Look for the perturbations in the var index and in every column of text: the best match counts."""
        candidates: dict[str | None, Any] = {None: var.index}
        candidates |= {str(name): var[name] for name in var.columns if var[name].dtype.kind not in "fiubcmM"}
        found = {
            name: target_genes(groups, np.asarray(values).astype(str).astype(np.str_))
            for name, values in candidates.items()
        }
        best = max(found, key=lambda name: int((found[name] >= 0).sum()))  # of equals the first
        is_control = groups.is_control
        own = np.where(is_control, -1, np.append(found[best], -1)[groups.codes["perturbation"]])
        return cls(best, found[best], own, np.where(is_control, np.cumsum(is_control) - 1, -1))

    @property
    def n_control_runs(self) -> int:
        """Number of runs of control cells."""
        return int(self.control.max(initial=-1)) + 1

    @property
    def sums_bytes(self) -> int:
        """Bytes of all control sums."""
        return 8 * self.n_control_runs * len(self.target)


@dataclass(frozen=True, slots=True)
class CellStats:
    """Notes about the rows ``first`` to ``first + n``.

    Attributes
    ----------
    total
        (n,) float64 sum of each row.
    n_genes
        (n,) int32 number of values that are not zero.
    own
        (n,) float64 expression of the own target; NaN where there is none, and for controls.
    control
        (k,) numbers of the control runs that some of the rows are in.
    sums
        (k, n_perturbations) their sums of every target.
    """

    first: int
    total: NDArray[np.float64]
    n_genes: NDArray[np.int32]
    own: NDArray[np.float64]
    control: NDArray[np.int64]
    sums: NDArray[np.float64]

    @classmethod
    def of(cls, asked: CellStatsPlan, runs: NDArray[np.integer], first: int, block: CSRBlock) -> CellStats:
        """Note the rows of a block.

        Parameters
        ----------
        runs
            (n,) run of each row.
        first
            Number of the block's first row.
        """
        n = block.shape[0]
        total, n_genes, own = np.zeros(n), np.zeros(n, np.int32), np.full(n, np.nan)
        zero = np.int64(0) if block.data.dtype.kind in "iu" else np.float64(0)
        _totals(block.indptr, block.data, zero, total, n_genes)
        here = np.unique(asked.control[runs])
        here = here[here >= 0]
        stratum = np.full(asked.n_control_runs + 1, -1, dtype=np.int64)  # the last is what -1 picks
        stratum[here] = np.arange(len(here))
        slot = np.full(block.n_cols, -1, dtype=np.int64)
        targets = np.flatnonzero(asked.target >= 0)
        slot[asked.target[targets]] = targets
        sums = np.zeros((len(here), len(asked.target)))
        args = (block.indptr, block.indices, block.data, asked.own[runs], stratum[asked.control[runs]], slot)
        target_sums(*args, own, sums)
        return cls(first, total, n_genes, own, here, sums)

    def save(self, path: Path) -> tuple[int, int]:
        """Write to a file; return its size and CRC-32."""
        held = io.BytesIO()
        arrays: dict[str, Any] = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
        np.savez(held, **arrays)
        return write_atomic(path, [held.getbuffer()])

    @classmethod
    def load(cls, path: Path) -> CellStats:
        """Inverse of `save`."""
        with np.load(path, allow_pickle=False) as found:
            arrays: dict[str, Any] = {name: found[name] for name in found.files}
        return cls(**(arrays | {"first": int(arrays["first"])}))


@kernel
def _totals(indptr: Any, data: Any, zero: Any, total: Any, n_genes: Any) -> None:
    for row in range(len(indptr) - 1):
        summed, counted = zero, 0
        values = data[indptr[row] : indptr[row + 1]]
        for k in range(len(values)):
            summed += values[k]
        for k in range(len(values)):
            counted += values[k] != 0
        total[row], n_genes[row] = summed, counted
