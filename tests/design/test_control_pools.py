"""Draws from a pool are uniform and pure functions of the cell; every control of a pool serves equally often."""

import numpy as np
import pytest
from scipy import stats

from lazypert import PerturbationSamplerConfig, RandomSplitter
from lazypert._internal.inverse_permutation import inverse
from lazypert.design.control_draws import DrawnCells, Reach
from lazypert.design.control_pools import control_pools
from lazypert.design.match_keys import MatchKeys
from lazypert.design.sentence_plan import SentencePlan
from lazypert.screen.roles import Roles
from tests.support.screens import CONTROL, control_pool, design_cells, make_cells, random_cells


@pytest.fixture(scope="module")
def design():
    return design_cells()


def drawn_cells(cells, rows, **options):
    groups, rows = cells.groups, np.asarray(rows)
    position = rows if groups.row_order is None else inverse(groups.row_order)[rows]
    return DrawnCells(position, rows, groups.run_of(position), **options)


def draw(pools, cells, rows, n, words, reach=None, **options):
    """(m, n) store rows of controls."""
    return pools.controls[pools.control_index(drawn_cells(cells, rows, **options), n, words, reach)]


def uniformity(values, pool):
    """p-value of the hypothesis that all of a pool are drawn equally often."""
    counts = np.array([np.sum(np.asarray(values) == control) for control in sorted(pool)])
    assert counts.sum() == np.size(values)  # every draw is in the pool
    return stats.chisquare(counts).pvalue


class TestDraws:
    @pytest.mark.parametrize("strategy", ["random", "batch"])
    def test_are_uniform_over_the_pool_in_every_slot(self, design, strategy):
        pools = control_pools(design.groups, by_batch=strategy == "batch")
        drawn = np.array([draw(pools, design, [17], 3, (0, epoch))[0] for epoch in range(1500)])
        pool = control_pool(design, 17, strategy)
        for slot in range(3):
            assert uniformity(drawn[:, slot], pool) > 1e-4
        assert all(len(set(row)) == 3 for row in drawn.tolist())

    @pytest.mark.parametrize("strategy", ["random", "batch"])
    def test_are_from_the_pool_of_each_cell(self, strategy):
        cells = random_cells(300, 1, n_datasets=2, missing=0.05)
        rows = np.flatnonzero(cells.groups.expand(cells.groups.ids) >= 0)
        pools = control_pools(cells.groups, by_batch=strategy == "batch")
        for row, drawn in zip(rows, draw(pools, cells, rows, 4, (1, 2)), strict=True):
            pool = control_pool(cells, row, strategy)
            assert set(drawn.tolist()) <= pool
            assert len(set(drawn.tolist())) == min(4, len(pool)) or len(pool) < 4

    def test_do_not_depend_on_the_other_cells(self, design):
        pools = control_pools(design.groups, by_batch=True)
        expected = draw(pools, design, np.arange(900), 3, (1, 2))
        order = np.random.default_rng(0).permutation(900)
        assert (draw(pools, design, order, 3, (1, 2)) == expected[order]).all()
        steps = [np.arange(first, min(900, first + 70)) for first in range(0, 900, 70)]
        assert (np.concatenate([draw(pools, design, step, 3, (1, 2)) for step in steps]) == expected).all()

    def test_differ_between_the_occurrences_of_a_cell(self, design):
        pools = control_pools(design.groups, by_batch=False)
        rows = np.arange(900)
        first, second = (draw(pools, design, rows, 1, (1, 2), draw=np.full(900, number)) for number in (0, 1))
        assert 0 < np.mean(first == second) < 0.06  # pools have 50 controls

    def test_are_independent_between_cells(self, design):
        """The mean of a value over the controls of many cells varies as that of independent draws."""
        pools, value = control_pools(design.groups, by_batch=False), np.random.default_rng(0).normal(size=900)
        rows = np.flatnonzero(design.frame["cell_type"] == "Neuron")
        means = [value[draw(pools, design, rows, 1, (3, epoch))].mean() for epoch in range(400)]
        pool = sorted(control_pool(design, rows[0], "random"))
        assert 0.75 < np.var(means) / (value[pool].var() / len(rows)) < 1.3


N = 4000  # controls of the large pool


@pytest.fixture(scope="module")
def cells():
    return make_cells(
        cell_type=["T"] * (N + 500) + ["U"] * 40,
        perturbation=[CONTROL] * N + ["A"] * 500 + ["A"] * 20 + [CONTROL] * 20,
        batch=[f"b{i % 5}" for i in range(N + 540)],
    )


@pytest.fixture(scope="module", params=[False, True], ids=["random", "batch"])
def pools(cells, request):
    return control_pools(cells.groups, by_batch=request.param)


