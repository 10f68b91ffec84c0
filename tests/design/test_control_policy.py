"""Policies decide which controls serve a split, and which control cells are delivered with it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert import (
    FewShotSplitter,
    FewShotSplitterConfig,
    RandomSplitter,
    RandomSplitterConfig,
    ZeroShotSplitter,
    ZeroShotSplitterConfig,
)
from lazypert.design.control_policy import SplitControls, with_own_controls
from lazypert.errors import EmptyPoolError
from lazypert.splits.names import SPLITS
from tests.support.screens import CONTROL, design_cells, make_cells, random_cells

SPLITTERS = {
    "random": RandomSplitter(RandomSplitterConfig(train_frac=0.5, valid_frac=0.2)),
    "zeroshot": ZeroShotSplitter(ZeroShotSplitterConfig(held_out_cell_types=("T0",))),
    "fewshot": FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=("P0",))),
}


def rows_of(rows):
    return set(np.asarray(rows).tolist())


def expected_pool(frame, splits, name, policy):
    """Controls that serve a split, cell by cell from the labels."""
    is_control = (frame["perturbation"] == CONTROL) & frame["cell_type"].notna()
    controls = {split: [row for row in splits[split] if is_control[row]] for split in SPLITS}
    if policy == "train":
        return set(controls["train"])
    if policy == "shared":
        return {row for rows in controls.values() for row in rows}

    def kind(row):
        return frame["cell_type"][row], frame["dataset"][row]

    wanted = {kind(row) for row in splits[name] if not is_control[row]}
    lacking = wanted - {kind(row) for row in controls[name]}
    return set(controls[name]) | {row for row in controls["train"] if kind(row) in lacking}


@pytest.mark.parametrize("policy", ["split", "train", "shared"])
@pytest.mark.parametrize("splitter", SPLITTERS.values(), ids=SPLITTERS)
@given(st.integers(20, 120), st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_pools_and_delivered_cells_equal_a_loop_over_cells(policy, splitter, n, seed):
    cells = random_cells(n, seed, n_datasets=2)
    if not {"T0", "P0", CONTROL} <= {*cells.groups.labels["cell_type"], *cells.groups.labels["perturbation"]}:
        return
    splits = splitter.split(cells)
    is_control = (cells.frame["perturbation"] == CONTROL).to_numpy()
    for name in SPLITS:
        pool = expected_pool(cells.frame, splits, name, policy)
        own = rows_of(splits[name])
        perturbed = {row for row in own if not is_control[row]}
        for delivered, cells_of_split in ((None, own), (False, perturbed), (True, perturbed | pool)):
            found = SplitControls.of(cells.groups, splits, name, policy, delivered=delivered)
            assert rows_of(found.pool) == pool
            assert rows_of(found.cells) == cells_of_split
            assert len(found.cells) == len(cells_of_split)
            assert (np.diff(cells.groups.run_of(found.cells.starts)) >= 0).all()


class TestDisjoint:
    @pytest.fixture
    def cells(self):
        return design_cells()

    @pytest.fixture
    def splits(self, cells):
        return FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=("BRCA1", "TP53"))).split(cells)

    def test_each_split_gets_its_share_of_the_controls(self, cells, splits):
        made = with_own_controls(cells.groups, splits, 0)
        is_control = (cells.frame["perturbation"] == CONTROL).to_numpy()
        counts = {name: int(is_control[np.asarray(made[name])].sum()) for name in SPLITS}
        # Perturbed cells per cell type: 133 or 134 train, 16 or 17 validate, 100 test; 50 controls.
        assert counts == {"train": 81, "valid": 9, "test": 60}
        for name in SPLITS:
            before = {row for row in splits[name] if not is_control[row]}
            assert {row for row in made[name] if not is_control[row]} == before
        assert rows_of(made["train"]) | rows_of(made["valid"]) | rows_of(made["test"]) == set(range(900))
        assert sum(len(made[name]) for name in SPLITS) == 900

    def test_pools_share_no_control(self, cells, splits):
        made = with_own_controls(cells.groups, splits, 0)
        pools = [rows_of(SplitControls.of(cells.groups, made, name, "disjoint").pool) for name in SPLITS]
        assert sum(map(len, pools)) == len(set.union(*pools)) == 150

    def test_other_seeds_set_other_controls_aside(self, cells, splits):
        assert rows_of(with_own_controls(cells.groups, splits, 0)["test"]) != rows_of(
            with_own_controls(cells.groups, splits, 1)["test"]
        )

    def test_splits_with_controls_of_their_own_stay_as_they_are(self, cells):
        splits = RandomSplitter().split(cells)
        assert with_own_controls(cells.groups, splits, 0) is splits

    def test_doing_it_twice_changes_nothing(self, cells, splits):
        once = with_own_controls(cells.groups, splits, 0)
        assert with_own_controls(cells.groups, once, 0) is once

    @pytest.mark.parametrize("n_controls", [3, 5, 16, 24, 40, 100])
    def test_each_control_is_equally_likely_to_be_set_aside(self, n_controls):
        labels = ["A"] * 60 + ["B"] * 60 + [CONTROL] * n_controls
        cells = make_cells(perturbation=labels, cell_type=["T"] * len(labels))
        splitter = FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=("B",), valid_frac=0.4, train_frac=0.4))
        splits, n_seeds = splitter.split(cells), 600
        hits = {name: np.zeros(n_controls) for name in SPLITS}
        for seed in range(n_seeds):
            made = with_own_controls(cells.groups, splits, seed)
            for name in SPLITS:
                rows = np.asarray(made[name])
                hits[name][rows[rows >= 120] - 120] += 1
        for found in hits.values():
            share = found.sum() / n_seeds / n_controls
            assert share > 0
            assert (np.abs(found - share * n_seeds) < 5 * np.sqrt(n_seeds * share * (1 - share) + 1)).all()

    @pytest.mark.parametrize("n_controls", [0, 1, 2])
    def test_too_few_controls_are_an_error_that_names_the_policy(self, n_controls):
        labels = ["A"] * 60 + ["B"] * 60 + [CONTROL] * n_controls + [CONTROL]
        cells = make_cells(perturbation=labels, cell_type=["T"] * (len(labels) - 1) + ["U"])
        splits = FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=("B",))).split(cells)
        with pytest.raises(
            EmptyPoolError, match=f"'disjoint', but cell type 'T' has {n_controls} training controls for 3"
        ):
            with_own_controls(cells.groups, splits, 0)
