"""What simulated screens share: numbers, estimated from published screens or chosen, and names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# Estimated from the non-targeting THP-1 cells of an ECCITE-seq CRISPR screen (2,304 cells).
DEPTH_LOG_MEAN, DEPTH_LOG_SD = 9.37, 0.54  # natural log of the reads of a cell
CP10K_LOG10_MEAN, CP10K_LOG10_SD = -1.04, 0.77  # log10 of a gene's mean counts per 10,000
DENSITY = 0.2  # share of the genes that a cell shows, when `nnz_per_cell` is left open
# Dispersion alpha of a gene of m reads a cell: (CONST + OVER_MEAN / m) * LogNormal(0, LOG_SD).
ALPHA_CONST, ALPHA_OVER_MEAN, ALPHA_LOG_SD = 0.25, 0.1, 0.5
# Knockdown in CRISPRi screens: range of the on-target log2 fold changes.
ON_TARGET_LOG2 = (-3.5, -0.3)
# One target in five has a strong phenotype. The shares are of genes that it shifts.
STRONG_TARGETS, STRONG_SHARE, WEAK_SHARE = 0.2, (0.07, 0.12), (0.0, 0.01)
CELLS_PER_GUIDE, GUIDES_PER_TARGET = 190, (3, 4)
# Chosen, not estimated: the spread of the log2 fold changes of the genes that a target shifts.
SHIFT_LOG2_SD = 0.75
# Chosen, not estimated: markers of a cell type, batch effects, uneven types and guide libraries.
MARKER_SHARE, MARKER_LOG2_SD, BATCH_LOG_SD, TYPE_DIRICHLET, TARGET_LOG_SD = 0.25, 1.0, 0.1, 10.0, 0.3

# Cells that share one random stream. Part of the meaning of a seed: changing it changes every screen.
STREAM_CELLS = 128

UNASSIGNED = "unassigned"
_TYPES = ("Astrocyte", "Microglia", "Neuron")


def _numbered(template: str, numbers: Iterable[int], total: int, *, least_width: int) -> list[str]:
    """Names such as ``CELL000123-1``, padded so that they sort like their numbers."""
    width = max(least_width, len(str(total - 1)))
    return [template.format(number, width) for number in numbers]
