"""Cells that share a name are found from hashes, also where the table of hashes tells them apart."""

import tracemalloc
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert.screen.cell_order import name_hashes
from lazypert.screen.cell_table import CellArrays
from lazypert.screen.groups import Groups
from lazypert.splits.equal_hashes import find_equal_hashes
from lazypert.splits.repeats import NOTHING, repeated_content, repeated_names
from tests.support.reports import Named, parts_of
from tests.support.screens import make_cells


def sets_of(repeats):
    """The rows of each set, as a set of tuples."""
    found = defaultdict(list)
    for row, number in zip(repeats.row.tolist(), repeats.number.tolist(), strict=True):
        found[number].append(row)
    assert sorted(found) == list(range(len(found)))
    return {tuple(sorted(rows)) for rows in found.values()}


def expected_sets(keys, in_split):
    found = defaultdict(list)
    for row, (key, inside) in enumerate(zip(keys, in_split, strict=True)):
        if inside:
            found[key].append(row)
    return {tuple(rows) for rows in found.values() if len(rows) > 1}


@st.composite
def named_cells(draw):
    n = draw(st.integers(1, 40))
    names = draw(st.lists(st.sampled_from([f"c{i}" for i in range(12)]), min_size=n, max_size=n))
    perts = draw(st.lists(st.sampled_from("AB"), min_size=n, max_size=n))
    datasets = draw(st.lists(st.sampled_from(["d1", "d2"]), min_size=n, max_size=n))
    return names, perts, datasets, draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))


