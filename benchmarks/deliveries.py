"""Whether a loader delivered what it is said to: cells are told by their fingerprints.

A cell's fingerprint is the sum of its counts, each times a random weight of its gene. The rivals'
processes compute those of their last batch; here they are looked up.
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
    """What is known of each cell of a screen.

    Attributes
    ----------
    number
        By form, the number of the cell with a fingerprint; -1 where several cells have it, as a few
        genes may be the same in several.
    group, cell_type
        (n_cells,) numbers of the class and of the cell type.
    is_control
        (n_cells,) whether it is a control.
    """

    number: dict[str, dict[int, int]]
    group: NDArray[np.int64]
    cell_type: NDArray[np.int64]
    is_control: NDArray[np.bool_]

    @classmethod
    def of(cls, path: Path, genes: Genes) -> Cells:
        """Read the whole screen once."""
        with h5py.File(path) as file:
            obs = anndata.io.read_elem(file["obs"])
            weights = np.stack([genes.weights, np.where(genes.hvg, genes.weights, 0)], axis=1)
            sums = np.concatenate([rows.astype(np.int64) @ weights for _, rows in row_blocks(file["X"])])
        whole, hvg = (_numbers(column) for column in sums.T)
        return cls(
            {"csr": whole, "dense": whole, "hvg": hvg},
            obs.groupby(list(GROUPS), observed=True).ngroup().to_numpy(),
            obs[CELL_TYPE].cat.codes.to_numpy().astype(np.int64),
            (obs[PERTURBATION] == CONTROL).to_numpy(),
        )


def genes_of(path: Path) -> Genes:
    """Genes of a screen, with weights that no two cells will give the same sum by chance."""
    with h5py.File(path) as file:
        var = anndata.io.read_elem(file["var"])
    weights = np.random.default_rng(0).integers(1, 2**20, len(var))
    return Genes(var.index.tolist(), var[HVG].to_numpy(), weights)


def complaints(run: dict[str, Any], cells: Cells, *, form: str, controls: bool, sentence_size: int | None) -> list[str]:
    """What is wrong with a run's last batch, in words.

    Parameters
    ----------
    run
        With its ``rows`` and ``control_rows``.
    sentence_size
        So many rows that stand together must be of one class; None where they need not.
    """
    known = cells.number[form]
    strange = sum(value not in known for value in (*run["rows"], *run["control_rows"]))
    if strange:
        return [f"{strange} of {len(run['rows']) + len(run['control_rows'])} rows are no cells of the screen"]
    found, matched = (np.array([known[value] for value in run[key]], np.int64) for key in ("rows", "control_rows"))
    wrong = []
    if sentence_size is not None:
        sentences = [found[at : at + sentence_size] for at in range(0, len(found), sentence_size)]
        if mixed := sum(len(np.unique(cells.group[told[told >= 0]])) > 1 for told in sentences):
            wrong.append(f"{mixed} of {len(sentences)} sentences hold cells of several classes")
    if not controls:
        return wrong
    if len(matched) != len(found):
        return [*wrong, f"{len(found)} cells come with {len(matched)} controls"]
    told = matched >= 0
    if others := int((~cells.is_control[matched[told]]).sum()):
        wrong.append(f"{others} of {len(matched)} controls are no controls")
    told &= found >= 0
    if apart := int((cells.cell_type[matched[told]] != cells.cell_type[found[told]]).sum()):
        wrong.append(f"{apart} of {len(matched)} controls are of another cell type")
    return wrong


def _numbers(sums: NDArray[np.int64]) -> dict[int, int]:
    values, first, times = np.unique(sums, return_index=True, return_counts=True)
    return dict(zip(values.tolist(), np.where(times == 1, first, -1).tolist(), strict=True))
