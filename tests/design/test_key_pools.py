"""The controls of each level's pools are those that the labels say, in order."""

import numpy as np

from lazypert.design.control_pools import control_pools
from tests.support.screens import CONTROL, make_cells


def pools():
    cells = make_cells(
        cell_type=["T"] * 40 + ["U"] * 20, perturbation=[CONTROL] * 60, batch=[f"b{i % 3}" for i in range(60)]
    )
    made = control_pools(cells.groups, by_batch=True)
    return cells, made, made._by_key.levels[0]


def test_pools_hold_the_controls_of_each_cell_type_and_batch():
    cells, made, level = pools()
    for parent, cell_type in ((0, "T"), (40, "U")):
        for batch in range(3):
            (number,) = level.find(np.array([parent]), np.array([batch]))
            index = level.index[level.first[number] : level.first[number + 1]]
            assert (np.diff(index) > 0).all()
            rows = made.controls[index]
            assert set(cells.labels("cell_type", rows)) == {cell_type}
            assert set(cells.labels("batch", rows)) == {f"b{batch}"}
    assert sorted(level.index.tolist()) == list(range(60))


def test_labels_without_controls_have_no_pool():
    _, _, level = pools()
    assert level.find(np.array([0, 7, -1]), np.array([-1, 0, 0])).tolist() == [-1, -1, -1]
