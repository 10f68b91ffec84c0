"""Cells in two splits are counted as by comparing every cell with every other one."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert.screen.rows import Rows
from lazypert.splits.names import SPLITS
from lazypert.splits.same_cells import find_same_cells
from tests.support.reports import PAIRS, Named, parts_of
from tests.support.screens import make_cells


def found_by(groups, parts, source=None, content=None):
    return {
        (finding.kind, finding.level, finding.splits): (finding.n_cells, finding.n_labels)
        for finding in find_same_cells(groups, parts, source, content)
    }


def related(kind, one, other):
    same_name, same_dataset = one["name"] == other["name"], one["dataset"] == other["dataset"]
    return {
        "same_name": same_name and same_dataset,
        "same_name_across_datasets": same_name and not same_dataset,
        "same_content": not same_name and one.get("content") == other.get("content") != 0,
    }[kind]


def by_brute_force(cells, kinds):
    """Compare all pairs of cells, as the findings are defined."""
    expected = {}
    for kind in kinds:
        relatives = {i: [j for j in range(len(cells)) if j != i and related(kind, cells[i], cells[j])]
                     for i in range(len(cells))}  # fmt: skip
        votes = defaultdict(list)
        for i, others in relatives.items():
            if others:
                alike = [j for j in others if cells[i]["pert"] == cells[j]["pert"]
                         or ("content" in cells[i] and cells[i]["content"] == cells[j]["content"] != 0)]  # fmt: skip
                votes[cells[i]["dataset"]].append(bool(alike))
        for a, b in [*PAIRS, *((name, name) for name in SPLITS)]:
            by_level = defaultdict(list)
            for i, others in relatives.items():
                of_split = {cells[j]["split"] for j in others}
                if (cells[i]["split"] == a and b in of_split) or (cells[i]["split"] == b and a in of_split):
                    is_same = kind == "same_content" or np.mean(votes[cells[i]["dataset"]]) >= 0.5
                    by_level["note" if a == b else "error" if is_same else "warning"].append(i)
            for level, members in by_level.items():
                key = "content" if kind == "same_content" else "name"
                splits = (a,) if a == b else (a, b)
                expected[kind, level, splits] = len(members), len({cells[i][key] for i in members})
    return expected


@st.composite
def cells_of_two_datasets(draw):
    n = draw(st.integers(1, 30))
    columns = {
        "name": [f"c{i}" for i in range(draw(st.integers(1, 12)))],
        "dataset": ["d1", "d2", "d3"],
        "pert": ["A", "B", "C"][: draw(st.integers(1, 3))],
        "content": [0, 1, 2, 3, 4],
        "split": [*SPLITS, None],
    }
    drawn = {key: draw(st.lists(st.sampled_from(values), min_size=n, max_size=n)) for key, values in columns.items()}
    return [dict(zip(drawn, values, strict=True)) for values in zip(*drawn.values(), strict=True)]


def screen_of(cells):
    columns = {key: [cell[key] for cell in cells] for key in cells[0]}
    groups = make_cells(
        perturbation=columns["pert"], dataset=columns["dataset"], names=columns["name"], control=None
    ).groups
    split = [SPLITS.index(name) if name else -1 for name in columns["split"]]
    return (
        groups,
        parts_of(groups, split),
        Named(columns["name"]).obs_names,
        np.array(columns["content"], dtype=np.uint64),
    )


@given(cells_of_two_datasets(), st.sampled_from([1, 5, 10**6]))
@settings(max_examples=80, deadline=None)
def test_findings_are_those_of_comparing_all_pairs(cells, at_once):
    groups, parts, source, content = screen_of(cells)
    inside = [cell for cell in cells if cell["split"]]
    without = [{key: value for key, value in cell.items() if key != "content"} for cell in inside]
    names = ("same_name", "same_name_across_datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lazypert.splits.same_cells._CELLS_AT_ONCE", at_once)
        assert found_by(groups, parts) == by_brute_force(without, names)
        assert found_by(groups, parts, source) == by_brute_force(without, names)
        assert found_by(groups, parts, source, content) == by_brute_force(inside, (*names, "same_content"))


def test_a_row_in_two_splits_is_the_same_cell():
    groups = make_cells(perturbation=["A"] * 10, control=None).groups
    parts = [Rows([0], [6]), Rows([], []), Rows([4], [10])]
    assert found_by(groups, parts) == {("same_row", "error", ("train", "test")): (4, 2)}


def test_a_row_that_is_selected_twice_weighs_more():
    groups = make_cells(perturbation=["A"] * 4, control=None).groups
    selected = type(groups).from_codes(
        {"perturbation": np.zeros(5, np.int32)},
        groups.labels,
        groups.roles,
        groups.cells.hashes(np.array([0, 1, 1, 2, 3])),
        rows=np.array([0, 1, 1, 2, 3]),
        cells=groups.cells,
    )
    parts = [selected.rows(np.array([True])), Rows([], []), Rows([], [])]
    assert found_by(selected, parts) == {("same_row", "note", ("train",)): (2, 1)}


def test_barcodes_that_were_used_again_are_no_error():
    """Two screens with the same barcodes by chance: their labels agree as chance has it."""
    rng = np.random.default_rng(0)
    names, perts = [f"c{i}" for i in range(500)] * 2, rng.choice(list("ABCDE"), 1000)
    cells = make_cells(perturbation=perts, dataset=["d1"] * 500 + ["d2"] * 500, names=names, control=None)
    split = [0] * 500 + [2] * 500
    found = found_by(cells.groups, parts_of(cells.groups, split))
    assert found == {("same_name_across_datasets", "warning", ("train", "test")): (1000, 500)}


def test_a_screen_listed_twice_is_an_error_even_if_another_one_used_its_barcodes():
    rng = np.random.default_rng(0)
    once, other = rng.choice(list("ABCDE"), 300), rng.choice(list("ABCDE"), 100)
    cells = make_cells(
        perturbation=[*once, *once, *other],
        dataset=["d1"] * 300 + ["d2"] * 300 + ["d3"] * 100,
        names=[f"c{i}" for i in [*range(300), *range(300), *range(100)]],
        control=None,
    )
    split = [0] * 300 + [2] * 400
    found = found_by(cells.groups, parts_of(cells.groups, split))
    assert found["same_name_across_datasets", "error", ("train", "test")] == (600, 300)
    assert found["same_name_across_datasets", "warning", ("train", "test")] == (100, 100)


def test_equal_counts_decide_where_labels_do_not():
    names = [f"c{i}" for i in range(50)] * 2
    perts = ["A"] * 50 + ["a"] * 50
    groups = make_cells(perturbation=perts, dataset=["d1"] * 50 + ["d2"] * 50, names=names, control=None).groups
    parts = parts_of(groups, [0] * 50 + [2] * 50)
    content = np.arange(1, 101, dtype=np.uint64)
    assert ("same_name_across_datasets", "warning", ("train", "test")) in found_by(
        groups, parts, Named(names).obs_names, content
    )
    content[50:] = content[:50]
    found = found_by(groups, parts, Named(names).obs_names, content)
    assert found == {("same_name_across_datasets", "error", ("train", "test")): (100, 50)}


def test_examples_name_the_cells():
    names = ["a", "b", "a", "c"]
    groups = make_cells(perturbation=["A"] * 4, dataset=["d1", "d1", "d2", "d2"], names=names, control=None).groups
    parts, content = parts_of(groups, [0, 0, 2, 2]), np.array([1, 2, 3, 2], dtype=np.uint64)
    with_names = {f.kind: f.examples for f in find_same_cells(groups, parts, Named(names).obs_names, content)}
    assert with_names == {"same_name_across_datasets": ("a in d1 and d2",), "same_content": ("b = c",)}
    without = {f.kind: f.examples for f in find_same_cells(groups, parts, None, None)}
    assert without == {"same_name_across_datasets": ("row 0 = row 2 in d1 and d2",)}
