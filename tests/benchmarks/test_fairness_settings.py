"""The rows cover every pair of values, and statistics outside their ranges are named."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fairness_settings import (
    CROSSED,
    PAIRED,
    TOO_SMALL,
    covering,
    describe,
    loader_of,
    make_store,
    outside,
    pool_fits,
    scaled,
    settings,
)

FAIR = {"rms_z": 1.0, "correlation": 0.0, "served": 1.0, "worth": 16.0, "most_worth": 16.0, "share_variance": 1.0}
ROWS = settings()
WITH_16 = next(row for row in ROWS if row.k == 16 and row.strategy == "random")
MATCHED = next(row for row in ROWS if row.k == 1 and row.strategy == "batch")


def assert_covers(rows, crossed, paired):
    for values in itertools.product(*crossed.values()):
        assert any(all(row[name] == value for name, value in zip(crossed, values, strict=True)) for row in rows)
    factors = crossed | paired
    for a, b in itertools.combinations(factors, 2):
        pairs = {(row[a], row[b]) for row in rows}
        assert pairs == set(itertools.product(factors[a], factors[b])), (a, b)


factors = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(lambda sizes: [tuple(range(n)) for n in sizes])


@given(factors, factors)
def test_every_combination_or_pair_of_values_occurs(crossed, paired):
    crossed = {f"c{n}": values for n, values in enumerate(crossed)}
    paired = {f"p{n}": values for n, values in enumerate(paired)}
    assert_covers(covering(crossed, paired), crossed, paired)


def test_the_table_has_every_combination_and_pair_and_pools_that_do_not_fit():
    rows = [describe(row) for row in ROWS if row.memory_limit != TOO_SMALL]
    assert_covers(rows, CROSSED, PAIRED)
    assert 24 <= len(rows) <= 40
    assert {row.strategy for row in ROWS if row.memory_limit == TOO_SMALL} == {"random", "batch"}
    assert len({row.screen for row in ROWS}) == len(
        [screen for screen, _ in itertools.groupby(ROWS, lambda r: r.screen)]
    )


def test_fair_statistics_are_inside():
    assert outside(WITH_16, FAIR, fits=True) == []
    assert (
        outside(MATCHED, FAIR | {"rms_z": 0.4, "worth": 0.9, "most_worth": 1.0, "share_variance": None}, fits=True)
        == []
    )
    assert outside(WITH_16, FAIR | {"served": 0.5}, fits=False) == []
    assert outside(WITH_16, FAIR | {"worth": 13.0, "most_worth": 13.3}, fits=True) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rms_z": 1.2}, "rms z is 1.2, expected 0.9 to 1.15"),
        ({"rms_z": 0.8}, "rms z is 0.8, expected 0.9 to 1.15"),
        ({"correlation": -0.11}, "correlation is -0.11, expected -0.1 to 0.1"),
        ({"served": 0.94}, "controls served is 0.94, expected at least 0.95"),
        ({"worth": 15.0}, "worth is 15, expected at least 15.2"),
        ({"share_variance": 1.3}, "batch share variance is 1.3, expected at most 1.15"),
        ({"rms_z": float("nan")}, "rms z is nan, expected 0.9 to 1.15"),
    ],
)
def test_unfair_statistics_are_named(changes, words):
    assert outside(WITH_16, FAIR | changes, fits=True) == [words]


def test_sizes_are_scaled():
    assert scaled((100, 1000), 0.05) == (10, 50)


def test_a_pool_that_does_not_fit_is_recognised(tmp_path):
    small = next(row for row in ROWS if row.memory_limit == TOO_SMALL)
    store = make_store(tmp_path, small, scale=0.2)
    assert not pool_fits(loader_of(store, small))
    assert pool_fits(loader_of(store, WITH_16))
