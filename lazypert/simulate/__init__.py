"""Simulated perturbation screens with known ground truth, written as H5AD in bounded memory.

`reference_screen` writes the small screen that the examples and tests use. `simulate_screen` writes
realistic screens of any size: depth, expression, overdispersion and knockdown follow distributions
estimated from the non-targeting cells of published CRISPRi screens. `null_screen` writes screens with batch
effects and no effect of any perturbation.

Model of `simulate_screen`: the reads of gene g in cell c are negative binomial with mean
``m = depth_c * profile_tg * batch_bg * fold_pg`` and variance ``m + alpha_g * m**2``, where t, b and p are
the cell's type, batch and perturbation. They are drawn exactly, because a negative binomial is a compound
Poisson distribution: ``Poisson(log(1 + alpha m) / alpha)`` clusters, each with a log-series number of
reads. The clusters are the arrivals of one Poisson process that runs along the genes. A cell therefore
costs one logarithm per gene and a few draws per cluster, rather than a gamma and a Poisson draw per gene,
and its row is sorted.

Simplifications: given a cell's labels and depth, genes are independent (no regulatory programmes,
doublets or ambient reads); all guides of a target are equally effective; and a target has the same
effects in all cell types.
"""

from lazypert.simulate.config import SimulationConfig, SimulationTruth
from lazypert.simulate.null_screen import NullScreenConfig, null_screen
from lazypert.simulate.screens import reference_screen, simulate_screen

__all__ = [
    "SimulationConfig",
    "SimulationTruth",
    "reference_screen",
    "simulate_screen",
    "NullScreenConfig",
    "null_screen",
]
