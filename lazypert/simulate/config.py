"""What to simulate, checked when it is made, and what is true of the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from lazypert._internal.validation import require, require_integer
from lazypert.simulate.parameters import _TYPES, CELLS_PER_GUIDE, GUIDES_PER_TARGET, STREAM_CELLS, UNASSIGNED

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationConfig:
    """What to simulate.

    Parameters
    ----------
    n_cells, n_genes : int
        Size of the matrix.
    n_perturbations : int, optional
        Targets, beside the control and the unassigned cells. By default as many as give
        every guide about `cells_per_guide` cells.
    cell_types : tuple of str
        Labels of the cell types. They come in uneven numbers.
    n_batches : int
        Batches, equally likely: ``"batch1"`` and so on.
    nnz_per_cell : float, optional
        Mean number of genes seen in a cell; the depth is scaled to give it. Default a fifth
        of the genes, as in real screens. At most 0.8 of them.
    cells_per_guide : int, optional
        Decides the number of targets where `n_perturbations` does not. Default 190, as in
        published screens.
    control_fraction, unassigned_fraction : float
        Expected shares of the cells with a non-targeting guide and with no guide call.
    control_pert : str
        Label of the control cells.
    order : {"random", "grouped"}
        Order of the cells: any, as a sequencer gives them, or sorted by (cell_type,
        perturbation).
    compression : {"gzip"}, optional
        Compression of the large arrays.
    seed : int
        Decides the whole screen, together with the options above.
    block_cells : int
        Cells sampled and written at once, a multiple of 128. Decides the memory
        (a few blocks for every thread) and nothing else.

    Raises
    ------
    ConfigError
        If a value is out of range or contradicts another.
    """

    n_cells: int
    n_genes: int = 18_000
    n_perturbations: int | None = None
    cell_types: tuple[str, ...] = _TYPES
    n_batches: int = 2
    nnz_per_cell: float | None = None
    cells_per_guide: int | None = None
    control_fraction: float = 0.11
    unassigned_fraction: float = 0.05
    control_pert: str = "non-targeting"
    order: Literal["random", "grouped"] = "random"
    compression: Literal["gzip"] | None = None
    seed: int = 0
    block_cells: int = 1024

    def __post_init__(self) -> None:
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
        targets, shares = self.n_perturbations, self.control_fraction + self.unassigned_fraction
        lonely = targets is None or self.cells_per_guide is None
        nnz, most = self.nnz_per_cell, 0.8 * self.n_genes
        for name, holds, expected in (
            ("block_cells", self.block_cells % STREAM_CELLS == 0, f"a multiple of {STREAM_CELLS}"),
            ("control_fraction", 0 <= self.control_fraction < 1, "a share in [0, 1)"),
            ("unassigned_fraction", 0 <= self.unassigned_fraction < 1, "a share in [0, 1)"),
            ("control_fraction", shares < 1, "less than 1 - unassigned_fraction: leave cells to perturb"),
            ("cell_types", _distinct_labels(self.cell_types), "a tuple of distinct, non-empty labels"),
            ("control_pert", self.control_pert not in ("", UNASSIGNED), f"a label, not {UNASSIGNED!r}"),
            ("order", self.order in ("random", "grouped"), "'random' or 'grouped'"),
            ("compression", self.compression in (None, "gzip"), "None or 'gzip'"),
            (
                "nnz_per_cell",
                nnz is None or 0 < nnz <= most,
                f"more than 0, and {most:g} (0.8 n_genes) at most",
            ),
            ("n_perturbations", targets is None or targets <= self.n_genes, "no more targets than genes"),
            ("cells_per_guide", lonely, "None beside n_perturbations: each decides the number of targets"),
        ):
            require(holds, name, getattr(self, name), expected)

    @property
    def n_targets(self) -> int:
        """Number of perturbed genes, whichever option decides it (at most half of the genes by default)."""
        if self.n_perturbations is not None:
            return self.n_perturbations
        cells = self.n_cells * (1 - self.control_fraction - self.unassigned_fraction)
        guides = cells / (self.cells_per_guide or CELLS_PER_GUIDE)
        return min(max(1, round(guides / np.mean(GUIDES_PER_TARGET))), self.n_genes // 2)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SimulationTruth:
    """What is true of a simulated screen.

    Parameters
    ----------
    targets : tuple of str
        Perturbed genes, as in ``var["gene_name"]`` and ``obs["perturbation"]``.
    log2_fold_change : ndarray of float64, (target,)
        On-target effect: log2 of the mean in perturbed cells over the mean in controls.
    n_shifted_genes : ndarray of int64, (target,)
        Other genes whose mean the perturbation changes.
    perturbations, cell_types : tuple of str
        Labels, in the order of the file's categories and of `group_cells`.
    group_cells : ndarray of int64, (cell_type, perturbation)
        Cells of every group.
    nnz, n_umis : int
        Stored values and reads (UMIs) of the whole screen.
    """

    targets: tuple[str, ...]
    log2_fold_change: NDArray[np.float64]
    n_shifted_genes: NDArray[np.int64]
    perturbations: tuple[str, ...]
    cell_types: tuple[str, ...]
    group_cells: NDArray[np.int64]
    nnz: int
    n_umis: int

    @property
    def residual(self) -> NDArray[np.float64]:
        """Share of a target's expression that is left in its cells, (target,)."""
        return np.exp2(self.log2_fold_change)


def _distinct_labels(labels: object) -> bool:
    return isinstance(labels, tuple) and 0 < len(set(labels)) == len(labels) and all(labels)
