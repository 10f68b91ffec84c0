"""Parts of combinations are held out with everything that contains them; what is seen is counted as in GEARS."""

from itertools import combinations
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert import CombinationSplitter, CombinationSplitterConfig
from lazypert.errors import ConfigError, LabelNotFoundError
from lazypert.screen.combinations import parts_of
from lazypert.screen.roles import Roles
from lazypert.splits.names import SPLITS
from tests.support.screens import make_cells
from tests.support.splits import by_name

CONTROL = "ctrl"


def combos(**options):
    return CombinationSplitter(CombinationSplitterConfig(**{"separator": "+", **options}))


def screen_of(labels, repeats=2):
    return make_cells(control=CONTROL, perturbation=[*labels, CONTROL] * repeats)


def splits_of(cells, splitter):
    """Split of each perturbation label."""
    return {
        cells.frame["perturbation"][int(name.removeprefix("cell"))]: split
        for name, split in by_name(cells, splitter.split(cells)).items()
    }


@st.composite
def label_sets(draw):
    genes = [f"G{i}" for i in range(draw(st.integers(3, 6)))]
    singles = [g if draw(st.booleans()) else f"{g}+{CONTROL}" for g in genes if draw(st.integers(0, 4))]
    pairs = ["+".join(draw(st.permutations(pair))) for pair in combinations(genes, 2) if draw(st.booleans())]
    triples = ["+".join(draw(st.permutations(t))) for t in combinations(genes, 3) if draw(st.integers(0, 3)) == 0]
    return singles + pairs + triples