@given(named_cells(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_all_repeats_are_found_whatever_their_runs(case, has_source):
    names, perts, datasets, split = case
    groups = make_cells(perturbation=perts, dataset=datasets, names=names, control=None).groups
    repeats = repeated_names(groups, parts_of(groups, split), Named(names).obs_names if has_source else None)
    assert sets_of(repeats) == expected_sets(names, [True] * len(names))
    assert [split[row] for row in repeats.row] == repeats.split.tolist()


def test_cells_in_no_split_are_not_compared():
    names = ["a", "a", "b", "b", "c", "c"]
    groups = make_cells(perturbation=list("AAABAB"), names=names, control=None).groups
    repeats = repeated_names(groups, parts_of(groups, [0, 1, -1, 1, 2, 0]), None)
    assert sets_of(repeats) == {(0, 1), (4, 5)}


@pytest.mark.parametrize("copies", [2, 3, 4, 5, 900])
def test_a_name_may_occur_any_number_of_times_in_a_run(copies):
    names = ["x"] * copies + [f"c{i}" for i in range(50)] + ["y"] * copies
    groups = make_cells(perturbation=["A"] * len(names), names=names, control=None).groups
    assert len(np.unique(groups.cells.hashes(np.arange(len(names))))) == len(names)
    repeats = repeated_names(groups, parts_of(groups, [0] * len(names)), None)
    assert sets_of(repeats) == {tuple(range(copies)), tuple(range(copies + 50, 2 * copies + 50))}


def test_cells_that_were_told_apart_twice_are_found():
    """Grouping by other columns starts from hashes that differ already."""
    names = ["x"] * 4
    first = make_cells(perturbation=list("AABB"), names=names, control=None).groups
    hashes = first.cells.hashes(np.arange(4))
    codes = {"perturbation": np.zeros(4, np.int32)}
    groups = Groups.from_codes(codes, {"perturbation": np.array(["A"])}, first.roles, hashes)
    assert len(np.unique(groups.cells.hashes(np.arange(4)))) > len(np.unique(hashes))
    assert sets_of(repeated_names(groups, parts_of(groups, [0] * 4), None)) == {(0, 1, 2, 3)}


def test_different_names_that_share_a_hash_are_told_apart_by_a_source():
    names = [f"c{i}" for i in range(8)]
    groups = make_cells(perturbation=["A"] * 8, names=names, control=None).groups
    table = groups.cells.hashes(np.arange(8))
    table[[0, 1, 2]] = table[0]
    object.__setattr__(groups, "cells", CellArrays(None, table))
    parts = parts_of(groups, [0, 1, 2] + [0] * 5)
    assert sets_of(repeated_names(groups, parts, None)) == {(0, 1, 2)}
    assert len(repeated_names(groups, parts, Named(names).obs_names).row) == 0
    assert sets_of(repeated_names(groups, parts, Named(["c0", "c1", "c0", *names[3:]]).obs_names)) == {(0, 2)}


def test_only_names_that_share_a_hash_are_read(monkeypatch):
    monkeypatch.setattr("lazypert.splits.repeats._AT_ONCE", 7)
    names = [f"c{i % 95}" for i in range(100)]
    groups = make_cells(perturbation=["A", "B"] * 50, names=names, control=None).groups
    source = Named(names)
    assert sets_of(repeated_names(groups, parts_of(groups, [0, 1] * 50), source.obs_names)) == {
        (i, i + 95) for i in range(5)
    }
    assert source.n_read == 10


def test_the_order_of_sets_depends_on_names_only():
    names = np.array([f"c{i % 30}" for i in range(60)])
    found = []
    for order in (np.arange(60), np.random.default_rng(0).permutation(60)):
        groups = make_cells(perturbation=["A"] * 60, names=names[order], control=None).groups
        repeats = repeated_names(groups, parts_of(groups, [0] * 60), None)
        found.append([names[order][row] for row in repeats.row])
    assert found[0] == found[1]


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_hashes_are_followed_from_the_first_to_the_last(at_once, monkeypatch):
    monkeypatch.setattr("lazypert.splits.equal_hashes._HASHES_AT_ONCE", at_once)
    groups = make_cells(perturbation=["A"] * 9, names=["x"] * 6 + ["a", "b", "c"], control=None).groups
    hashes = groups.cells.hashes(np.arange(9))

    def find(hashes):
        return find_equal_hashes(lambda: iter([hashes[:4], hashes[4:]]), len(hashes), have_later=True)

    equal, later, first = find(np.append(hashes, hashes[8:]))
    assert equal.tolist() == [hashes[8]]
    assert set(first.tolist()) == set(name_hashes(["x"]).tolist())
    assert set(later.tolist()) == set(hashes.tolist()) - set(name_hashes(["x", "a", "b", "c"]).tolist())
    assert all(len(found) == 0 for found in find(hashes[:0]))


def test_equal_content_is_found_and_nothing_is_left_out():
    content = np.array([5, 7, 5, NOTHING, NOTHING, 9, 7, 5], dtype=np.uint64)
    groups = make_cells(perturbation=list("AABBAABB"), control=None).groups
    repeats = repeated_content(groups, parts_of(groups, [0, 1, 2, 0, 1, 2, 0, -1]), content)
    assert sets_of(repeats) == {(0, 2), (1, 6)}


def test_no_cells_have_no_repeats():
    groups = make_cells(perturbation=["A"], control=None).groups
    assert len(repeated_names(groups, parts_of(groups, [-1]), Named(["c"]).obs_names).row) == 0


@pytest.mark.parametrize(("n_copies", "bytes_per_cell"), [(0, 8), (1, 90)], ids=["all distinct", "all twice"])
def test_memory_is_a_few_arrays_of_8_bytes_per_cell(monkeypatch, n_copies, bytes_per_cell):
    monkeypatch.setattr("lazypert.splits.equal_hashes._HASHES_AT_ONCE", 100_000)
    monkeypatch.setattr("lazypert.splits.digest._CELLS_AT_ONCE", 32_768)
    n = 1_000_000
    hashes = np.random.default_rng(0).integers(1, 2**63, n).astype(np.uint64)
    if n_copies:
        hashes[n // 2 :] = hashes[: n // 2]
    codes = {"perturbation": np.repeat([0, 1], n // 2)}
    roles = make_cells(perturbation=["A"], control=None).groups.roles
    groups = Groups.from_codes(codes, {"perturbation": np.array(["A", "B"])}, roles, hashes)
    table = np.concatenate([np.sort(hashes[: n // 2]), np.sort(hashes[n // 2 :])])
    object.__setattr__(groups, "row_order", None)
    object.__setattr__(groups, "cells", CellArrays(None, table))
    parts = [groups.rows(np.array([True, False])), groups.rows(np.array([False, True])), groups.rows(np.zeros(2, bool))]
    repeated_names(groups, parts, None)  # compiles
    tracemalloc.start()
    found = repeated_names(groups, parts, None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.row) == n * n_copies
    assert peak / n < bytes_per_cell
