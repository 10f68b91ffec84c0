"""Configs of small simulated screens."""

from lazypert.simulate import SimulationConfig


def small(**options):
    """Return the config of a screen of about 25 groups that is sampled in a fraction of a second."""
    return SimulationConfig(
        **({"n_cells": 900, "n_genes": 200, "n_perturbations": 4, "seed": 7, "block_cells": 256} | options)
    )
