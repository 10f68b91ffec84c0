import numpy as np
import pytest

from lazypert.errors import ConfigError
from lazypert.simulate import SimulationTruth
from tests.support.simulations import small


@pytest.mark.parametrize(
    ("options", "targets"),
    [
        ({"n_perturbations": 12}, 12),
        ({"n_perturbations": None, "n_cells": 100_000}, 126),  # 84,000 cells / 190 per guide / 3.5 guides
        ({"n_perturbations": None, "n_cells": 8400, "cells_per_guide": 84}, 24),
        ({"n_perturbations": None, "n_cells": 100}, 1),
    ],
    ids=["given", "default guide size", "guide size", "few cells"],
)
def test_n_targets_follows_from_the_options(options, targets):
    assert small(**({"n_genes": 2000} | options)).n_targets == targets


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"n_cells": 0}, "n_cells"),
        ({"n_cells": 10.5}, "n_cells"),
        ({"n_genes": 1}, "n_genes"),
        ({"n_batches": 0}, "n_batches"),
        ({"seed": -1}, "seed"),
        ({"block_cells": 0}, "block_cells"),
        ({"block_cells": 100}, "block_cells"),
        ({"control_fraction": 1.0}, "control_fraction"),
        ({"control_fraction": float("nan")}, "control_fraction"),
        ({"unassigned_fraction": -0.1}, "unassigned_fraction"),
        ({"control_fraction": 0.6, "unassigned_fraction": 0.4}, "control_fraction"),
        ({"cell_types": ()}, "cell_types"),
        ({"cell_types": "Neuron"}, "cell_types"),
        ({"cell_types": ("a", "a")}, "cell_types"),
        ({"control_pert": "unassigned"}, "control_pert"),
        ({"order": "sorted"}, "order"),
        ({"compression": "lzf"}, "compression"),
        ({"nnz_per_cell": 0}, "nnz_per_cell"),
        ({"nnz_per_cell": 161}, "nnz_per_cell"),
        ({"n_perturbations": 0}, "n_perturbations"),
        ({"n_perturbations": 201}, "n_perturbations"),
        ({"cells_per_guide": 100}, "cells_per_guide"),
        ({"n_perturbations": None, "cells_per_guide": 0}, "cells_per_guide"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_invalid_options_are_refused(options, named):
    with pytest.raises(ConfigError, match=rf"^{named}: got .*, expected "):
        small(**options)


def test_the_truth_has_a_repr_of_one_line():
    truth = SimulationTruth(
        targets=("A",),
        log2_fold_change=np.array([-2.0]),
        n_shifted_genes=np.array([3]),
        perturbations=("A", "non-targeting"),
        cell_types=("Neuron",),
        group_cells=np.array([[1000, 500]]),
        nnz=20_000,
        n_umis=90_000,
    )
    assert repr(truth) == "<SimulationTruth: 1,500 cells, 1 cell types, 1 targets, 20,000 nonzeros, 90,000 reads>"
    assert truth.residual.tolist() == [0.25]
