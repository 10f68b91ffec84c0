"""Shared labels, combinations and borrowed controls, compared with loops over cells and labels."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert.design.control_draws import DrawnCells
from lazypert.design.control_pools import control_pools
from lazypert.errors import ConfigError
from lazypert.splits.leaks import borrowed_controls
from lazypert.splits.names import SPLITS
from tests.support.reports import PAIRS, findings, split_by_hand
from tests.support.screens import CONTROL, make_cells, random_cells

SHARED = {
    "shared_perturbation": ["perturbation"],
    "shared_cell_type": ["cell_type"],
    "shared_batch": ["dataset", "batch"],
    "shared_dataset": ["dataset"],
}


def random_split(n, seed, shares=(0.5, 0.2, 0.2, 0.1)):
    return np.random.default_rng(seed).choice([0, 1, 2, -1], n, p=shares)


@given(st.integers(1, 60), st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([CONTROL, None]))
@settings(max_examples=40, deadline=None)
def test_shared_labels_are_those_of_single_cells(n, seed, n_datasets, control):
    cells = random_cells(n, seed, n_datasets=n_datasets, missing=0.1, control=control)
    if control not in {None, *cells.groups.labels["perturbation"]}:
        return
    split = random_split(n, seed)
    found = split_by_hand(cells.groups, split).report()
    expected = {}
    for kind, axes in SHARED.items():
        if kind == "shared_dataset" and len(set(cells.frame["dataset"])) == 1:
            continue
        rows = cells.frame[cells.frame[axes].notna().all(axis=1)]
        rows = rows[rows["perturbation"] != control] if kind == "shared_perturbation" and control else rows
        labels = rows[axes].apply(tuple, axis=1) if len(rows) else rows["batch"]
        for a, b in PAIRS:
            of_a, of_b = (labels[split[rows.index] == SPLITS.index(name)] for name in (a, b))
            both = set(of_a) & set(of_b)
            if both:
                expected[kind, f"{a}, {b}"] = sum(label in both for label in [*of_a, *of_b]), len(both)
    shared = found.leaks[found.leaks["kind"].str.startswith("shared_") & (found.leaks["kind"] != "shared_controls")]
    assert {(r.kind, r.splits): (r.n_cells, r.n_labels) for r in shared.itertuples()} == expected
    assert set(shared["level"]) <= {"note"}


@given(st.integers(5, 80), st.integers(0, 10**6), st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_borrowed_controls_are_those_that_pools_give(n, seed, n_datasets):
    """Control pools and this package state the same rule, without importing one another."""
    groups = random_cells(n, seed, n_types=3, n_datasets=n_datasets, missing=0.05).groups
    if CONTROL not in groups.labels["perturbation"]:
        return
    splits = split_by_hand(groups, np.where(groups.expand(groups.ids) < 0, -1, random_split(n, seed)))
    run_of = groups.expand(np.arange(len(groups.start)))
    per_run = [np.bincount(run_of[splits[name][:]], minlength=len(groups.start)) for name in SPLITS]
    for name, own in zip(SPLITS, per_run, strict=True):
        borrowed = np.flatnonzero(borrowed_controls(groups, per_run[0], own)[run_of])
        borrowed = set(borrowed) & set(splits["train"])
        assert borrowed == served(groups, splits, name) & set(splits["train"]) - set(splits[name])


def served(groups, splits, name):
    """All controls that cells of a split may get: as many as its pool has are drawn for each cell."""
    pools, rows = control_pools(groups, by_batch=False, splits=splits, name=name), splits[name]
    positions, found = rows.positions(np.arange(len(rows))), set()
    for position, row in zip(positions, rows[:], strict=True):
        run = groups.run_of(np.array([position]))
        size = int(pools.sizes[run[0]])
        if size:
            cell = DrawnCells(np.array([position]), np.array([row]), run)
            found |= set(pools.controls[pools.control_index(cell, size, (0,))[0]])
    return found


def combination_report(train, test, separator="+", control=CONTROL, valid=()):
    """Findings about combinations, for splits with 2 cells of each label."""
    labels = [label for part in (train, valid, test) for label in part for _ in range(2)]
    split = [number for number, part in enumerate((train, valid, test)) for _ in part for _ in range(2)]
    groups = make_cells(perturbation=labels, control=control).groups
    report = split_by_hand(groups, split).report(separator=separator)
    rows = report.leaks[report.leaks["kind"].str.startswith("combination")]
    return {(row.kind, row.splits): (row.n_cells, row.n_labels, row.examples) for row in rows.itertuples()}


INSIDE = ("combination_with_held_out_perturbation", "train, test")
PARTS = ("combination_of_seen_parts", "train, test")


class TestCombinations:
    def test_a_part_of_a_training_combination_is_not_held_out(self):
        found = combination_report([CONTROL, "B", "A+B"], ["A"])
        assert found == {INSIDE: (2, 1, ("A in A+B",))}

    def test_the_order_of_parts_does_not_matter(self):
        found = combination_report([CONTROL, "C", "B+A"], ["A+B"])
        assert found[INSIDE] == (2, 1, ("A+B in B+A",))

    def test_a_combination_with_the_control_is_its_other_part(self):
        assert combination_report([f"A+{CONTROL}", CONTROL], ["A"]) == {INSIDE: (2, 1, (f"A in A+{CONTROL}",))}
        assert combination_report([f"B+{CONTROL}", CONTROL], [f"A+{CONTROL}"]) == {}

    def test_a_control_label_with_the_separator_is_not_a_combination(self):
        assert combination_report(["A", "B+C", "A+B"], ["A"], control="A+B") == {}

    def test_empty_parts_are_refused(self):
        with pytest.raises(ConfigError, match=r"empty part in the label 'A[+]'"):
            combination_report([CONTROL, "B", "A+"], ["A"])

    def test_new_combinations_of_known_parts_are_a_note(self):
        found = combination_report([CONTROL, "A", "B"], ["A+B", "A+C", "D+E"])
        assert found == {PARTS: (4, 2, ("A+B (2 of 2 parts)", "A+C (1 of 2 parts)"))}

    def test_a_perturbation_of_both_splits_is_not_held_out(self):
        assert combination_report([CONTROL, "A", "A+B"], ["A", "A+B"]) == {}

    def test_validation_is_compared_with_test_too(self):
        found = combination_report([CONTROL, "C"], ["A"], valid=["A+B"])
        assert found == {("combination_with_held_out_perturbation", "valid, test"): (2, 1, ("A in A+B",))}

    def test_nothing_is_guessed_without_a_separator(self):
        assert combination_report([CONTROL, "B", "A+B"], ["A"], separator=None) == {}

    @pytest.mark.parametrize("separator", ["", 5, "|"])
    def test_a_separator_that_cannot_be_right_is_refused(self, separator):
        with pytest.raises(ConfigError, match="separator: got"):
            combination_report([CONTROL, "B", "A+B"], ["A"], separator=separator)

    @given(
        st.lists(st.sets(st.sampled_from("ABCD"), min_size=1, max_size=3), min_size=2, max_size=12), st.integers(0, 99)
    )
    @settings(max_examples=40, deadline=None)
    def test_findings_are_those_of_comparing_all_labels(self, sets, seed):
        rng = np.random.default_rng(seed)
        labels = ["+".join(rng.permutation(sorted(parts))) for parts in sets] + ["Y+Z"]
        split = rng.choice([0, 1, 2], len(labels))
        groups = make_cells(perturbation=labels, control=None).groups
        found = findings(split_by_hand(groups, split).report(separator="+"))
        expected = defaultdict(int)
        cells = [(label, SPLITS[number]) for label, number in zip(labels, split, strict=True)]
        for a, b in PAIRS:
            of_a, of_b = ({label for label, of in cells if of == name} for name in (a, b))
            held_out = {label: set(label.split("+")) for label in of_b - of_a}
            around = {label for label in of_a if any(parts <= set(label.split("+")) for parts in held_out.values())}
            known = {part for label in of_a for part in label.split("+")}
            partly = {label for label, parts in held_out.items() if len(parts) > 1 and known & parts}
            for kind, level, chosen, name in (
                ("combination_with_held_out_perturbation", "warning", around, a),
                ("combination_of_seen_parts", "note", partly, b),
            ):
                n = sum(label in chosen and of == name for label, of in cells)
                if n:
                    expected[kind, level, f"{a}, {b}"] = n
        assert {key: n for key, n in found.items() if key[0].startswith("combination")} == expected
