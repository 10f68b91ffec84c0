"""Check that batches contain the cells that they should, identified by fingerprints.

A cell's fingerprint is the sum of its counts, each multiplied by a random weight of its gene. The rivals'
processes compute the fingerprints of their last batch, and this module looks them up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np

from benchmarks.loaders.base import CELL_TYPE, CONTROL, GROUPS, HVG, PERTURBATION, Genes
from benchmarks.screens import row_blocks

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Fingerprints and groups of the cells of a screen.

    Attributes
    ----------
    number
        By form, the number of the cell with a fingerprint; -1 if several cells share it, because they may have
        equal counts of the few highly variable genes.
    group, cell_type
        (n_cells,) numbers of the group and of the cell type.
    is_control
        (n_cells,) whether the cell is a control.
    """

    number: dict[str, dict[int, int]]
    group: NDArray[np.int64]
    cell_type: NDArray[np.int64]
    is_control: NDArray[np.bool_]

    @classmethod
    def of(cls, path: Path, genes: Genes) -> Cells:
        """Read the entire screen once."""
        with h5py.File(path) as file:
            obs = anndata.io.read_elem(file["obs"])
            weights = np.stack([genes.weights, np.where(genes.hvg, genes.weights, 0)], axis=1)
            sums = np.concatenate([rows.astype(np.int64) @ weights for _, rows in row_blocks(file["X"])])
        all_genes, hvg = (_numbers(column) for column in sums.T)
        return cls(
            {"csr": all_genes, "dense": all_genes, "hvg": hvg},
            obs.groupby(list(GROUPS), observed=True).ngroup().to_numpy(),
            obs[CELL_TYPE].cat.codes.to_numpy().astype(np.int64),
            (obs[PERTURBATION] == CONTROL).to_numpy(),
        )


def genes_of(path: Path) -> Genes:
    """Genes of a screen, with weights that make it very unlikely that two cells have the same sum by chance."""
    with h5py.File(path) as file:
        var = anndata.io.read_elem(file["var"])
    weights = np.random.default_rng(0).integers(1, 2**20, len(var))
    return Genes(var.index.tolist(), var[HVG].to_numpy(), weights)


def problems(run: dict[str, Any], cells: Cells, *, form: str, controls: bool, sentence_size: int | None) -> list[str]:
    """Describe what is wrong with the last batch of a run.

    Parameters
    ----------
    run
        Holds ``rows`` and ``control_rows``, the fingerprints of its last batch.
    sentence_size
        Number of consecutive rows that must belong to one group; None if they need not.
    """
    known = cells.number[form]
    unknown = sum(value not in known for value in (*run["rows"], *run["control_rows"]))
    if unknown:
        return [f"{unknown} of {len(run['rows']) + len(run['control_rows'])} rows are not cells of the screen"]
    cell, control = (np.array([known[value] for value in run[key]], np.int64) for key in ("rows", "control_rows"))
    wrong = []
    if sentence_size is not None:
        sentences = [cell[i : i + sentence_size] for i in range(0, len(cell), sentence_size)]
        if mixed := sum(len(np.unique(cells.group[one[one >= 0]])) > 1 for one in sentences):
            wrong.append(f"{mixed} of {len(sentences)} sentences contain cells of several groups")
    if not controls:
        return wrong
    if len(control) != len(cell):
        return [*wrong, f"{len(cell)} cells have {len(control)} controls"]
    is_identified = control >= 0
    if not_controls := int((~cells.is_control[control[is_identified]]).sum()):
        wrong.append(f"{not_controls} of {len(control)} controls are not controls")
    is_identified &= cell >= 0
    if mismatched := int((cells.cell_type[control[is_identified]] != cells.cell_type[cell[is_identified]]).sum()):
        wrong.append(f"{mismatched} of {len(control)} controls have a different cell type")
    return wrong


def _numbers(sums: NDArray[np.int64]) -> dict[int, int]:
    values, first, times = np.unique(sums, return_index=True, return_counts=True)
    return dict(zip(values.tolist(), np.where(times == 1, first, -1).tolist(), strict=True))
