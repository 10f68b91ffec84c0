"""Rows behaves like the integer array that it represents, and never joins intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert.screen.rows import Rows, count_distinct


@st.composite
def rows_and_array(draw):
    """Disjoint intervals in any order, some empty, some adjacent; and the array of their rows."""
    lengths = draw(st.lists(st.integers(0, 6), max_size=8))
    gaps = draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths)))
    stops = np.cumsum(np.array(lengths) + np.array(gaps)).astype(int) if lengths else np.zeros(0, int)
    starts = stops - np.array(lengths, dtype=int)
    interval_order = np.array(draw(st.permutations(range(len(lengths)))), dtype=int)
    starts, stops = starts[interval_order], stops[interval_order]
    n = int(max(stops, default=0)) + 2
    row_order = np.array(draw(st.permutations(range(n))), dtype=np.int32) if draw(st.booleans()) else None
    positions = np.array([p for a, b in zip(starts, stops, strict=True) for p in range(a, b)], dtype=np.int64)
    array = positions if row_order is None else row_order[positions].astype(np.int64)
    return Rows(starts, stops, row_order), array, n


cases = settings(max_examples=50, deadline=None)


@given(rows_and_array())
@cases
def test_equals_the_array(case):
    rows, array, _ = case
    assert len(rows) == len(array)
    assert np.asarray(rows).dtype == np.int64
    for read in (np.asarray(rows), rows[:], np.array(list(rows), dtype=np.int64)):
        assert read.tolist() == array.tolist()
    assert np.asarray(rows, dtype="f4").dtype == np.float32
    assert f"{len(array):,} rows" in repr(rows)


@given(rows_and_array(), st.data())
@cases
def test_is_indexed_like_the_array(case, data):
    rows, array, _ = case
    slices = st.slices(len(array)) if len(array) else st.just(slice(None))
    index = data.draw(
        st.one_of(
            slices,
            st.lists(st.integers(-len(array), max(len(array) - 1, 0)), max_size=5 if len(array) else 0),
            st.lists(st.booleans(), min_size=len(array), max_size=len(array)).map(np.array),
        )
    )
    if isinstance(index, np.ndarray):
        index = index.astype(bool)
    expected = array[np.array(index, dtype=int) if isinstance(index, list) else index]
    assert rows[index].tolist() == expected.tolist()
    assert rows[index].dtype == np.int64
    for i in range(-len(array), len(array)):
        assert rows[i] == array[i]
        assert type(rows[i]) is int


@given(rows_and_array(), st.data())
@cases
def test_keep_applies_the_mask_within_intervals(case, data):
    rows, array, n = case
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    kept = rows.keep(mask)
    assert np.asarray(kept).tolist() == array[mask[array]].tolist()
    for start, stop in zip(kept.starts, kept.stops, strict=True):
        assert np.sum((rows.starts <= start) & (stop <= rows.stops)) == 1


def test_keep_does_not_join_adjacent_intervals():
    kept = Rows([0, 5], [5, 9]).keep(np.ones(9, bool))
    assert (kept.starts.tolist(), kept.stops.tolist()) == ([0, 5], [5, 9])


def test_keep_works_across_its_internal_steps():
    n = 2_200_000
    mask = np.ones(n, bool)
    mask[[7, 1_048_575, 1_048_576, n - 1]] = False
    kept = Rows([0], [n]).keep(mask)
    assert (np.asarray(kept) == np.flatnonzero(mask)).all()
    assert len(kept.starts) <= 5


def test_memory_depends_on_the_number_of_intervals():
    rows = Rows([0], [10**12])
    assert len(rows) == 10**12
    assert rows[-1] == 10**12 - 1
    assert rows[10**11 : 10**11 + 3].tolist() == [10**11, 10**11 + 1, 10**11 + 2]


def test_accepts_two_dimensional_indices():
    assert Rows([3], [9])[np.array([[0, 1], [-1, 2]])].tolist() == [[3, 4], [8, 5]]


@pytest.mark.parametrize(
    "index",
    [5, -6, [0, 5], [-6], [True, False], True, [1.5], 1.0, "1", None],
    ids=repr,
)
def test_refuses_the_indices_that_an_array_refuses(index):
    with pytest.raises(IndexError):
        Rows([3], [8])[index]


def test_rows_may_be_empty():
    rows = Rows([], [])
    assert len(rows) == 0
    assert rows[:].tolist() == rows[[]].tolist() == list(rows) == np.asarray(rows).tolist() == []
    assert len(rows.keep(np.zeros(0, bool))) == 0
    with pytest.raises(IndexError):
        rows[0]


def test_conversion_to_an_array_is_always_a_copy():
    with pytest.raises(ValueError, match="copy: got False"):
        np.array(Rows([0], [3]), copy=False)


def test_numpy_functions_accept_rows():
    rows = Rows([1, 6], [3, 8])
    assert np.isin([2, 3, 7], rows).tolist() == [True, False, True]
    assert (np.arange(10) * 2)[np.asarray(rows)].tolist() == [2, 4, 12, 14]


def test_where_selects_by_index():
    rows = Rows([5, 0], [9, 3], np.arange(20)[::-1])
    mask = np.array([True, True, False, True, False, True, True])
    assert rows.where(mask)[:].tolist() == rows[:][mask].tolist()
    assert rows.where(np.zeros(7, dtype=bool))[:].tolist() == []


@given(rows_and_array(), st.integers(1, 4))
@cases
def test_chunks_are_the_array(case, size):
    rows, array, _ = case
    index, positions = zip(*rows.chunks(size), strict=True) if len(rows) else ([], [])
    assert [i for part in index for i in part] == list(range(len(array)))
    assert [row for part in positions for row in rows.to_rows(part)] == array.tolist()
    assert all(0 < len(part) <= size for part in positions)


@given(rows_and_array(), st.data())
@cases
def test_rows_of_other_lists_are_left_out(case, data):
    rows, array, _ = case
    chosen = data.draw(st.lists(st.booleans(), min_size=len(rows.starts), max_size=len(rows.starts)))
    some = rows.take_intervals(np.array(chosen, dtype=bool))
    rest = rows.without([some, Rows([], [])])
    assert rest[:].tolist() == [row for row in array.tolist() if row not in set(some[:].tolist())]
    assert len(some) + len(rest) == len(array)


def test_repeated_rows_are_counted_once():
    assert count_distinct(np.array([5, 0, 5, 2])) == 3
    assert count_distinct(np.empty(0, np.int32)) == 0
