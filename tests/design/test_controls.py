"""Cells are matched with real controls of their own kind, all equally often."""

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
from lazypert.design.controls import control_mapping
from lazypert.errors import ConfigError, EmptyPoolError
from lazypert.splits.names import SPLITS
from tests.support.screens import CONTROL, control_pool, design_cells, make_cells, random_cells

STRATEGIES = ("random", "batch")


def build(cells, strategy, splits=None, **options):
    mapping = control_mapping(ControlMappingConfig(strategy=strategy, **options))
    return mapping.mapped_rows(cells), mapping.build_mapping(cells, splits)


@pytest.fixture(scope="module")
def design():
    return design_cells()


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(st.integers(5, 80), st.integers(0, 1000), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_controls_are_from_the_pool_of_their_cell(strategy, n, seed, n_basal):
    cells = random_cells(n, seed, n_datasets=2, n_batches=4, missing=0.05)
    if CONTROL not in cells.groups.labels["perturbation"]:
        return
    rows, mapped = build(cells, strategy, n_basal_samples=n_basal, on_empty="mask", seed=seed)
    labelled = cells.frame.dropna(subset=["cell_type", "perturbation"])
    assert rows.tolist() == labelled.index[labelled["perturbation"] != CONTROL].tolist()
    assert mapped.shape == (len(rows), n_basal)
    for row, controls in zip(rows.tolist(), mapped, strict=True):
        pool = control_pool(cells, row, strategy)
        assert np.ma.getmaskarray(controls).tolist() == [not pool] * n_basal
        if pool:
            distinct = set(controls.tolist())
            assert distinct <= pool
            assert len(distinct) == n_basal or len(pool) < n_basal


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
def test_controls_are_from_the_split_of_their_cell(strategy, splitter):
    cells = random_cells(300, 4, n_datasets=2)
    splits = splitter.split(cells)
    rows, mapped = build(cells, strategy, splits, n_basal_samples=3)
    split_of = {row: name for name in SPLITS for row in splits[name]}
    for row, controls in zip(rows.tolist(), mapped.tolist(), strict=True):
        pool = control_pool(cells, row, strategy, np.asarray(splits[split_of[row]]))
        # If the split has no control of this kind, those of training are used.
        if not control_pool(cells, row, "random", np.asarray(splits[split_of[row]])):
            pool = control_pool(cells, row, strategy, np.asarray(splits.train_indices))
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
    def test_controls_are_of_the_same_batch_if_it_has_any(self, design):
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
        assert [set(controls) for controls in mapped.tolist()] == [{3}, {4}, {3, 4}]

    def test_the_random_strategy_crosses_batches(self, design):
        rows, mapped = build(design, "random")
        same = design.labels("batch", rows) == design.labels("batch", mapped[:, 0])
        assert 0.4 < same.mean() < 0.6


class TestDraws:
    def test_are_uniform_over_cells(self, design):
        rows, mapped = build(design, "random", seed=3)
        for cell_type in ("Astrocyte", "Microglia", "Neuron"):
            inside = design.labels("cell_type", rows) == cell_type
            pool = sorted(control_pool(design, int(rows[inside][0]), "random"))
            counts = np.bincount(mapped[inside].ravel(), minlength=900)[pool]
            assert counts.sum() == 250
            assert stats.chisquare(counts).pvalue > 1e-4

    def test_reach_every_control_over_seeds(self):
        cells = make_cells(perturbation=["A", *[CONTROL] * 12])
        seen = {int(build(cells, "random", seed=seed)[1][0, 0]) for seed in range(200)}
        assert seen == set(range(1, 13))

    def test_are_distinct_if_the_pool_is_just_large_enough(self):
        cells = make_cells(perturbation=["A"] * 5 + [CONTROL] * 4)
        for controls in build(cells, "random", n_basal_samples=4)[1].tolist():
            assert sorted(controls) == [5, 6, 7, 8]

    def test_repeat_only_if_the_pool_is_too_small(self):
        cells = make_cells(perturbation=["A"] * 5 + [CONTROL] * 2)
        assert set(build(cells, "random", n_basal_samples=6)[1].ravel()) == {5, 6}

    def test_depend_on_the_seed(self, design):
        one, again, other = (build(design, "random", seed=seed)[1] for seed in (1, 1, 2))
        assert (one == again).all()
        assert (one != other).mean() > 0.9


class TestMappedControls:
    def test_controls_can_be_mapped(self, design):
        rows, mapped = build(design, "batch", map_controls=True)
        assert rows.tolist() == list(range(900))
        assert set(design.labels("perturbation", mapped[:, 0])) == {CONTROL}

    def test_a_control_may_be_matched_with_itself(self):
        cells = make_cells(perturbation=["A", CONTROL])
        assert build(cells, "random", map_controls=True)[1].tolist() == [[1], [1]]


class TestEmptyPools:
    def cells(self):
        return make_cells(
            perturbation=["A", "B, C", CONTROL, "A", "D"],
            cell_type=["T, one", "T, one", "U", "U", "V"],
        )

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_raise_an_error_that_names_the_groups(self, strategy):
        with pytest.raises(EmptyPoolError) as caught:
            build(self.cells(), strategy)
        message = str(caught.value)
        assert "3 groups have no controls" in message
        assert "(T, one, A), (T, one, B, C), (V, D)" in message
        assert f"labelled {CONTROL!r} of the cell types T, one, V" in message

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_are_masked_on_request(self, strategy):
        rows, mapped = build(self.cells(), strategy, on_empty="mask", n_basal_samples=2)
        assert rows.tolist() == [0, 1, 3, 4]
        assert mapped.mask.tolist() == [[True, True], [True, True], [False, False], [True, True]]
        assert mapped[2].tolist() == [2, 2]
        assert (mapped.data >= 0).all()

    def split_without_controls(self):
        """One control among many cells, in test: the other splits have none, and may not use that of test."""
        cells = make_cells(perturbation=["A"] * 20 + [CONTROL])
        for seed in range(100):
            splits = RandomSplitter(RandomSplitterConfig(train_frac=0.4, valid_frac=0.2, seed=seed)).split(cells)
            if 20 in set(splits.test_indices):
                return cells, splits
        raise AssertionError

    def test_of_a_split_raise_an_error(self):
        cells, splits = self.split_without_controls()
        with pytest.raises(EmptyPoolError, match=r"1 group has no controls: \(all, A\)"):
            build(cells, "random", splits)

    def test_of_a_split_are_masked_on_request(self):
        cells, splits = self.split_without_controls()
        rows, mapped = build(cells, "random", splits, on_empty="mask")
        in_test = np.isin(rows, np.asarray(splits.test_indices))
        assert mapped.mask[:, 0].tolist() == (~in_test).tolist()
        assert set(mapped[in_test, 0]) == {20}

    def test_of_cells_in_no_split_raise_an_error(self):
        cells = make_cells(perturbation=["A", CONTROL, "A"], cell_type=["T", "T", "U"])
        splits = RandomSplitter(RandomSplitterConfig(train_frac=1, valid_frac=0)).split(cells)
        splits = splits.keep(np.array([True, True, False]))
        with pytest.raises(EmptyPoolError, match=r"\(U, A\)"):
            build(cells, "random", splits)

    def test_of_a_screen_whose_controls_are_all_unlabelled(self):
        cells = make_cells(perturbation=["A", CONTROL], cell_type=["T", None])
        with pytest.raises(EmptyPoolError, match=r"\(T, A\)"):
            build(cells, "random")
        assert build(cells, "random", on_empty="mask")[1].mask.tolist() == [[True]]


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_never_negative_and_never_perturbed_cells(seed):
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
    def test_are_checked_on_construction(self, options):
        (name, value), *_ = options.items()
        with pytest.raises(ConfigError, match=f"{name}: got {value!r}"):
            ControlMappingConfig(**options)

    def test_a_mapping_accepts_only_its_own_strategy(self):
        with pytest.raises(ConfigError, match="strategy: got 'random', expected 'batch' for BatchControlMapping"):
            BatchControlMapping(ControlMappingConfig(strategy="random"))

    def test_defaults(self):
        assert RandomControlMapping().config.strategy == "random"
        assert BatchControlMapping().config.strategy == "batch"

    def test_repr_shows_what_differs_from_the_defaults(self):
        mapping = control_mapping(ControlMappingConfig(strategy="batch", seed=7))
        assert repr(mapping) == "BatchControlMapping(ControlMappingConfig(seed=7, strategy='batch'))"


@pytest.mark.parametrize(
    "options", [{}, {"map_controls": True}, {"controls": "disjoint"}, {"n_basal_samples": 3}], ids=str
)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("has_splits", [False, True])
def test_blocks_are_the_mapping(strategy, options, has_splits, monkeypatch):
    cells = random_cells(300, 3, n_batches=4, missing=0.05)
    splits = RandomSplitter(RandomSplitterConfig(exclude_perturbations=("P1",))).split(cells) if has_splits else None
    rows, expected = build(cells, strategy, splits, on_empty="mask", **options)
    monkeypatch.setattr("lazypert.design.control_pools._CELLS_AT_ONCE", 7)
    mapping = control_mapping(ControlMappingConfig(strategy=strategy, on_empty="mask", **options))
    blocks = list(mapping.iterate(cells, splits))
    assert max(len(block.rows) for block in blocks) <= 7
    found = {
        row: controls.tolist() if has_some else None
        for block in blocks
        for row, controls, has_some in zip(block.rows.tolist(), block.controls, block.has_controls, strict=True)
    }
    is_empty = np.ma.getmaskarray(expected)[:, 0]
    data = np.ma.getdata(expected)
    assert found == {
        int(row): None if empty else controls.tolist()
        for row, controls, empty in zip(rows, data, is_empty, strict=True)
    }
    assert sum(len(block.rows) for block in blocks) == len(rows)


def test_cells_that_a_selection_has_twice_are_mapped_twice(design):
    class Selection:
        groups = design.groups.select(np.r_[np.arange(900), 5, 700, 5])

    rows, mapped = build(Selection, "random")
    assert len(rows) == len(mapped) == 753
    assert (np.diff(rows) >= 0).all()
    assert (rows == 5).sum() == 3
