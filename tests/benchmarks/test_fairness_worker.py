"""Batches in cell-load's form are counted as lazypert's are."""

import numpy as np
import pytest

from benchmarks._fairness_worker import statistics
from benchmarks.fairness_statistics import Cells, NullTally

LABELS = ["non-targeting", "A", "B"]


def batches_of(rng, n_cells=64, size=16):
    """Batches in which each cell comes once, and what they hold."""
    label, batch = rng.integers(0, 3, n_cells), rng.integers(0, 2, n_cells)
    control = rng.integers(0, 30, n_cells)
    counts, controls = rng.poisson(3, (n_cells, 4)).astype("f4"), rng.poisson(3, (n_cells, 4)).astype("f4")
    for start in range(0, n_cells, size):
        rows = np.arange(start, start + size)
        yield {
            "pert_cell_emb": counts[rows],
            "ctrl_cell_emb": controls[rows],
            "pert_name": [LABELS[code] for code in label[rows]],
            "batch_name": [f"b{code}" for code in batch[rows]],
            "pert_cell_barcode": [f"cell{row}" for row in rows],
            "ctrl_cell_barcode": [f"control{number}" for number in control[rows]],
        }


def measured(batches):
    options = {"n_batches": 2, "n_controls": 30, "sentence_size": 8, "by_batch": False}
    return statistics(batches, perturbations=LABELS, **options)


def test_agrees_with_the_tally():
    given = list(batches_of(np.random.default_rng(0)))
    tally = NullTally(n_perturbations=3, n_batches=2, n_genes=4, sentence_size=8, by_batch=False)
    for batch in given:
        tally.add(
            Cells(
                counts=batch["pert_cell_emb"],
                controls=batch["ctrl_cell_emb"][:, None],
                control_id=np.array([[int(name[7:])] for name in batch["ctrl_cell_barcode"]]),
                perturbation=np.array([LABELS.index(name) for name in batch["pert_name"]]),
                batch=np.array([int(name[1:]) for name in batch["batch_name"]]),
                dataset=np.zeros(16, int),
                is_padding=np.zeros(16, bool),
            )
        )
    expected, found = tally.statistics(control=0, n_controls=30), measured(given)
    np.testing.assert_allclose(found.z, expected.z)
    assert found.summary() == pytest.approx(expected.summary())


def test_repeated_cells_count_once():
    given = list(batches_of(np.random.default_rng(1)))
    expected = measured(given)
    repeated = {name: values[:8] for name, values in given[0].items()}
    again = {name: np.concatenate([values, values]) for name, values in given[-1].items()}  # within one batch
    found = measured([*given[:-1], again, repeated])
    np.testing.assert_allclose(found.z, expected.z)
    assert found.n_served == expected.n_served


def test_an_empty_epoch_is_an_error():
    with pytest.raises(RuntimeError, match="no batches"):
        measured([])
