"""Kernels that make batches equal the same in NumPy, wherever the rows lie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lazypert.loading.row_pointers import RowPointers, RowTransform
from lazypert.sparse.columns import ColumnSelection
from lazypert.sparse.row_view import RowView
from tests.support.stores import counts

N_COLS = 40


def placed(matrix, gaps=0, index=np.uint16, value=np.uint16):
    """A SciPy matrix with `gaps` unused elements before each row, filled with what must not be read."""
    lengths = np.diff(matrix.indptr).astype(np.int64)
    starts = matrix.indptr[:-1].astype(np.int64) + gaps * np.arange(1, len(lengths) + 1)
    size = int(matrix.nnz + gaps * (len(lengths) + 1))
    indices, data = np.full(size, 7, index), np.full(size, 99, value)
    for row, start in enumerate(starts):
        of_row = slice(matrix.indptr[row], matrix.indptr[row + 1])
        indices[start : start + lengths[row]] = matrix.indices[of_row]
        data[start : start + lengths[row]] = matrix.data[of_row]
    return RowView(starts, lengths, indices, data, N_COLS)


def scattered(seed=0, n=30, **options):
    """Rows of three blocks in any order, with repeats; and the same dense."""
    matrices = [counts(10 * (part + 1), N_COLS, seed + part) for part in range(3)]
    rng = np.random.default_rng(seed)
    which = rng.integers(0, 3, n)
    row = np.array([rng.integers(0, matrices[part].shape[0]) for part in which], dtype=np.int64)
    rows = RowPointers.pick([RowPointers.whole(placed(m, gaps=2, **options)) for m in matrices], which, row)
    return rows, np.concatenate(
        [np.zeros((0, N_COLS)), *(matrices[w][r].toarray() for w, r in zip(which, row, strict=True))]
    )


def treatment(wanted=None, **options):
    if wanted is None:
        return RowTransform(columns=None, n_columns=N_COLS, **options)
    columns = ColumnSelection.from_indices(np.array(wanted, dtype=int), N_COLS)
    return RowTransform(columns=columns, n_columns=len(wanted), **options)


def made_dense(rows, how, keys=None):
    keys = np.arange(len(rows), dtype=np.uint64) if keys is None else keys
    out = np.full((len(rows), how.n_columns), -5, np.float32)
    rows.to_dense(how, keys, out)
    return out


def made_sparse(rows, how, keys=None, room=5_000):
    keys = np.arange(len(rows), dtype=np.uint64) if keys is None else keys
    count = rows.count(how)
    indptr = np.concatenate([[0], np.cumsum(count)]).astype(np.int32)
    indices, values = np.full(room, 9, np.uint16), np.full(room, 9, np.float32)
    rows.pack(how, keys, indptr, indices, values)
    assert not indices[indptr[-1] :].any()
    assert not values[indptr[-1] :].any()
    out = np.zeros((len(rows), how.n_columns), np.float32)
    for row in range(len(rows)):
        of_row = slice(indptr[row], indptr[row + 1])
        out[row, indices[of_row]] += values[of_row]
    return out


MAKERS = pytest.mark.parametrize("make", [made_dense, made_sparse])
columns = st.none() | st.permutations(range(N_COLS)).flatmap(lambda p: st.integers(0, N_COLS).map(lambda n: p[:n]))


@MAKERS
@given(st.integers(0, 1000), st.integers(0, 40), columns, st.none() | st.floats(1, 1e5))
@settings(max_examples=40, deadline=None)
def test_equals_numpy(make, seed, n, wanted, target_sum):
    rows, dense = scattered(seed, n)
    expected = dense
    if target_sum is not None:
        total = dense.sum(axis=1, keepdims=True)  # over all genes, whichever are wanted
        expected = np.log1p(dense * target_sum / np.where(total > 0, total, 1))
    if wanted is not None:
        expected = expected[:, wanted]
    found = make(rows, treatment(wanted, target_sum=target_sum))
    np.testing.assert_allclose(found, expected.astype(np.float32), rtol=2e-6)
    if target_sum is None:
        np.testing.assert_array_equal(found, expected)


@MAKERS
@given(st.integers(0, 1000), st.integers(0, 40), columns, st.none() | st.floats(1, 1e5))
@settings(max_examples=40, deadline=None)
def test_rows_that_hold_only_what_is_wanted_give_the_same(make, seed, n, wanted, target_sum):
    """Also when they are normalised: they bring their totals along."""
    rows, _ = scattered(seed, n)
    wanted = list(range(N_COLS))[::2] if wanted is None else wanted
    expected = make(rows, treatment(wanted, target_sum=target_sum))
    table = ColumnSelection.from_indices(np.array(wanted, dtype=int), N_COLS)
    rng = np.random.default_rng(seed)
    which = rng.integers(0, 3, n)
    matrices = [counts(10 * (part + 1), N_COLS, seed + part) for part in range(3)]
    row = np.array([rng.integers(0, matrices[part].shape[0]) for part in which], dtype=np.int64)
    parts = [RowPointers.whole(placed(m, gaps=2).select(table, totals=True)) for m in matrices]
    selected = RowPointers.pick(parts, which, row)
    found = make(selected, RowTransform(columns=None, n_columns=len(wanted), target_sum=target_sum))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@MAKERS
@pytest.mark.parametrize("value", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("index", [np.uint16, np.int32])
def test_any_dtype(make, index, value):
    rows, dense = scattered(1, 30, index=index, value=value)
    np.testing.assert_array_equal(make(rows, treatment()), dense)
    np.testing.assert_array_equal(make(rows, treatment([3, 1, 39])), dense[:, [3, 1, 39]])


@MAKERS
def test_slices_are_rows(make):
    rows, dense = scattered(2)
    np.testing.assert_array_equal(make(rows[5:9], treatment()), dense[5:9])
    assert len(rows[:0]) == 0


@MAKERS
@pytest.mark.parametrize("options", [{"fraction": 0.3}, {"target_depth": 20.0}])
class TestLosingReads:
    def test_is_binomial(self, make, options):
        """Against SciPy's distribution, count by count."""
        rows, dense = scattered(4, 12)
        keys = np.arange(12 * 400, dtype=np.uint64).reshape(400, 12)
        found = np.stack([make(rows, treatment(**options), key) for key in keys])
        total = dense.sum(axis=1)
        keep = options.get("fraction") or np.minimum(1, options.get("target_depth", 0) / np.maximum(total, 1))
        keep = np.broadcast_to(keep, 12)
        row, col = np.nonzero((dense > 0) & (keep < 1)[:, None])
        p_values = []
        for r, c in zip(row, col, strict=True):
            n = int(dense[r, c])
            seen = np.bincount(found[:, r, c].astype(int), minlength=n + 1)
            expected = stats.binom.pmf(np.arange(n + 1), n, keep[r]) * 400
            few = expected < 5
            seen, expected = np.append(seen[~few], seen[few].sum()), np.append(expected[~few], expected[few].sum())
            some = expected > 0
            p_values.append(stats.chisquare(seen[some], expected[some]).pvalue if some.sum() > 1 else 1.0)
        assert min(p_values) > 1e-6
        assert abs(np.mean(np.array(p_values) < 0.05) - 0.05) < 0.06
        whole = np.flatnonzero(keep == 1)
        assert (found[:, whole] == dense[whole]).all()

    def test_depends_on_the_key_of_the_row_alone(self, make, options):
        rows, _ = scattered(5, 20)
        keys = np.arange(100, 120, dtype=np.uint64)
        whole = make(rows, treatment(**options), keys)
        np.testing.assert_array_equal(make(rows[7:12], treatment(**options), keys[7:12]), whole[7:12])
        assert (make(rows, treatment(**options), keys + np.uint64(50)) != whole).any()
        np.testing.assert_array_equal(make(rows, treatment([5, 9], **options), keys), whole[:, [5, 9]])

    def test_comes_before_normalising(self, make, options):
        rows, _ = scattered(6, 20)
        kept = make(rows, treatment(**options))
        total = np.maximum(kept.sum(axis=1, keepdims=True), 1)
        found = make(rows, treatment(**options, target_sum=100.0))
        np.testing.assert_allclose(found, np.log1p(kept * 100 / total), rtol=2e-6)


@MAKERS
@pytest.mark.parametrize("wanted", [None, [1, 2, 3]])
def test_columns_that_a_damaged_store_makes_up_write_nowhere_else(make, wanted):
    bad = RowView(
        np.zeros(1, np.int64), np.array([3]), np.array([2, 60_000, 45], np.uint16), np.array([4, 5, 6], "u2"), N_COLS
    )
    if make is made_sparse and wanted is None:
        pytest.skip("rows as they are stored are handed on as they are")
    rows = RowPointers.whole(bad)
    guard = np.full((3, treatment(wanted).n_columns), -1, np.float32)
    rows.to_dense(treatment(wanted), np.zeros(1, np.uint64), guard[1:2])
    assert (guard[[0, 2]] == -1).all()
    assert guard[1].sum() >= 4


def test_blocks_of_several_dtypes_are_refused():
    one, other = (RowPointers.whole(placed(counts(3, N_COLS), value=value)) for value in (np.uint16, np.float32))
    with pytest.raises(TypeError, match="differ in dtype"):
        RowPointers.pick([one, other], np.array([0, 1]), np.array([0, 0]))
