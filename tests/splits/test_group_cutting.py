"""Groups are cut at exact totals: every group gets its share, rounded up or down, as a random sample of its cells."""

from fractions import Fraction
from math import ceil, floor
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert.screen.concat_groups import concat_groups
from lazypert.screen.groups import Groups
from lazypert.splits.fractions import exact
from lazypert.splits.group_cutting import UNIT_SIZE, apportion, cut_groups
from tests.support.screens import CONTROL, make_cells, random_cells

GOLDEN_CUT = [9, 17, 19, 26, 29]


@st.composite
def sizes_and_count(draw):
    sizes = np.array(draw(st.lists(st.integers(0, 50), min_size=1, max_size=12)))
    return sizes, draw(st.integers(0, int(sizes.sum())))


@given(sizes_and_count(), st.integers(0, 2**63 - 1), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_every_run_gets_its_share(case, start, random):
    sizes, count = case
    run_order = np.array(random.sample(range(len(sizes)), len(sizes)))
    shares = apportion(sizes, count, run_order, start)
    assert shares.sum() == count
    for run in range(len(sizes)):
        share = Fraction(count * int(sizes[run]), max(1, int(sizes.sum())))
        assert floor(share) <= shares[run] <= ceil(share)
    # Consecutive runs get their share together, too.
    for first in range(len(sizes)):
        together = run_order[first:]
        share = Fraction(count * int(sizes[together].sum()), max(1, int(sizes.sum())))
        assert floor(share) <= shares[together].sum() <= ceil(share)


@given(st.integers(0, 200), st.integers(0, 20), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_cuts_are_exact_and_disjoint(n, seed, n_datasets):
    groups = random_cells(n + 1, seed, n_datasets=n_datasets).groups
    totals = [floor((n + 1) * fraction) for fraction in (exact(0.57), exact(0.9), Fraction(1))]
    parts = cut_groups(groups, np.ones(len(groups.start), bool), totals, seed)
    assert np.cumsum([len(part) for part in parts]).tolist() == totals
    assert sorted(np.concatenate([np.asarray(part) for part in parts])) == list(range(n + 1))


def test_undivided_runs_go_to_one_part():
    groups = random_cells(200, 0).groups
    is_control = groups.is_control
    n_divided = int(groups.sizes[~is_control].sum())
    train, valid, test = cut_groups(groups, ~is_control, [n_divided // 2] * 2 + [n_divided], 0, [is_control])
    assert set(groups.rows(is_control)) <= set(train)
    assert len(valid) == 0
    assert len(train) + len(test) == 200


def test_shares_are_exact_beyond_64_bits():
    sizes = np.array([10**9, 2 * 10**9, 10**9 + 1])
    shares = apportion(sizes, int(sizes.sum()) // 3, np.arange(3), 2**62)
    assert shares.sum() == int(sizes.sum()) // 3
    assert (np.abs(shares - sizes / 3) < 1).all()


def names_of(cells, names, part):
    return {names[row] for row in part}


@pytest.mark.parametrize("seed", [0, 7])
def test_the_same_names_go_to_the_same_part_whatever_the_order_batches_and_files(seed):
    n = 3000
    rng = np.random.default_rng(seed)
    names = np.array([f"AAAC{i}-1" for i in range(n)])
    perturbation = np.array([CONTROL, "A", "B"], dtype=object)[rng.choice(3, n, p=[0.6, 0.38, 0.02])]
    variants = [
        {"batch": np.array([f"b{i % 7}" for i in range(n)])},
        {"batch": np.array(["b"] * n), "order": rng.permutation(n)},
        {"dataset": np.array(["d1", "d2", "d3"], dtype=object)[rng.integers(0, 3, n)], "order": rng.permutation(n)},
    ]
    found = []
    for variant in variants:
        order = variant.pop("order", np.arange(n))
        columns = {axis: column[order] for axis, column in {"perturbation": perturbation, **variant}.items()}
        cells = make_cells(names=names[order], **columns)
        groups = cells.groups
        parts = cut_groups(groups, groups.ids >= 0, [n // 2, n * 3 // 5, n], 5)
        found.append([names_of(cells, names[order], part) for part in parts])
    assert found[0] == found[1] == found[2]


def test_screens_that_are_concatenated_are_cut_as_one():
    n, half = 2000, 900
    names = [f"cell{i}" for i in range(n)]
    whole = make_cells(perturbation=["A"] * n, dataset=["d1"] * half + ["d2"] * (n - half), control=None)
    parts = [
        make_cells(
            perturbation=["A"] * len(rows), dataset=[name] * len(rows), names=[names[r] for r in rows], control=None
        )
        for name, rows in (("d1", range(half)), ("d2", range(half, n)))
    ]
    united = concat_groups([part.groups for part in parts], [half, n - half])
    for groups in (whole.groups, united):
        chosen = [set(part) for part in cut_groups(groups, groups.ids >= 0, [n // 10, n], 3)]
        assert len(chosen[0]) == n // 10
        if groups is whole.groups:
            expected = chosen
    assert chosen == expected


def test_cells_that_occur_twice_are_cut_exactly():
    made = make_cells(perturbation=["A"] * 300, dataset=[f"d{i % 2}" for i in range(300)], control=None).groups
    rows = np.random.default_rng(0).integers(0, 300, 600)
    codes = {"perturbation": np.zeros(600, np.int32), "dataset": rows % 2}
    groups = Groups.from_codes(codes, made.labels, made.roles, made.cells.hashes(rows), rows=rows, cells=made.cells)
    parts = cut_groups(groups, groups.ids >= 0, [480, 540, 600], 1)
    assert [len(part) for part in parts] == [480, 60, 60]
    assert sorted(np.concatenate([part[:] for part in parts])) == sorted(rows)


def test_large_groups_are_cut_into_units_that_are_stored_together():
    cells = make_cells(perturbation=["A"] * 1600, control=None)
    part = cut_groups(cells.groups, cells.groups.ids >= 0, [160, 1600], 1)[0]
    assert len(part.starts) <= 160 // UNIT_SIZE + 1
    assert (part.stops - part.starts).min() == UNIT_SIZE or len(part.starts) < 10


def test_small_groups_are_cut_in_many_ways():
    cells = make_cells(perturbation=["A"] * 40, control=None)
    found = [frozenset(cut_groups(cells.groups, cells.groups.ids >= 0, [8, 40], seed)[0]) for seed in range(50)]
    assert len(set(found)) >= 45  # of 2,240 ways


def test_seeds_are_independent():
    """The overlap of two seeds' parts, and the mean over a part, vary as those of simple random samples."""
    n, share, n_seeds = 1000, 100, 200
    cells = make_cells(perturbation=["A"] * n + ["B"] * n, control=None)
    groups = cells.groups
    value = np.random.default_rng(0).normal(size=2 * n)
    masks = np.zeros((n_seeds, 2 * n), dtype=bool)
    for seed in range(n_seeds):
        masks[seed, np.asarray(cut_groups(groups, groups.ids >= 0, [2 * share, 2 * n], seed)[0])] = True
    overlap = (masks.astype(int) @ masks.T.astype(int))[np.triu_indices(n_seeds, 1)]
    assert overlap.mean() == pytest.approx(2 * share * share / n, rel=0.03)
    means = np.array([value[mask].mean() for mask in masks])
    expected = value.var() / (2 * share) * (1 - share / n)
    assert 0.65 < means.var() / expected < 1.5
    assert abs(means.mean() - value.mean()) < 4 * np.sqrt(expected / n_seeds)


def test_every_cell_is_equally_likely_to_be_in_a_part():
    cells = make_cells(perturbation=["A"] * 700 + ["B"] * 50, control=None)
    hits = np.zeros(750)
    for seed in range(400):
        hits[np.asarray(cut_groups(cells.groups, cells.groups.ids >= 0, [75, 750], seed)[0])] += 1
    assert hits.sum() == 75 * 400
    assert (np.abs(hits - 40) < 6 * np.sqrt(400 * 0.1 * 0.9)).all()


def test_many_groups_are_cut_chunk_by_chunk(monkeypatch):
    groups = random_cells(3000, 0, n_perts=60).groups
    arguments = (groups, groups.ids >= 0, [1000, 1500, 3000], 2)
    expected = [part[:].tolist() for part in cut_groups(*arguments)]
    monkeypatch.setattr("lazypert.splits.group_cutting._UNITS_AT_ONCE", 100)
    assert [part[:].tolist() for part in cut_groups(*arguments)] == expected


def test_golden_cut():
    """Which cells validate must never change for a given seed."""
    cells = SimpleNamespace(groups=make_cells(perturbation=["A"] * 30, control=None).groups)
    assert sorted(cut_groups(cells.groups, cells.groups.ids >= 0, [5, 30], 42)[0]) == GOLDEN_CUT
