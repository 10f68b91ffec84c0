"""Operations on CSR blocks equal those of SciPy."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lazypert.sparse.csr import CSRBlock, canonical, first_bad_index

few = settings(max_examples=60, deadline=None)


@st.composite
def blocks(draw, canonical_only=False):
    """Random rows, with unsorted and repeated column numbers unless `canonical_only`."""
    n_rows, n_cols = draw(st.integers(0, 6)), draw(st.integers(1, 8))
    lengths = draw(st.lists(st.integers(0, 7), min_size=n_rows, max_size=n_rows))
    index_dtype = draw(st.sampled_from(["i4", "i8"]))
    rows = []
    for length in lengths:
        unique = canonical_only
        columns = st.lists(st.integers(0, n_cols - 1), min_size=min(length, n_cols) if unique else length,
                           max_size=min(length, n_cols) if unique else length, unique=unique)  # fmt: skip
        rows.append(sorted(draw(columns)) if unique else draw(columns))
    indptr = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)
    indices = np.array([c for r in rows for c in r], dtype=index_dtype)
    values = st.integers(1, 50)
    data = np.array([draw(values) for _ in indices], dtype=draw(st.sampled_from(["u2", "i8", "f4", "f8"])))
    return CSRBlock(indptr, indices, data, n_cols)


def scipy_of(block):
    return sparse.csr_matrix((block.data, block.indices, block.indptr), shape=block.shape, copy=True)


def assert_valid(block):
    """Check what the store format guarantees: sorted and unique column numbers in each row."""
    assert block.indptr[0] == 0
    assert block.indptr[-1] == len(block.indices) == len(block.data)
    for start, stop in zip(block.indptr[:-1], block.indptr[1:], strict=True):
        assert (np.diff(block.indices[start:stop].astype(int)) > 0).all()


@given(blocks())
@few
def test_canonical_sorts_rows_and_sums_duplicates(block):
    expected = scipy_of(block)
    before = block.indices.copy(), block.data.copy(), block.indptr.copy()
    found = canonical(block)
    assert_valid(found)
    np.testing.assert_array_equal(found.to_dense(), expected.toarray())
    expected.sum_duplicates()
    assert found.nnz == expected.nnz
    for earlier, now in zip(before, (block.indices, block.data, block.indptr), strict=True):
        np.testing.assert_array_equal(earlier, now)  # the input is not modified


@given(blocks(canonical_only=True))
@few
def test_canonical_returns_canonical_blocks_unchanged(block):
    assert canonical(block) is block


@given(blocks(), st.data())
@few
def test_take_rows_equals_scipy(block, data):
    n = block.shape[0]
    rows = data.draw(st.lists(st.integers(0, n - 1), max_size=9)) if n else []
    found = block.take_rows(np.array(rows, dtype=int))
    np.testing.assert_array_equal(scipy_of(found).toarray(), scipy_of(block)[rows].toarray())
    assert found.indices.dtype == block.indices.dtype
    assert found.data.dtype == block.data.dtype


@given(blocks(canonical_only=True), st.data())
@few
def test_select_cols_equals_numpy(block, data):
    n_new = data.draw(st.integers(1, 8))
    numbers = data.draw(st.permutations(range(max(n_new, block.n_cols))))
    new_col = np.array([c if c < n_new else -1 for c in numbers[: block.n_cols]], dtype=np.int32)
    expected = np.zeros((block.shape[0], n_new))
    for j, c in enumerate(new_col):
        if c >= 0:
            expected[:, c] = block.to_dense()[:, j]
    found = block.select_cols(new_col, n_new)
    assert_valid(found)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.to_dense(), expected)


def test_select_cols_sums_columns_with_the_same_number():
    block = CSRBlock(np.array([0, 3]), np.array([0, 1, 2], np.int32), np.array([1, 2, 4], "u2"), 3)
    found = block.select_cols(np.array([1, 0, 1], np.int32), 2)
    np.testing.assert_array_equal(found.to_dense(), [[2, 5]])


@given(blocks(canonical_only=True))
@few
def test_to_dense_overwrites_a_given_array(block):
    out = np.full(block.shape, 77, dtype="f8")
    assert block.to_dense(out=out) is out
    np.testing.assert_array_equal(out, scipy_of(block).toarray())


@given(st.lists(st.integers(-3, 12), max_size=20), st.integers(1, 9))
@few
def test_first_bad_index_equals_a_loop(numbers, n_cols):
    bad = [k for k, number in enumerate(numbers) if not 0 <= number < n_cols]
    assert first_bad_index(np.array(numbers, dtype="i4"), n_cols) == (bad[0] if bad else -1)


def test_columns_out_of_range_write_nowhere():
    block = CSRBlock(np.array([0, 3]), np.array([-1, 1, 9], np.int32), np.array([5, 6, 7], "u2"), 3)
    np.testing.assert_array_equal(block.to_dense(), [[0, 6, 0]])


def test_the_repr_is_one_line():
    block = CSRBlock(np.array([0, 3]), np.array([0, 1, 2], np.int32), np.array([1, 2, 4], "u2"), 3)
    assert repr(block) == "CSRBlock(1 x 3, uint16, 3 stored values)"
