"""Draws from a pool are uniform and pure functions of the cell; large pools are sampled in rotation."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from lazypert.design.control_pools import control_pools
from tests.support.screens import CONTROL, control_pool, design_cells, make_cells


@pytest.fixture(scope="module")
def design():
    return design_cells()


class TestDraws:
    @pytest.mark.parametrize("strategy", ["random", "batch"])
    def test_are_uniform_over_the_pool(self, design, strategy):
        pools = control_pools(design.groups, by_batch=strategy == "batch")
        row = 17
        run = design.groups.expand(np.arange(len(design.groups.start)))[row]
        drawn = [pools.draw(np.array([row]), np.array([run]), 2, (0, epoch)) for epoch in range(2000)]
        pool = sorted(control_pool(design, row, strategy))
        counts = np.array([np.sum(np.array(drawn) == control) for control in pool])
        assert counts.sum() == 4000  # every draw is in the pool
        assert counts.min() > 0  # every control is reached
        assert stats.chisquare(counts).pvalue > 1e-4

    def test_do_not_depend_on_the_other_cells(self, design):
        groups = design.groups
        pools = control_pools(groups, by_batch=True)
        rows = np.arange(900)
        runs = groups.expand(np.arange(len(groups.start)))
        expected = pools.draw(rows, runs, 3, (1, 2))
        order = np.random.default_rng(0).permutation(900)
        shuffled = pools.draw(rows[order], runs[order], 3, (1, 2))
        steps = [slice(first, first + 70) for first in range(0, 900, 70)]
        few_at_a_time = np.concatenate([pools.draw(rows[step], runs[step], 3, (1, 2)) for step in steps])
        assert (shuffled == expected[order]).all()
        assert (few_at_a_time == expected).all()


class TestRotatingSample:
    """Large pools are sampled in part; the sample rotates, and over time every control is drawn equally often."""

    @pytest.fixture
    def screen(self):
        n = 3000
        cells = make_cells(
            cell_type=["T"] * n + ["U"] * 40,
            perturbation=[CONTROL] * n + ["A"] * 20 + [CONTROL] * 20,
        )
        return SimpleNamespace(cells=cells, pools=control_pools(cells.groups, by_batch=False))

    def draw(self, screen, rotation, *, sample_size, rows=None, n=1, epoch=0):
        rows = np.arange(1000) if rows is None else rows
        groups = screen.cells.groups
        runs = groups.expand(np.arange(len(groups.start)), len(screen.cells.frame))[rows]
        return screen.pools.control_index(rows, runs, n, (5, epoch), sample_size=sample_size, rotation=rotation)

    def test_few_stretches_are_sampled_at_a_time(self, screen):
        for rotation in range(30):
            stretches = np.unique(self.draw(screen, rotation, sample_size=640) // 64)
            assert len(stretches) <= 2 * min(4 + rotation, 640 // 64)

    def test_the_sample_fits_into_the_memory_for_controls(self):
        cells = make_cells(cell_type=["T"] * 3000 + ["U"] * 3000, perturbation=[CONTROL] * 6000)
        screen = SimpleNamespace(cells=cells, pools=control_pools(cells.groups, by_batch=False))
        size, rows = screen.pools.sample_size(1600, 16), np.arange(6000)
        most = max(len(np.unique(self.draw(screen, i, sample_size=size, rows=rows) // 16)) for i in range(60))
        assert 0.5 * 1600 < 16 * most <= 1600

    def test_each_rotation_adds_few_controls(self, screen):
        before = set()
        for rotation in range(40):
            now = set((np.unique(self.draw(screen, rotation, sample_size=640)) // 64).tolist())
            if rotation:
                assert len(now - before) <= 2
            before = now

    def test_every_control_is_drawn_equally_often(self, screen):
        n_rotations = 46 * 20  # 46 stretches fit into the pool
        counts = np.zeros(len(screen.pools.controls))
        for rotation in range(n_rotations):
            np.add.at(counts, self.draw(screen, rotation, sample_size=640, epoch=rotation // 46).ravel(), 1)
        counts = counts[:3000]
        assert counts.min() > 0
        # Neighbours are sampled together, so compare sums over about a stretch.
        sums = counts[: 3000 // 60 * 60].reshape(-1, 60).sum(axis=1)
        assert sums.std() / sums.mean() < 0.12

    def test_small_pools_are_sampled_in_full(self, screen):
        rows = np.arange(3000, 3020)
        assert len(np.unique(self.draw(screen, 0, sample_size=10, rows=rows, n=3))) > 15

    def test_controls_of_a_cell_are_distinct(self, screen):
        drawn = self.draw(screen, 3, sample_size=640, n=20)
        assert all(len(set(controls)) == 20 for controls in drawn.tolist())

    def test_without_a_sample_size_all_controls_are_drawn_from(self, screen):
        rows, groups = np.arange(1000), screen.cells.groups
        runs = groups.expand(np.arange(len(groups.start)), 3040)[rows]
        index = screen.pools.control_index(rows, runs, 2, (9,))
        np.testing.assert_array_equal(screen.pools.controls[index], screen.pools.draw(rows, runs, 2, (9,)))


def test_repr_counts_controls_and_pools(design):
    assert repr(control_pools(design.groups, by_batch=False)) == "ControlPools(150 controls in 3 pools)"
    assert repr(control_pools(design.groups, by_batch=True)) == "ControlPools(150 controls in 6 pools)"
