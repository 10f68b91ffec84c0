"""Options of a simulation, and the ground truth of the simulated screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from lazypert._internal.config import Config
from lazypert._internal.validation import require, require_choice, require_integer
from lazypert.simulate.constants import CELL_TYPES, CELLS_PER_GUIDE, GUIDES_PER_TARGET, STREAM_CELLS, UNASSIGNED

if TYPE_CHECKING:
    from numpy.typing import NDArray


Order = Literal["random", "grouped"]
Compression = Literal["gzip"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationConfig(Config):
    """Options of `simulate_screen`.

    Parameters
    ----------
    n_cells, n_genes : int
        Size of the matrix.
    n_perturbations : int, optional
        Number of targets, not counting control and unassigned cells. Default: as many as give
        each guide about `cells_per_guide` cells.
    cell_types : tuple of str
        Labels of the cell types, whose shares differ.
    n_batches : int
        Number of batches, which are equally likely and named ``"batch1"``, ``"batch2"`` and so on.
    nnz_per_cell : float, optional
        Mean number of genes detected per cell, which determines the sequencing depth. Default: a fifth
        of the genes, as in real screens. At most 0.8 of them.
    cells_per_guide : int, optional
        Cells per guide, which determines the number of targets unless `n_perturbations` is given.
        Default: 190, as in published screens.
    control_fraction, unassigned_fraction : float
        Expected shares of cells with a non-targeting guide, and of cells without a guide call.
    control_pert : str
        Label of the control cells.
    order : {"random", "grouped"}
        Order of the cells: random, as from a sequencer, or sorted by (cell_type, perturbation).
    compression : {"gzip"}, optional
        Compression of the large arrays.
    seed : int
        Seed; together with the options above it determines the screen.
    block_cells : int
        Cells sampled and written at once, a multiple of 128. Affects only memory use, which is
        a few blocks per thread.

    Raises
    ------
    ConfigError
        If a value is out of range or contradicts another one.
    """

    n_cells: int
    n_genes: int = 18_000
    n_perturbations: int | None = None
    cell_types: tuple[str, ...] = CELL_TYPES
    n_batches: int = 2
    nnz_per_cell: float | None = None
    cells_per_guide: int | None = None
    control_fraction: float = 0.11
    unassigned_fraction: float = 0.05
    control_pert: str = "non-targeting"
    order: Order = "random"
    compression: Compression = None
    seed: int = 0
    block_cells: int = 1024

    def __post_init__(self) -> None:
        require_choice("order", self.order, Order)
        require_choice("compression", self.compression, Compression)
        for name, least in (
            ("n_cells", 1),
            ("n_genes", 2),
            ("n_batches", 1),
            ("seed", 0),
            ("block_cells", 1),
        ):
            require_integer(name, getattr(self, name), least)
        for name in ("n_perturbations", "cells_per_guide"):
            if getattr(self, name) is not None:
                require_integer(name, getattr(self, name), 1)
        n_targets, unperturbed = self.n_perturbations, self.control_fraction + self.unassigned_fraction
        is_unambiguous = n_targets is None or self.cells_per_guide is None
        nnz, most = self.nnz_per_cell, 0.8 * self.n_genes
        for name, holds, expected in (
            ("block_cells", self.block_cells % STREAM_CELLS == 0, f"a multiple of {STREAM_CELLS}"),
            ("control_fraction", 0 <= self.control_fraction < 1, "a share in [0, 1)"),
            ("unassigned_fraction", 0 <= self.unassigned_fraction < 1, "a share in [0, 1)"),
            ("control_fraction", unperturbed < 1, "less than 1 - unassigned_fraction, so that perturbed cells remain"),
            ("cell_types", _are_distinct_labels(self.cell_types), "a tuple of distinct, non-empty labels"),
            ("control_pert", self.control_pert not in ("", UNASSIGNED), f"a label, not {UNASSIGNED!r}"),
            (
                "nnz_per_cell",
                nnz is None or 0 < nnz <= most,
                f"more than 0 and at most {most:g} (0.8 n_genes)",
            ),
            ("n_perturbations", n_targets is None or n_targets <= self.n_genes, "at most n_genes targets"),
            ("cells_per_guide", is_unambiguous, "None if n_perturbations is given: both set the number of targets"),
        ):
            require(holds, name, getattr(self, name), expected)

    @property
    def n_targets(self) -> int:
        """Number of perturbed genes; by default at most half of the genes."""
        if self.n_perturbations is not None:
            return self.n_perturbations
        cells = self.n_cells * (1 - self.control_fraction - self.unassigned_fraction)
        guides = cells / (self.cells_per_guide or CELLS_PER_GUIDE)
        return min(max(1, round(guides / np.mean(GUIDES_PER_TARGET))), self.n_genes // 2)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class SimulationTruth:
    """Ground truth of a simulated screen.

    Parameters
    ----------
    targets : tuple of str
        Perturbed genes, as in ``var["gene_name"]`` and ``obs["perturbation"]``.
    log2_fold_change : ndarray of float64, (target,)
        On-target effect: log2 ratio of the mean in perturbed cells to the mean in controls.
    n_shifted_genes : ndarray of int64, (target,)
        Number of other genes whose mean the perturbation changes.
    perturbations, cell_types : tuple of str
        Labels, in the order of the categories in the file and of the axes of `group_cells`.
    group_cells : ndarray of int64, (cell_type, perturbation)
        Number of cells per group.
    nnz, n_umis : int
        Numbers of stored values and of reads (UMIs) in the screen.
    """

    targets: tuple[str, ...]
    log2_fold_change: NDArray[np.float64]
    n_shifted_genes: NDArray[np.int64]
    perturbations: tuple[str, ...]
    cell_types: tuple[str, ...]
    group_cells: NDArray[np.int64]
    nnz: int
    n_umis: int

    def __repr__(self) -> str:
        return (
            f"<SimulationTruth: {int(self.group_cells.sum()):,} cells, {len(self.cell_types)} cell types, "
            f"{len(self.targets):,} targets, {self.nnz:,} nonzeros, {self.n_umis:,} reads>"
        )

    @property
    def residual(self) -> NDArray[np.float64]:
        """Residual expression of each target in its perturbed cells, as a share of that in controls, (target,)."""
        return np.exp2(self.log2_fold_change)


def _are_distinct_labels(labels: object) -> bool:
    return isinstance(labels, tuple) and 0 < len(set(labels)) == len(labels) and all(labels)
