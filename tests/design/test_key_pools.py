"""The controls of each level's pools are those that the labels say, in order."""

import numpy as np

from lazypert.design.control_pools import control_pools
from lazypert.design.match_keys import MatchKeys
from tests.support.matching import KEYS, random_keyed_cells
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


def test_controls_are_in_the_order_of_their_pool_at_every_level():
    """So that any interval of a smaller pool is spread over the whole one, as pools that do not fit need."""
    cells = random_keyed_cells(400, 0, n_datasets=2)
    made = control_pools(cells.groups, by_batch=False, match=MatchKeys(cells, KEYS))
    rows = np.asarray(made.controls)
    for n, level in enumerate(made._by_key.levels, start=1):
        labels = cells.frame.loc[rows, ["cell_type", "dataset", *KEYS[:n]]].reset_index(drop=True).dropna()
        expected = [index.tolist() for index in labels.groupby(labels.columns.tolist()).groups.values()]
        pools = np.split(level.index, level.first[1:-1])
        assert all((np.diff(pool) > 0).all() for pool in pools)
        assert sorted(pool.tolist() for pool in pools) == sorted(expected)
