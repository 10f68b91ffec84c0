"""Filters apply before every rule: excluded labels and small groups are in no split."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert import (
    CombinationSplitter,
    CombinationSplitterConfig,
    FewShotSplitter,
    FewShotSplitterConfig,
    HeldOutSplitter,
    HeldOutSplitterConfig,
    RandomSplitter,
    RandomSplitterConfig,
    ZeroShotSplitter,
    ZeroShotSplitterConfig,
)
from lazypert.errors import ConfigError, LabelNotFoundError
from tests.support.screens import CONTROL, design_cells
from tests.support.splits import assert_same_for_all_openings, by_name, cells_of, screens

RULES = {
    "random": lambda **options: RandomSplitter(RandomSplitterConfig(**options)),
    "folds": lambda **options: RandomSplitter(RandomSplitterConfig(n_folds=3, fold=1, **options)),
    "stratified": lambda **options: RandomSplitter(RandomSplitterConfig(stratify_by=("batch",), **options)),
    "zeroshot": lambda **options: ZeroShotSplitter(ZeroShotSplitterConfig(held_out_cell_types=("T",), **options)),
    "fewshot": lambda **options: FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=("B",), **options)),
    "heldout": lambda **options: HeldOutSplitter(HeldOutSplitterConfig(by="donor", test=0.3, **options)),
    "combinations": lambda **options: CombinationSplitter(
        CombinationSplitterConfig(separator="+", test=("B",), **options)
    ),
}


@given(screens(), st.sampled_from(sorted(RULES)), st.sampled_from([0, 2, 3]), st.booleans())
@settings(max_examples=120, deadline=None)
def test_filtered_cells_are_in_no_split(screen, rule, min_cells, excludes):
    options = {"min_cells_per_group": min_cells}
    if excludes:
        options |= {"exclude_perturbations": ("A",), "exclude_cell_types": ("V",), "missing": "ignore"}
    frame = pd.DataFrame(screen).dropna(subset=["cell_type", "perturbation"])
    if excludes:
        frame = frame[(frame["perturbation"] != "A") & (frame["cell_type"] != "V")]
    size = frame.groupby(["cell_type", "perturbation"])["names"].transform("size")
    kept = frame[(size >= min_cells) | (frame["perturbation"] == CONTROL)]
    if rule == "heldout":
        kept = kept.dropna(subset=["donor"])
    try:
        found = assert_same_for_all_openings(screen, RULES[rule](**options))
    except (ConfigError, LabelNotFoundError):  # nothing is left to hold out, which other tests check
        is_there = {
            "zeroshot": len({"T"} ^ set(kept["cell_type"])) > 0 and "T" in set(kept["cell_type"]),
            "fewshot": {"B", CONTROL} <= set(kept["perturbation"]),
        }
        assert rule in ("heldout", "combinations") or kept.empty or not is_there.get(rule, True)
        return
    assert sorted(found) == sorted(kept["names"])
    remaining = cells_of(screen, order=kept.index.to_numpy())
    if rule != "combinations":
        assert by_name(remaining, RULES[rule]().split(remaining)) == found


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"exclude_perturbations": ("unassigned",)}, LabelNotFoundError, "exclude_perturbations: got 'unassigned'"),
        ({"exclude_cell_types": ("neuron",)}, LabelNotFoundError, "Did you mean 'Neuron'"),
        ({"exclude_perturbations": (CONTROL,)}, ConfigError, "marks the controls"),
        ({"exclude_cell_types": ("Neuron", "Microglia", "Astrocyte")}, ConfigError, "leave no cell"),
    ],
    ids=str,
)
def test_filters_that_cannot_be_applied_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        RULES["random"](**options).split(design_cells())


def test_controls_of_small_groups_are_kept():
    split = RULES["random"](min_cells_per_group=51).split(design_cells())
    assert sum(len(split[name]) for name in ("train", "valid", "test")) == 150
    assert split.n_in_no_split == 750
    assert "in no split 750" in repr(split)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude_perturbations": {"A"}}, "exclude_perturbations: got {'A'}"),
        ({"exclude_cell_types": (1,)}, r"exclude_cell_types: got \(1,\)"),
        ({"min_cells_per_group": -1}, "min_cells_per_group: got -1"),
        ({"missing": "skip"}, "missing: got 'skip'"),
        ({"stratify_by": {"batch"}}, "stratify_by: got {'batch'}"),
    ],
    ids=str,
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        RandomSplitterConfig(**options)


def test_a_held_out_label_that_is_filtered_out_does_not_occur():
    rule = FewShotSplitterConfig(held_out_perturbations=("MYC",), exclude_perturbations=("MYC",))
    with pytest.raises(LabelNotFoundError, match="held_out_perturbations: got 'MYC'"):
        FewShotSplitter(rule).split(design_cells())
    rule = FewShotSplitterConfig(
        held_out_perturbations=("MYC", "TP53"), exclude_perturbations=("MYC",), missing="ignore"
    )
    assert len(FewShotSplitter(rule).split(design_cells()).test_indices) == 150
