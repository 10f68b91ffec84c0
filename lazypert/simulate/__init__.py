"""Made-up perturbation screens with known truth, written as H5AD in bounded memory.

`reference_screen` writes the small screen that the examples and the tests use. `simulate_screen`
writes realistic screens of any size: depth, expression, overdispersion and knockdown follow
distributions estimated from the non-targeting cells of published CRISPRi screens.

The model of `simulate_screen`. The reads of gene g in cell c are negative binomial with mean
``m = depth_c * profile_tg * batch_bg * fold_pg`` and variance ``m + alpha_g * m**2``, for the cell's
type t, batch b and perturbation p. They are drawn exactly, as the compound Poisson that a negative
binomial is: ``Poisson(log(1 + alpha m) / alpha)`` clusters of log-series many reads each. The clusters
are the arrivals of one Poisson process that runs along the genes, so a cell costs a logarithm
for every gene and a few draws for every cluster, not a gamma and a Poisson draw for every gene, and
its row comes out sorted.

What is approximate: genes are independent given a cell's labels and depth (no regulatory programmes,
doublets or ambient reads), every guide of a target works equally well, and a target's effects are the
same in every cell type.
"""

from lazypert.simulate.config import SimulationConfig, SimulationTruth
from lazypert.simulate.screens import reference_screen, simulate_screen

__all__ = ["SimulationConfig", "SimulationTruth", "reference_screen", "simulate_screen"]
