"""The kernels on blocks of sparse rows equal SciPy's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from lazypert.errors import SourceFormatError
from lazypert.sparse.csr import CSRBlock, canonical, first_bad_index
from lazypert.sparse.value_stats import value_stats

few = settings(max_examples=60, deadline=None)


@st.composite
def blocks(draw, canonical_only=False):
    """Random rows with unsorted column numbers, some of them twice."""
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
    """Sorted, unique, in range: what the store's format promises."""
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
    for kept, now in zip(before, (block.indices, block.data, block.indptr), strict=True):
        np.testing.assert_array_equal(kept, now)  # the input is left alone


@given(blocks(canonical_only=True))
@few
def test_canonical_returns_a_canonical_block_itself(block):
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
    where = data.draw(st.permutations(range(max(n_new, block.n_cols))))
    new_col = np.array([c if c < n_new else -1 for c in where[: block.n_cols]], dtype=np.int32)
    expected = np.zeros((block.shape[0], n_new))
    for j, c in enumerate(new_col):
        if c >= 0:
            expected[:, c] = block.to_dense()[:, j]
    found = block.select_cols(new_col, n_new)
    assert_valid(found)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.to_dense(), expected)


def test_select_cols_sums_columns_that_become_one():
    block = CSRBlock(np.array([0, 3]), np.array([0, 1, 2], np.int32), np.array([1, 2, 4], "u2"), 3)
    found = block.select_cols(np.array([1, 0, 1], np.int32), 2)
    np.testing.assert_array_equal(found.to_dense(), [[2, 5]])


@given(blocks(canonical_only=True))
@few
def test_to_dense_overwrites_all_of_a_used_buffer(block):
    out = np.full(block.shape, 77, dtype="f8")
    assert block.to_dense(out=out) is out
    np.testing.assert_array_equal(out, scipy_of(block).toarray())


def naive_dtype(values):
    """Smallest dtype of the format that gives every value back."""
    values = np.asarray(values)
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if len(finite) == len(values) and all(float(v).is_integer() and abs(v) <= 2**53 for v in finite):
        exact = [int(v) for v in finite]
        for name in ("u2", "u4", "i4", "i8"):
            if all(np.iinfo(name).min <= v <= np.iinfo(name).max for v in exact):
                return np.dtype(name)
    return np.dtype("f4" if all(float(np.float32(v)) == v for v in finite) else "f8")


@given(
    hnp.arrays(
        "f8",
        st.integers(0, 12),
        elements=st.one_of(
            st.integers(-5, 5).map(float),
            st.sampled_from([0.0, -0.0, 65535.0, 65536.0, 2.0**31, 2.0**32 - 1, 2.0**32, 2.0**53, 2.0**53 + 2]),
            st.sampled_from([0.5, 0.1, -(2.0**31), -(2.0**31) - 1, np.nan, np.inf, -np.inf, 5e-324, 1e-45]),
        ),
    )
)
@settings(max_examples=300, deadline=None)
def test_value_facts_choose_the_smallest_exact_dtype(values):
    with np.errstate(over="ignore"):
        expected = naive_dtype(values)
    facts = value_stats(values)
    assert facts.dtype() == expected
    np.testing.assert_array_equal(values.astype(expected), values)  # -0.0 equals 0.0, NaN is NaN
    assert facts.n_nonfinite == (~np.isfinite(values)).sum()
    finite = [*values[np.isfinite(values)].tolist(), 0.0]
    assert (facts.minimum, facts.maximum) == (min(finite), max(finite))


BIG = 2**63 - 1


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        pytest.param(np.array([], "f4"), "u2", id="empty"),
        pytest.param(np.array([0, 65535], "i8"), "u2", id="u2_max"),
        pytest.param(np.r_[np.ones(5000), 70000].astype("f4"), "u4", id="last_value_70000"),
        pytest.param(np.array([2**24 + 1], "f8"), "u4", id="2^24+1"),
        pytest.param(np.r_[np.ones(5000), -1].astype("f4"), "i4", id="last_value_negative"),
        pytest.param(np.r_[np.ones(5000), 0.5].astype("f4"), "f4", id="last_value_fraction"),
        pytest.param(np.array([1.0, 2.0**53 + 2], "f8"), "f8", id="2^53+2_as_float"),
        pytest.param(np.array([2**53 + 1], "i8"), "i8", id="2^53+1_as_int"),
        pytest.param(np.array([BIG], "i8"), "i8", id="int64_max"),
        pytest.param(np.array([BIG], "u8"), "i8", id="int64_max_unsigned"),
        pytest.param(np.array([-(2**63)], "i8"), "i8", id="int64_min"),
        pytest.param(np.array([-1, 2**31], "i8"), "i8", id="negative_and_large"),
        pytest.param(np.array([1, np.nan], "f4"), "f4", id="nan"),
        pytest.param(np.array([1, np.inf], "f8"), "f4", id="inf"),
        pytest.param(np.array([0.1], "f8"), "f8", id="float64"),
        pytest.param(np.array([-0.0]), "u2", id="negative_zero"),
        pytest.param(np.array([True, False]), "u2", id="bool"),
        pytest.param(np.array([7], "u1"), "u2", id="never_one_byte"),
    ],
)
def test_dtype_of_edge_values(values, dtype):
    chosen = value_stats(values).dtype()
    assert chosen == dtype
    np.testing.assert_array_equal(values.astype(chosen), values)


def test_beyond_int64_is_refused():
    with pytest.raises(SourceFormatError, match="9223372036854775807"):
        value_stats(np.array([2**63], "u8")).dtype()


@given(st.lists(st.integers(-3, 12), max_size=20), st.integers(1, 9))
@few
def test_first_bad_index(numbers, n_cols):
    bad = [k for k, number in enumerate(numbers) if not 0 <= number < n_cols]
    assert first_bad_index(np.array(numbers, dtype="i4"), n_cols) == (bad[0] if bad else -1)
