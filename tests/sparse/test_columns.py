"""Column selections map every column number to its output column, whatever a store holds."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert.sparse.columns import ColumnSelection


@given(st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_lookup_gives_the_position_of_each_selected_column(n_cols, data):
    indices = data.draw(st.lists(st.integers(0, n_cols - 1), unique=True))
    columns = ColumnSelection.from_indices(np.array(indices, dtype=int), n_cols)
    assert columns.n_columns == len(indices)
    for column in range(n_cols):
        expected = indices.index(column) if column in indices else len(indices)
        assert columns.lookup[column] == expected
        assert columns.is_selected[column] == (column in indices)
    assert not columns.is_selected[n_cols:].any()


@given(st.integers(1, 100_000))
@settings(max_examples=40, deadline=None)
def test_tables_have_a_power_of_two_length_so_that_masks_stay_in_bounds(n_cols):
    columns = ColumnSelection.from_indices(np.array([n_cols - 1]), n_cols)
    length = len(columns.lookup)
    assert length >= n_cols
    assert length & (length - 1) == 0
    assert len(columns.is_selected) == length
    assert all(wild & (length - 1) < length for wild in (n_cols, 2**31, 2**63))


def test_output_columns_are_narrow_where_they_fit():
    assert ColumnSelection.from_indices(np.arange(2**16 - 1), 2**16).lookup.dtype == np.uint16
    assert ColumnSelection.from_indices(np.arange(2**16), 2**16).lookup.dtype == np.uint32


@given(st.permutations(range(6)), st.lists(st.integers(0, 5), unique=True))
@settings(max_examples=40, deadline=None)
def test_for_matrix_selects_the_same_columns_in_another_order(order, indices):
    """Column 6 of the other matrix is not one of these."""
    columns = ColumnSelection.from_indices(np.array(indices, dtype=int), 6)
    other = columns.for_matrix(np.array([*order, -1]))
    assert other.n_columns == columns.n_columns
    for column, same in enumerate(order):
        assert other.lookup[column] == columns.lookup[same]
    assert other.lookup[6] == columns.n_columns
    assert not other.is_selected[6:].any()


def test_the_repr_is_one_line():
    assert repr(ColumnSelection.from_indices(np.array([3, 1]), 5)) == "ColumnSelection(2 columns)"
