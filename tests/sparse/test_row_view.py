"""Operations on row views equal the same on SciPy matrices, wherever the rows lie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lazypert.sparse.columns import ColumnSelection
from lazypert.sparse.row_view import RowView, contiguous_layout, copy_dense_rows

N_COLS = 9


def backwards(lengths):
    """Lay out rows from the last to the first, each followed by a gap."""
    ends = np.cumsum(lengths[::-1] + 1)
    return (ends - lengths[::-1] - 1)[::-1], int(lengths.sum()) + len(lengths)


def random_matrix(n_rows, seed, dtype="u2"):
    rng = np.random.default_rng(seed)
    return sparse.csr_matrix(
        (rng.integers(1, 50, (n_rows, N_COLS)) * (rng.random((n_rows, N_COLS)) < 0.4)).astype(dtype)
    )


def view_of(matrix, layout=backwards, index_dtype="u2", *, totals=False):
    """View of a SciPy matrix; gaps hold values that must not be read."""
    lengths = np.diff(matrix.indptr).astype(np.int64)
    offsets, size = layout(lengths)
    indices, data = np.full(size, 7, index_dtype), np.full(size, 99, matrix.dtype)
    for row, offset in enumerate(offsets):
        source = slice(matrix.indptr[row], matrix.indptr[row + 1])
        indices[offset : offset + lengths[row]] = matrix.indices[source]
        data[offset : offset + lengths[row]] = matrix.data[source]
    sums = np.asarray(matrix.sum(axis=1), dtype=float).ravel() if totals else None
    return RowView(offsets, lengths, indices, data, N_COLS, sums)


def dense_of(view):
    out = np.zeros((len(view.offsets), view.n_cols))
    for row, offset, length in zip(out, view.offsets, view.lengths, strict=True):
        row[view.indices[offset : offset + length]] = view.data[offset : offset + length]
    return out


def test_the_contiguous_layout_leaves_no_gaps():
    offsets, size = contiguous_layout(np.array([3, 0, 2]))
    assert (offsets.tolist(), size) == ([0, 3, 3], 5)
    offsets, size = contiguous_layout(np.empty(0, np.int64))
    assert (offsets.tolist(), size) == ([], 0)


@pytest.mark.parametrize("totals", [True, False])
def test_copied_rows_are_contiguous_and_independent(totals):
    matrix = random_matrix(12, 0)
    view = view_of(matrix, totals=totals)
    copy = view.copy_rows(3, 8)
    for array in (view.indices, view.data, view.lengths, view.offsets):
        array[:] = 0
    np.testing.assert_array_equal(dense_of(copy), matrix[3:8].toarray())
    assert len(copy.data) == matrix[3:8].nnz
    assert copy.nbytes == 2 * 5 * 8 + 2 * len(copy.data) * 2 + (5 * 8 if totals else 0)
    if totals:
        np.testing.assert_array_equal(copy.totals, matrix[3:8].toarray().sum(axis=1))


@given(n_rows=st.lists(st.integers(0, 7), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_concat_copies_each_row_to_its_position(n_rows, seed):
    matrices = [
        random_matrix(n, seed + i, dtype) for i, (n, dtype) in enumerate(zip(n_rows, ["u2", "u4"] * 2, strict=False))
    ]
    positions = np.split(np.random.default_rng(seed).permutation(sum(n_rows)), np.cumsum(n_rows)[:-1])
    views = [view_of(m, index_dtype=kind, totals=True) for m, kind in zip(matrices, ["u2", "i4"] * 2, strict=False)]
    found = RowView.concat(list(zip(positions, views, strict=True)), np.float64, backwards, np.empty)
    expected = np.zeros((sum(n_rows), N_COLS))
    for at, matrix in zip(positions, matrices, strict=True):
        expected[at] = matrix.toarray()
    np.testing.assert_array_equal(dense_of(found), expected)
    np.testing.assert_array_equal(found.totals, expected.sum(axis=1))
    np.testing.assert_array_equal(found.offsets, backwards(found.lengths)[0])
    assert found.data.dtype == np.float64
    assert found.indices.dtype == max((view.indices.dtype for view in views), key=lambda dtype: dtype.itemsize)


@given(st.integers(0, 9), st.lists(st.integers(0, N_COLS - 1), unique=True), st.booleans(), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_select_equals_numpy_and_totals_cover_all_columns(n_rows, indices, totals, seed):
    matrix = random_matrix(n_rows, seed)
    columns = ColumnSelection.from_indices(np.array(indices, dtype=int), N_COLS)
    found = view_of(matrix).select(columns, totals=totals)
    np.testing.assert_array_equal(dense_of(found), matrix.toarray()[:, indices])
    if totals:
        np.testing.assert_array_equal(found.totals, matrix.toarray().sum(axis=1))
    else:
        assert found.totals is None


@pytest.mark.parametrize("target_sum", [None, 100.0])
def test_write_dense_fills_the_given_rows_only(target_sum):
    matrix = random_matrix(10, 3)
    matrix.data[matrix.indptr[4] : matrix.indptr[5]] = 0  # an empty row
    matrix.eliminate_zeros()
    out, rows = np.full((20, N_COLS), -5, np.float32), np.random.default_rng(0).permutation(20)[:10]
    view_of(matrix, totals=True).write_dense(out, rows, target_sum)
    dense = matrix.toarray().astype(float)
    sums = dense.sum(axis=1, keepdims=True)
    expected = dense if target_sum is None else np.log1p(dense * target_sum / np.where(sums > 0, sums, 1))
    np.testing.assert_allclose(out[rows], expected, rtol=1e-6)
    assert (np.delete(out, rows, axis=0) == -5).all()


def test_columns_of_a_damaged_store_write_nowhere():
    view = RowView(
        np.array([0]), np.array([2]), np.array([65_535, 1], "u2"), np.array([5, 6], "u2"), 3, np.array([11.0])
    )
    out = np.zeros((1, 3), np.float32)
    view.write_dense(out, np.array([0]), None)
    np.testing.assert_array_equal(out, [[0, 6, 0]])


def test_copy_dense_rows_equals_numpy():
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    expected = table.copy()
    expected[[3, 1]] = expected[[0, 2]]
    copy_dense_rows(table, np.array([0, 2]), np.array([3, 1]))
    np.testing.assert_array_equal(table, expected)


def test_the_repr_is_one_line():
    view = view_of(sparse.csr_matrix(np.eye(3, N_COLS, dtype="u2")))
    assert repr(view) == "RowView(3 x 9, uint16, 3 stored values)"
