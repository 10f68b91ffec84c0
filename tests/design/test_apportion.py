"""Runs are cut in exact proportions: totals are exact, and every run gets its share, rounded up or down."""

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert.design.apportion import apportion, cut_runs, exact, floor_product, subsample
from lazypert.screen.rows import Rows
from tests.support.screens import random_cells


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


@given(st.integers(0, 200), st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_cuts_are_exact_and_disjoint(n, seed):
    groups = random_cells(n + 1, seed).groups
    fractions = [exact(0.57), exact(0.9), Fraction(1)]
    rows = cut_runs(groups, np.ones(len(groups.start), bool), fractions, {}, seed)
    ends = [floor((n + 1) * fraction) for fraction in fractions]
    assert [len(split) for split in rows] == [ends[0], ends[1] - ends[0], ends[2] - ends[1]]
    assert sorted(np.concatenate([np.asarray(split) for split in rows])) == list(range(n + 1))


def test_undivided_runs_go_to_one_split():
    groups = random_cells(200, 0).groups
    is_control = groups.is_control
    train, valid, test = cut_runs(groups, ~is_control, [exact(0.5), exact(0.5), Fraction(1)], {"train": is_control}, 0)
    assert set(groups.rows(is_control)) <= set(train)
    assert len(valid) == 0
    assert len(train) + len(test) == 200


@pytest.mark.parametrize("fraction", [0.1, 0.29, 1 / 3], ids=str)
def test_products_are_exact_beyond_64_bits(fraction):
    totals = np.array([100, 10**12, 2**62])
    assert floor_product(totals, exact(fraction)).tolist() == [floor(int(n) * exact(fraction)) for n in totals]


@given(st.lists(st.integers(1, 20), max_size=6), st.sampled_from([0.01, 0.3, 0.5, 1.0]))
@settings(max_examples=30, deadline=None)
def test_subsamples_round_up(lengths, fraction):
    stops = np.cumsum(lengths, dtype=int)
    rows = Rows(stops - lengths, stops)
    kept = subsample(rows, fraction)
    assert len(kept) == ceil(sum(lengths) * exact(fraction))
    assert set(kept) <= set(rows)
