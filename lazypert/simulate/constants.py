"""Names and constants of simulated screens; each constant is either estimated from published screens or chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# Estimated from the non-targeting THP-1 cells of an ECCITE-seq CRISPR screen (2,304 cells).
DEPTH_LOG_MEAN, DEPTH_LOG_SD = 9.37, 0.54  # natural log of the reads per cell
CP10K_LOG10_MEAN, CP10K_LOG10_SD = -1.04, 0.77  # log10 of mean counts per 10,000, over genes
DENSITY = 0.2  # share of genes detected per cell, unless `nnz_per_cell` is given
# Dispersion alpha of a gene with m reads per cell on average: (CONST + OVER_MEAN / m) * LogNormal(0, LOG_SD).
ALPHA_CONST, ALPHA_OVER_MEAN, ALPHA_LOG_SD = 0.25, 0.1, 0.5
# Knockdown in CRISPRi screens: range of on-target log2 fold changes.
ON_TARGET_LOG2 = (-3.5, -0.3)
# One target in five has a strong phenotype. Ranges are shares of genes that a target shifts.
STRONG_TARGETS, STRONG_SHARE, WEAK_SHARE = 0.2, (0.07, 0.12), (0.0, 0.01)
CELLS_PER_GUIDE, GUIDES_PER_TARGET = 190, (3, 4)
# Chosen, not estimated: spread of the log2 fold changes of shifted genes.
SHIFT_LOG2_SD = 0.75
# Chosen, not estimated: marker genes, batch effects, uneven cell types and guide libraries.
MARKER_SHARE, MARKER_LOG2_SD, BATCH_LOG_SD, TYPE_DIRICHLET, TARGET_LOG_SD = 0.25, 1.0, 0.1, 10.0, 0.3

# Cells that share a stream of random numbers. Changing it changes every simulated screen.
STREAM_CELLS = 128

UNASSIGNED = "unassigned"
CELL_TYPES = ("Astrocyte", "Microglia", "Neuron")


def numbered_names(template: str, numbers: Iterable[int], total: int, *, min_width: int) -> list[str]:
    """Return names such as ``CELL000123-1``, zero-padded so that they sort like their numbers."""
    width = max(min_width, len(str(total - 1)))
    return [template.format(number, width) for number in numbers]