@given(label_sets(), st.sampled_from([None, (0,), (1,), (0, 1), (2,)]), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_equals_the_rule_in_a_few_lines(labels, n_seen, random):
    genes = sorted({gene for label in labels for gene in label.split("+")} - {CONTROL})
    if len(genes) < 3:
        return
    test, valid = random.sample(genes, 2)
    seen = {label.split("+")[0] for label in labels if len(set(label.split("+")) - {CONTROL}) == 1} - {test, valid}
    expected = {CONTROL: "train"}
    for label in labels:
        parts = set(label.split("+")) - {CONTROL}
        split = "test" if test in parts else "valid" if valid in parts else "train"
        if split == "train" or len(parts) == 1 or n_seen is None or len(parts & seen) in n_seen:
            expected[label] = split
    splitter = combos(test=(test,), valid=(valid,), n_seen=n_seen)
    cells = screen_of(labels)
    if "test" not in expected.values():
        with pytest.raises(ConfigError, match="nothing would be held out"):
            splitter.split(cells)
        return
    assert splits_of(cells, splitter) == expected
    assert splits_of(screen_of(labels[::-1]), splitter) == expected
    table = splitter.table(cells).set_index("perturbation")
    assert set(table.index) == set(labels)
    for label, row in table.iterrows():
        parts = set(label.split("+")) - {CONTROL}
        assert (row["n_parts"], row["n_seen"], row["n_cells"]) == (len(parts), len(parts & seen), 2)
        assert row["split"] == expected.get(label, "")


@given(label_sets(), st.sampled_from([0.2, 0.5]), st.sampled_from([0.0, 0.3]), st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_fractions_of_fully_seen_combinations(labels, test_fraction, valid_fraction, seed):
    singles = {frozenset(label.split("+")) - {CONTROL} for label in labels}
    seen = {next(iter(parts)) for parts in singles if len(parts) == 1}
    full = [label for label in labels if len(set(label.split("+")) - {CONTROL}) > 1 and set(label.split("+")) <= seen]
    splitter = combos(test_combination_frac=test_fraction, valid_combination_frac=valid_fraction, seed=seed)
    numbers = [floor(len(full) * f) for f in (test_fraction, valid_fraction)]
    if not numbers[0] or (valid_fraction and not numbers[1]):
        with pytest.raises(ConfigError, match="nothing would be held out"):
            splitter.split(screen_of(labels))
        return
    found = splits_of(screen_of(labels), splitter)
    chosen = {name: [label for label, split in found.items() if split == name] for name in SPLITS}
    assert [len(chosen["test"]), len(chosen["valid"])] == numbers
    assert set(chosen["test"]) | set(chosen["valid"]) <= set(full)
    assert set(found) == {*labels, CONTROL}
    reversed_labels = ["+".join(reversed(label.split("+"))) for label in labels]
    again = splits_of(screen_of(reversed_labels), splitter)
    assert {frozenset(label.split("+")): split for label, split in again.items()} == {
        frozenset(label.split("+")): split for label, split in found.items()
    }


def test_counts_as_in_gears():
    labels = ["A+ctrl", "B+ctrl", "C+ctrl", "D+ctrl", "A+B", "C+A", "C+D", "B+A"]
    splitter = combos(test=("C", "D"))
    assert splitter.table(screen_of(labels)).set_index("perturbation")["n_seen"].to_dict() == {
        "A+ctrl": 1, "B+ctrl": 1, "C+ctrl": 0, "D+ctrl": 0, "A+B": 2, "B+A": 2, "C+A": 1, "C+D": 0,
    }  # fmt: skip
    found = splits_of(screen_of(labels), splitter)
    assert {label for label, split in found.items() if split == "test"} == {"C+ctrl", "D+ctrl", "C+A", "C+D"}
    found = splits_of(screen_of(labels), combos(test=("C", "D"), n_seen=(0,)))
    assert {label for label, split in found.items() if split == "test"} == {"C+ctrl", "D+ctrl", "C+D"}
    assert "C+A" not in found


def test_a_part_without_a_single_perturbation_is_not_seen():
    table = combos(test=("C",)).table(screen_of(["A", "C", "A+B"])).set_index("perturbation")
    assert table.loc["A+B"].to_list() == [2, 1, "train", 2]


def test_two_orders_of_a_combination_go_together():
    for seed in range(30):
        splitter = combos(test_combination_frac=0.5, seed=seed)
        found = splits_of(screen_of(["A", "B", "C", "A+B", "B+A", "A+C"]), splitter)
        assert found["A+B"] == found["B+A"]


def test_parts_of_a_label():
    assert parts_of("C_A_B", "_", Roles()) == ("A", "B", "C")
    assert parts_of("A+A", "+", Roles()) == ("A",)
    assert parts_of("ctrl+ctrl", "+", Roles(control_pert="ctrl")) == ()
    with pytest.raises(ConfigError, match=r"empty part in the label 'A\+'"):
        parts_of("A+", "+", Roles())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: combos(test=("a",)), LabelNotFoundError, "test: got 'a'.*Did you mean 'A'"),
        (lambda: combos(test=0.1), ConfigError, "no whole label of 3"),
        (lambda: combos(test=("A", "B", "C")), ConfigError, "hold out all of 3 labels"),
        (lambda: combos(test_combination_frac=0.5), ConfigError, "no whole combination of 1"),
    ],
)
def test_rules_that_cannot_be_applied_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make().split(screen_of(["A", "B", "C", "A+B"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": 1, "test": 0.5}, "separator: got 1"),
        ({"separator": "", "test": 0.5}, "separator: got ''"),
        ({}, "test: got None"),
        ({"test": 0.5, "n_seen": ()}, r"n_seen: got \(\)"),
        ({"test": 0.5, "n_seen": 1}, "n_seen: got 1"),
        ({"test_combination_frac": 1.5}, "test_combination_frac: got 1.5"),
        ({"test_combination_frac": 0.6, "valid_combination_frac": 0.6}, "expected at most 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_options_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        combos(**options)


def test_more_labels_do_not_move_the_choice_of_combinations():
    genes = [f"G{i}" for i in range(12)]
    labels = [*genes, *("+".join(pair) for pair in combinations(genes, 2))]
    chosen = []
    for more in ([], ["AA", "AA+G0"]):
        found = splits_of(screen_of([*more, *labels]), combos(test_combination_frac=0.25))
        chosen.append({label for label, split in found.items() if split == "test"})
    assert len(chosen[0]) == floor(66 * 0.25)
    assert len(chosen[0] ^ chosen[1]) <= 2
    assert np.unique([len(label) for label in chosen[0]]).size >= 1
