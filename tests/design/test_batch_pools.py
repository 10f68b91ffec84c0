"""The controls of a pool and batch are those that the labels say, in order."""

import numpy as np

from lazypert.design.control_pools import control_pools
from tests.support.screens import CONTROL, make_cells


def pools():
    cells = make_cells(
        cell_type=["T"] * 40 + ["U"] * 20, perturbation=[CONTROL] * 60, batch=[f"b{i % 3}" for i in range(60)]
    )
    made = control_pools(cells.groups, by_batch=True)
    return cells, made, made._batches


def test_slices_hold_the_controls_of_each_pool_and_batch():
    cells, made, batches = pools()
    for pool, cell_type in ((0, "T"), (40, "U")):
        for batch in range(3):
            (low,), (high,) = batches.slice(np.array([pool]), np.array([batch]))
            index = batches.index[low:high]
            assert (np.diff(index) > 0).all()
            rows = made.controls[index]
            assert set(cells.labels("cell_type", rows)) == {cell_type}
            assert set(cells.labels("batch", rows)) == {f"b{batch}"}
    assert sorted(batches.index.tolist()) == list(range(60))


def test_batches_without_controls_have_empty_slices():
    _, _, batches = pools()
    low, high = batches.slice(np.array([0, 7]), np.array([-1, 0]))
    assert (low == high).all()
