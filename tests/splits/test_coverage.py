"""Cells are in some split or in none, whatever the order of intervals, and also if splits overlap."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert.screen.rows import Rows
from lazypert.splits.coverage import covered, uncovered
from tests.support.screens import random_cells


@given(
    st.integers(0, 100),
    st.lists(st.lists(st.tuples(st.integers(0, 39), st.integers(0, 10)), max_size=5), min_size=1, max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_every_position_is_in_one_of_both_once(seed, intervals):
    groups = random_cells(40, seed).groups
    parts = [Rows([s for s, _ in part], [min(40, s + n) for s, n in part], groups.row_order) for part in intervals]
    expected = {row for rows in parts for row in rows}
    inside, outside = covered(groups, parts)[:], uncovered(groups, parts)[:]
    assert len(inside) == len(set(inside))
    assert set(inside) == expected
    assert sorted([*inside, *outside]) == np.arange(40).tolist()