class TestReach:
    """Of a pool that does not fit into memory, a part is within reach, which moves through it."""

    def test_is_needed_only_if_the_controls_do_not_fit(self, pools):
        assert pools.reach(N + 20, 1000) is None
        assert pools.reach(N, 10**6) == Reach(N - 20, 1.0)

    def test_is_shared_by_the_large_pools(self):
        cells = make_cells(cell_type=["T"] * 300 + ["U"] * 600 + ["V"] * 20, perturbation=[CONTROL] * 920)
        pools = control_pools(cells.groups, by_batch=False)
        assert pools.reach(500, 10**6) == Reach(240, 1.0)
        assert pools.reach(700, 10**6) == Reach(380, 1.0)

    def test_reads_at_most_a_control_for_every_four_cells(self, pools):
        assert pools.reach(500, 4000).turns == pytest.approx(1000 / N)

    def test_is_about_an_interval_of_the_pool(self, cells, pools):
        rows = np.arange(N, N + 500)
        for phase in (0.0, 0.3, 0.9):
            drawn = drawn_cells(cells, rows, phase=phase)
            index = np.unique(pools.control_index(drawn, 4, (1, 2), Reach(600, 1.0)))
            gap = np.diff(np.append(index, index[0] + N)).max()
            assert N - gap < (1000 if pools.by_batch else 600)

    def test_every_control_serves_equally_often(self, cells, pools):
        rows = np.repeat(np.arange(N, N + 500), 200)
        phase = np.tile(np.arange(200) / 200, 500)
        drawn = draw(pools, cells, rows, 1, (1, 2), Reach(600, 1.0), phase=phase, draw=np.tile(np.arange(200), 500))
        counts = np.bincount(drawn.ravel(), minlength=N)[:N]
        assert (counts > 0).all()
        # 25 draws of each: Poisson, and a little more because few draws fall into each step of the reach.
        assert 0.7 < counts.var() / counts.mean() < 1.5

    def test_no_control_of_a_batch_is_favoured(self):
        n, n_epochs = 2000, 40
        cells = make_cells(perturbation=[CONTROL] * n + ["A"] * 400, batch=[f"b{i % 20}" for i in range(n + 400)])
        pools, counts = control_pools(cells.groups, by_batch=True), np.zeros(n)
        rows, phase = np.repeat(np.arange(n, n + 400), 25), np.random.default_rng(0).random(10_000)
        for epoch in range(n_epochs):
            options = {"phase": phase, "draw": np.tile(np.arange(25), 400)}
            drawn = draw(pools, cells, rows, 1, (1, epoch), Reach(200, 1.0), **options)
            counts += np.bincount(drawn.ravel(), minlength=n + 400)[:n]
        assert counts.sum() == 400_000
        assert counts.min() / 200 > 0.65  # Poisson: a standard deviation of 0.07, and 2,000 controls
        assert counts.max() / 200 < 1.35

    def test_evaluation_goes_round_each_pool(self):
        n_types, n = 4, 500
        labels = np.repeat([f"T{i}" for i in range(n_types)], 2 * n)
        perturbation = np.tile(np.repeat([CONTROL, "A"], n), n_types)
        cells = make_cells(cell_type=labels, perturbation=perturbation)
        rows = cells.groups.rows(~cells.groups.is_control)
        plan = SentencePlan.from_rows(PerturbationSamplerConfig(sentence_size=10), cells.groups, rows, shuffle=False)
        epoch, pools, seen = plan.epoch(0), control_pools(cells.groups, by_batch=False), set()
        for number in range(epoch.n_blocks):
            sentences = epoch.block(number)
            phase = np.repeat(sentences.phase, 10)
            index = rows[sentences.cells.ravel()]
            seen |= set(draw(pools, cells, index, 8, (1, 2), Reach(50, 1.0), phase=phase).ravel().tolist())
        assert len(seen) > 0.99 * n_types * n

    @pytest.mark.parametrize("match", [None, ("cell_type", "time"), ("cell_type", "plate")], ids=str)
    def test_has_all_kinds_of_controls_at_any_time(self, match):
        """Cells that come close together are not all matched with controls of one label or one condition."""
        n = 3000
        perturbation = ["NT-1"] * n + ["NT-2"] * (n // 2) + ["A"] * 400
        roles = Roles(pert_col="perturbation", cell_type_col="cell_type", control_pert="NT*", covariates=("time",))
        rng = np.random.default_rng(0)
        obs = {"time": rng.choice([6, 24], len(perturbation)), "plate": rng.choice(list("pqr"), len(perturbation))}
        cells = make_cells(roles=roles, perturbation=perturbation, cell_type=["T"] * len(perturbation), obs=obs)
        keys = None if match is None else MatchKeys(cells, match)
        pools = control_pools(cells.groups, by_batch=False, match=keys)
        rows = np.arange(len(perturbation) - 400, len(perturbation))
        for phase in (0.0, 0.3, 0.6, 0.9):
            index = draw(pools, cells, rows, 4, (1, 2), Reach(450, 1.0), phase=phase).ravel()
            assert abs(np.mean(cells.labels("perturbation", index) == "NT-1") - 2 / 3) < 0.06
            own_time = cells.frame["time"].to_numpy()[np.repeat(rows, 4)]
            time = cells.frame["time"].to_numpy()[index]
            if match is None or "time" not in match:
                assert abs(np.mean(time == 24) - 1 / 2) < 0.06
            else:
                assert (time == own_time).all()
            n_seen = len(np.unique(index))
            assert n_seen < 500 * (1 if match is None else 1.1)  # controls within reach

    def test_has_as_many_controls_as_a_cell_gets(self, pools):
        assert pools.reach(4, 10**6, 8).n_controls == 8

    def test_small_pools_are_always_within_reach(self, cells, pools):
        rows = np.arange(N + 500, N + 520)
        drawn = draw(pools, cells, rows, 1, (1, 2), Reach(600, 1.0), phase=0.5)
        everything = draw(pools, cells, rows, 1, (1, 2))
        assert (drawn == everything).all()


class TestFixedPairs:
    @pytest.mark.parametrize("by_batch", [False, True], ids=["random", "batch"])
    @pytest.mark.parametrize("n", [1, 3])
    def test_use_each_control_once_before_any_is_used_again(self, by_batch, n):
        cells = make_cells(
            perturbation=[CONTROL] * 120 + ["A"] * 70 + ["B"] * 60, batch=[f"b{i % 2}" for i in range(250)]
        )
        pools = control_pools(cells.groups, by_batch=by_batch)
        perturbed = cells.groups.rows(~cells.groups.is_control)
        positions = perturbed.positions(np.arange(len(perturbed)))
        drawn = pools.fixed_controls(positions, n, 7)
        assert all(len(set(row)) == n for row in drawn.tolist())
        counts = np.bincount(drawn.ravel(), minlength=250)[:120]
        assert counts.sum() == 130 * n
        assert counts.max() - counts.min() <= (1 if n == 1 else 2)
        rows = perturbed.to_rows(positions)
        for row, controls in zip(rows, drawn.tolist(), strict=True):
            assert set(controls) <= control_pool(cells, row, "batch" if by_batch else "random")

    def test_do_not_count_cells_without_a_pool(self):
        cells = make_cells(
            cell_type=["S"] * 50 + ["T"] * 200, perturbation=["A"] * 150 + [CONTROL] * 100, batch=["b"] * 250
        )
        for by_batch in (False, True):
            pools = control_pools(cells.groups, by_batch=by_batch)
            perturbed = cells.groups.rows(~cells.groups.is_control)
            positions = perturbed.positions(np.arange(150))
            of_t = cells.labels("cell_type", perturbed.to_rows(positions)) == "T"
            assert len(set(pools.fixed_controls(positions[of_t], 1, 0).ravel().tolist())) == 100

    def test_stay_the_same_for_any_selection_of_cells(self, design):
        splits = RandomSplitter().split(design)
        pools = control_pools(design.groups, by_batch=False, splits=splits, name="train")
        positions = splits.train_indices.positions(np.arange(720))
        expected = pools.fixed_controls(positions, 2, 3)
        assert (pools.fixed_controls(positions[::7], 2, 3) == expected[::7]).all()
        assert (pools.fixed_controls(positions, 2, 4) != expected).any()


def test_cells_without_a_dataset_do_not_share_the_pools_of_others():
    cells = make_cells(
        cell_type=["S"] * 20 + ["T"] * 20, perturbation=[CONTROL, "A"] * 20, dataset=["d"] * 20 + [None] * 20
    )
    pools = control_pools(cells.groups, by_batch=False)
    rows = np.flatnonzero(cells.frame["perturbation"] == "A")
    drawn = draw(pools, cells, rows, 3, (1, 2))
    assert (cells.labels("cell_type", drawn[:, 0]) == cells.labels("cell_type", rows)).all()


def test_without_controls_there_is_nothing_to_draw():
    cells = make_cells(perturbation=["A"] * 3, batch=["b"] * 3, control=None)
    for by_batch in (False, True):
        pools = control_pools(cells.groups, by_batch=by_batch)
        assert pools.control_index(drawn_cells(cells, [0, 2]), 2, (1, 2)).tolist() == [[0, 0], [0, 0]]


def test_repr_counts_controls_and_pools(design):
    assert repr(control_pools(design.groups, by_batch=False)) == "ControlPools(150 controls in 3 pools)"
