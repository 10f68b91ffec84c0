"""Controls are of the cell's own kind, drawn evenly, and never made up."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lazypert import (
    BatchControlMapping,
    ControlMappingConfig,
    FewShotSplitter,
    FewShotSplitterConfig,
    RandomControlMapping,
    RandomSplitter,
    RandomSplitterConfig,
    ZeroShotSplitter,
    ZeroShotSplitterConfig,
)
from lazypert.design.controls import control_mapping, control_pools
from lazypert.design.splits import SPLITS
from lazypert.errors import ConfigError, EmptyPoolError
from tests.support.screens import CONTROL, design_cells, make_cells, random_cells

STRATEGIES = ("random", "batch")


def build(cells, strategy, splits=None, **options):
    mapping = control_mapping(ControlMappingConfig(strategy=strategy, **options))
    return mapping.mapped_rows(cells), mapping.build_mapping(cells, splits)


def pool_of(cells, row, strategy, allowed=None):
    """Controls that a row may get, by the labels alone."""
    frame = cells.frame
    same = (frame["perturbation"] == CONTROL) & (frame["dataset"] == frame["dataset"][row])
    same &= frame["cell_type"] == frame["cell_type"][row]
    if allowed is not None:
        same &= np.isin(np.arange(len(frame)), allowed)
    batch = frame["batch"].fillna("missing")
    near = same & (batch == batch[row])
    return set(np.flatnonzero(near if strategy == "batch" and near.any() else same))


@pytest.fixture(scope="module")
def design():
    return design_cells()


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(st.integers(5, 80), st.integers(0, 1000), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_every_control_is_in_the_pool_of_its_cell(strategy, n, seed, n_basal):
    cells = random_cells(n, seed, n_datasets=2, n_batches=4, missing=0.05)
    if CONTROL not in cells.groups.labels["perturbation"]:
        return
    rows, mapped = build(cells, strategy, n_basal_samples=n_basal, on_empty="mask", seed=seed)
    labelled = cells.frame.dropna(subset=["cell_type", "perturbation"])
    assert rows.tolist() == labelled.index[labelled["perturbation"] != CONTROL].tolist()
    assert mapped.shape == (len(rows), n_basal)
    for row, controls in zip(rows.tolist(), mapped, strict=True):
        pool = pool_of(cells, row, strategy)
        assert np.ma.getmaskarray(controls).tolist() == [not pool] * n_basal
        if pool:
            found = controls.tolist()
            assert set(found) <= pool
            assert len(set(found)) == n_basal or len(pool) < n_basal


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "splitter",
    [
        RandomSplitter(RandomSplitterConfig(train_frac=0.5, valid_frac=0.2)),
        ZeroShotSplitter(ZeroShotSplitterConfig(held_out_cell_types=("T0",))),
        FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=("P0",))),
    ],
    ids=["random", "zero-shot", "few-shot"],
)
def test_controls_stay_in_the_split(strategy, splitter):
    cells = random_cells(300, 4, n_datasets=2)
    splits = splitter.split(cells)
    rows, mapped = build(cells, strategy, splits, n_basal_samples=3)
    where = {row: name for name in SPLITS for row in splits[name]}
    for row, controls in zip(rows.tolist(), mapped.tolist(), strict=True):
        pool = pool_of(cells, row, strategy, np.asarray(splits[where[row]]))
        # Where the split has no control of the kind, those of training serve.
        if not pool_of(cells, row, "random", np.asarray(splits[where[row]])):
            pool = pool_of(cells, row, strategy, np.asarray(splits.train_indices))
        assert set(controls) <= pool


def test_few_shot_evaluation_falls_back_to_training_controls(design):
    splits = FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=("MYC",))).split(design)
    training = set(splits.train_indices)
    rows, mapped = build(design, "batch", splits)
    held = np.isin(rows, np.asarray(splits.test_indices))
    assert held.sum() == 150
    assert set(mapped[held].ravel()) <= training
    for axis in ("cell_type", "batch"):
        assert (design.labels(axis, rows) == design.labels(axis, mapped[:, 0])).all()


class TestBatchStrategy:
    def test_is_always_the_same_batch_where_the_batch_has_controls(self, design):
        rows, mapped = build(design, "batch", n_basal_samples=5)
        for column in mapped.T:
            assert (design.labels("batch", rows) == design.labels("batch", column)).all()

    def test_falls_back_to_the_cell_type(self):
        cells = make_cells(
            perturbation=["A", "A", "A", CONTROL, CONTROL, CONTROL],
            cell_type=["T", "T", "T", "T", "T", "U"],
            batch=["b1", "b2", "b3", "b1", "b2", "b3"],
        )
        rows, mapped = build(cells, "batch", n_basal_samples=2)
        assert rows.tolist() == [0, 1, 2]
        assert [set(line) for line in mapped.tolist()] == [{3}, {4}, {3, 4}]

    def test_the_random_strategy_crosses_batches(self, design):
        rows, mapped = build(design, "random")
        same = design.labels("batch", rows) == design.labels("batch", mapped[:, 0])
        assert 0.4 < same.mean() < 0.6


class TestDraws:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_are_uniform_over_the_pool(self, design, strategy):
        pools = control_pools(design.groups, by_batch=strategy == "batch")
        row = 17
        run = design.groups.expand(np.arange(len(design.groups.start)))[row]
        drawn = [pools.draw(np.array([row]), np.array([run]), 2, (0, epoch)) for epoch in range(2000)]
        pool = sorted(pool_of(design, row, strategy))
        counts = np.array([np.sum(np.array(drawn) == control) for control in pool])
        assert counts.sum() == 4000  # every draw is in the pool
        assert counts.min() > 0  # every member is reached
        assert stats.chisquare(counts).pvalue > 1e-4

    def test_are_uniform_over_cells_too(self, design):
        rows, mapped = build(design, "random", seed=3)
        for cell_type in ("Astrocyte", "Microglia", "Neuron"):
            inside = design.labels("cell_type", rows) == cell_type
            used = mapped[inside].ravel()
            counts = np.bincount(used, minlength=900)[sorted(pool_of(design, int(rows[inside][0]), "random"))]
            assert counts.sum() == 250
            assert stats.chisquare(counts).pvalue > 1e-4

    def test_every_member_is_reached_over_seeds(self):
        cells = make_cells(perturbation=["A", *[CONTROL] * 12])
        seen = {int(build(cells, "random", seed=seed)[1][0, 0]) for seed in range(200)}
        assert seen == set(range(1, 13))

    def test_are_distinct_when_the_pool_just_suffices(self):
        cells = make_cells(perturbation=["A"] * 5 + [CONTROL] * 4)
        for line in build(cells, "random", n_basal_samples=4)[1].tolist():
            assert sorted(line) == [5, 6, 7, 8]

    def test_repeat_only_when_they_must(self):
        cells = make_cells(perturbation=["A"] * 5 + [CONTROL] * 2)
        assert set(build(cells, "random", n_basal_samples=6)[1].ravel()) == {5, 6}

    def test_do_not_depend_on_who_asks(self, design):
        groups = design.groups
        pools = control_pools(groups, by_batch=True)
        rows = np.arange(900)
        runs = groups.expand(np.arange(len(groups.start)))
        whole = pools.draw(rows, runs, 3, (1, 2))
        turn = np.random.default_rng(0).permutation(900)
        shuffled = pools.draw(rows[turn], runs[turn], 3, (1, 2))
        pieces = np.concatenate([pools.draw(rows[i : i + 70], runs[i : i + 70], 3, (1, 2)) for i in range(0, 900, 70)])
        assert (shuffled == whole[turn]).all()
        assert (pieces == whole).all()

    def test_the_seed_decides(self, design):
        one, again, other = (build(design, "random", seed=seed)[1] for seed in (1, 1, 2))
        assert (one == again).all()
        assert (one != other).mean() > 0.9

    def test_are_the_same_in_a_shuffled_grouping_of_the_same_pools(self, design):
        """A shuffled store has other rows at the same places; the kind of control stays."""
        shuffled = SimpleNamespace(groups=design.groups.shuffled(5))
        rows, mapped = build(shuffled, "batch")
        for axis in ("cell_type", "batch"):
            assert (design.labels(axis, rows) == design.labels(axis, mapped[:, 0])).all()


class TestMappedControls:
    def test_controls_can_be_mapped_too(self, design):
        rows, mapped = build(design, "batch", map_controls=True)
        assert rows.tolist() == list(range(900))
        assert set(design.labels("perturbation", mapped[:, 0])) == {CONTROL}

    def test_a_control_may_get_itself(self):
        cells = make_cells(perturbation=["A", CONTROL])
        assert build(cells, "random", map_controls=True)[1].tolist() == [[1], [1]]


class TestEmptyPools:
    def cells(self):
        return make_cells(
            perturbation=["A", "B, C", CONTROL, "A", "D"],
            cell_type=["T, one", "T, one", "U", "U", "V"],
        )

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_are_an_error_that_names_the_groups(self, strategy):
        with pytest.raises(EmptyPoolError) as caught:
            build(self.cells(), strategy)
        message = str(caught.value)
        assert "3 groups have no control" in message
        assert "(T, one, A), (T, one, B, C), (V, D)" in message
        assert f"labelled {CONTROL!r} of the cell types T, one, V" in message

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_are_masked_when_asked(self, strategy):
        rows, mapped = build(self.cells(), strategy, on_empty="mask", n_basal_samples=2)
        assert rows.tolist() == [0, 1, 3, 4]
        assert mapped.mask.tolist() == [[True, True], [True, True], [False, False], [True, True]]
        assert mapped[2].tolist() == [2, 2]
        assert (mapped.data >= 0).all()

    def split_without_controls(self):
        """One control among many cells: whatever the seed, some split has none, and may not borrow from test."""
        cells = make_cells(perturbation=["A"] * 20 + [CONTROL])
        for seed in range(100):
            splits = RandomSplitter(RandomSplitterConfig(train_frac=0.4, valid_frac=0.2, seed=seed)).split(cells)
            if 20 in set(splits.test_indices):
                return cells, splits
        raise AssertionError

    def test_of_a_split_are_errors_too(self):
        with pytest.raises(EmptyPoolError, match=r"\(all, A\)"):
            build(*self.split_without_controls()[:1], "random", self.split_without_controls()[1])

    def test_of_a_split_are_masked_when_asked(self):
        cells, splits = self.split_without_controls()
        rows, mapped = build(cells, "random", splits, on_empty="mask")
        in_test = np.isin(rows, np.asarray(splits.test_indices))
        assert mapped.mask[:, 0].tolist() == (~in_test).tolist()
        assert set(mapped[in_test, 0]) == {20}

    def test_of_cells_outside_every_split_are_errors_too(self):
        cells = make_cells(perturbation=["A", CONTROL, "A"], cell_type=["T", "T", "U"])
        splits = RandomSplitter(RandomSplitterConfig(train_frac=1, valid_frac=0)).split(cells)
        splits = splits.keep(np.array([True, True, False]))
        with pytest.raises(EmptyPoolError, match=r"\(U, A\)"):
            build(cells, "random", splits)

    def test_a_screen_without_any_labelled_control(self):
        cells = make_cells(perturbation=["A", CONTROL], cell_type=["T", None])
        with pytest.raises(EmptyPoolError, match=r"\(T, A\)"):
            build(cells, "random")
        assert build(cells, "random", on_empty="mask")[1].mask.tolist() == [[True]]


@pytest.mark.parametrize("seed", range(20))
def test_no_row_is_ever_negative_or_a_perturbed_cell(seed):
    cells = random_cells(60, seed, n_datasets=2, missing=0.1)
    splits = RandomSplitter(RandomSplitterConfig(train_frac=0.4, valid_frac=0.3, seed=seed)).split(cells)
    for strategy in STRATEGIES:
        _, mapped = build(cells, strategy, splits, on_empty="mask")
        assert (mapped.data >= 0).all()
        assert set(cells.labels("perturbation", mapped.compressed())) <= {CONTROL}


class TestOptions:
    @pytest.mark.parametrize(
        "options",
        [{"strategy": "nearest"}, {"n_basal_samples": 0}, {"on_empty": "ignore"}, {"seed": -1}],
        ids=lambda options: next(iter(options)),
    )
    def test_are_checked_when_made(self, options):
        (name, value), *_ = options.items()
        with pytest.raises(ConfigError, match=f"{name}: got {value!r}"):
            ControlMappingConfig(**options)

    def test_a_mapping_takes_its_own_strategy_only(self):
        with pytest.raises(ConfigError, match="strategy 'batch', got a config of 'random'"):
            BatchControlMapping(ControlMappingConfig(strategy="random"))

    def test_defaults(self):
        assert RandomControlMapping().config.strategy == "random"
        assert BatchControlMapping().config.strategy == "batch"


class TestArcs:
    """A large pool is drawn from in part, another part every turn, and in the end evenly."""

    @pytest.fixture
    def pools(self):
        n = 3000
        cells = make_cells(
            cell_type=["T"] * n + ["U"] * 40,
            perturbation=[CONTROL] * n + ["A"] * 20 + [CONTROL] * 20,
        )
        return SimpleNamespace(cells=cells, pools=control_pools(cells.groups, by_batch=False))

    def drawn(self, made, turn, *, reach, rows=None, n=1, epoch=0):
        rows = np.arange(1000) if rows is None else rows
        runs = made.cells.groups.expand(np.arange(len(made.cells.groups.start)), len(made.cells.frame))[rows]
        return made.pools.control_index(rows, runs, n, (5, epoch), reach=reach, turn=turn)

    def test_few_controls_are_in_reach_at_a_time(self, pools):
        reach = 640
        for turn in range(30):
            pieces = np.unique(self.drawn(pools, turn, reach=reach) // 64)
            assert len(pieces) <= 2 * min(4 + turn, reach // 64)

    def test_what_serves_fits_where_it_is_kept(self):
        cells = make_cells(cell_type=["T"] * 3000 + ["U"] * 3000, perturbation=[CONTROL] * 6000)
        made = SimpleNamespace(cells=cells, pools=control_pools(cells.groups, by_batch=False))
        reach = made.pools.reach(1600, 16)
        most = max(
            len(np.unique(self.drawn(made, turn, reach=reach, rows=np.arange(6000)) // 16)) for turn in range(60)
        )
        assert 0.5 * 1600 < 16 * most <= 1600

    def test_a_turn_brings_little_that_is_new(self, pools):
        before = set()
        for turn in range(40):
            now = set((np.unique(self.drawn(pools, turn, reach=640)) // 64).tolist())
            if turn:
                assert len(now - before) <= 2
            before = now

    def test_every_member_is_drawn_and_as_often_as_any_other(self, pools):
        n_turns = 46 * 20  # 46 arcs go into the pool
        counts = np.zeros(len(pools.pools.controls))
        for turn in range(n_turns):
            np.add.at(counts, self.drawn(pools, turn, reach=640, epoch=turn // 46).ravel(), 1)
        counts = counts[:3000]
        assert counts.min() > 0
        # Cells next to each other come and go together, so compare stretches as long as an arc.
        blocks = counts[: 3000 // 60 * 60].reshape(-1, 60).sum(axis=1)
        assert blocks.std() / blocks.mean() < 0.12

    def test_small_pools_are_in_reach_whole(self, pools):
        rows = np.arange(3000, 3020)
        assert len(np.unique(self.drawn(pools, 0, reach=10, rows=rows, n=3))) > 15

    def test_draws_of_a_cell_are_distinct(self, pools):
        found = self.drawn(pools, 3, reach=640, n=20)
        assert all(len(set(line)) == 20 for line in found.tolist())

    def test_without_a_reach_it_is_the_mapping(self, pools):
        rows = np.arange(1000)
        runs = pools.cells.groups.expand(np.arange(len(pools.cells.groups.start)), 3040)[rows]
        places = pools.pools.control_index(rows, runs, 2, (9,))
        np.testing.assert_array_equal(pools.pools.controls[places], pools.pools.draw(rows, runs, 2, (9,)))
