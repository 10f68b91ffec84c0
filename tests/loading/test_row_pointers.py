"""The kernels that gather rows into batches equal NumPy for any memory layout."""

import itertools

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


def view_of(matrix, gaps=0, index=np.uint16, value=np.uint16):
    """A row view of a SciPy matrix, with `gaps` elements before each row that must not be read."""
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
    """Random rows of three row views, with repeats; and the same rows dense."""
    matrices = [counts(10 * (number + 1), N_COLS, seed + number) for number in range(3)]
    rng = np.random.default_rng(seed)
    which = rng.integers(0, 3, n)
    row = np.array([rng.integers(0, matrices[number].shape[0]) for number in which], dtype=np.int64)
    rows = RowPointers.gather([RowPointers.from_view(view_of(m, gaps=2, **options)) for m in matrices], which, row)
    return rows, np.concatenate(
        [np.zeros((0, N_COLS)), *(matrices[w][r].toarray() for w, r in zip(which, row, strict=True))]
    )


def transform(wanted=None, **options):
    if wanted is None:
        return RowTransform(columns=None, n_columns=N_COLS, **options)
    columns = ColumnSelection.from_indices(np.array(wanted, dtype=int), N_COLS)
    return RowTransform(columns=columns, n_columns=len(wanted), **options)


def as_dense(rows, how, keys=None):
    keys = np.arange(len(rows), dtype=np.uint64) if keys is None else keys
    out = np.full((len(rows), how.n_columns), -5, np.float32)
    rows.to_dense(how, keys, out)
    return out


def as_sparse(rows, how, keys=None, room=5_000):
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


GATHERERS = pytest.mark.parametrize("gather", [as_dense, as_sparse])
columns = st.none() | st.permutations(range(N_COLS)).flatmap(lambda p: st.integers(0, N_COLS).map(lambda n: p[:n]))


@GATHERERS
@given(st.integers(0, 1000), st.integers(0, 40), columns, st.none() | st.floats(1, 1e5))
@settings(max_examples=40, deadline=None)
def test_gathered_rows_equal_numpy(gather, seed, n, wanted, target_sum):
    rows, dense = scattered(seed, n)
    expected = dense
    if target_sum is not None:
        total = dense.sum(axis=1, keepdims=True)  # over all genes, not only the selected ones
        expected = np.log1p(dense * target_sum / np.where(total > 0, total, 1))
    if wanted is not None:
        expected = expected[:, wanted]
    found = gather(rows, transform(wanted, target_sum=target_sum))
    np.testing.assert_allclose(found, expected.astype(np.float32), rtol=2e-6)
    if target_sum is None:
        np.testing.assert_array_equal(found, expected)


@GATHERERS
@given(st.integers(0, 1000), st.integers(0, 40), columns, st.none() | st.floats(1, 1e5))
@settings(max_examples=40, deadline=None)
def test_selecting_columns_beforehand_gives_the_same(gather, seed, n, wanted, target_sum):
    """Normalisation too, because the selected rows carry their totals."""
    rows, _ = scattered(seed, n)
    wanted = list(range(N_COLS))[::2] if wanted is None else wanted
    expected = gather(rows, transform(wanted, target_sum=target_sum))
    table = ColumnSelection.from_indices(np.array(wanted, dtype=int), N_COLS)
    rng = np.random.default_rng(seed)
    which = rng.integers(0, 3, n)
    matrices = [counts(10 * (number + 1), N_COLS, seed + number) for number in range(3)]
    row = np.array([rng.integers(0, matrices[number].shape[0]) for number in which], dtype=np.int64)
    tables = [RowPointers.from_view(view_of(m, gaps=2).select(table, totals=True)) for m in matrices]
    selected = RowPointers.gather(tables, which, row)
    found = gather(selected, RowTransform(columns=None, n_columns=len(wanted), target_sum=target_sum))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


VALUES = [np.uint8, np.uint16, np.int32, np.float32, np.float64]
# Each pair compiles the kernels; most stores have one of the first two.
QUICK = [(np.uint16, np.uint16), (np.uint16, np.float32), (np.int32, np.float64)]
DTYPES = [
    pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow)
    for pair in itertools.product([np.uint16, np.int32], VALUES)
]


@GATHERERS
@pytest.mark.parametrize(("index", "value"), DTYPES)
def test_all_dtypes_are_supported(gather, index, value):
    rows, dense = scattered(1, 30, index=index, value=value)
    np.testing.assert_array_equal(gather(rows, transform()), dense)
    np.testing.assert_array_equal(gather(rows, transform([3, 1, 39])), dense[:, [3, 1, 39]])


@GATHERERS
def test_slicing_selects_rows(gather):
    rows, dense = scattered(2)
    np.testing.assert_array_equal(gather(rows[5:9], transform()), dense[5:9])
    assert len(rows[:0]) == 0


@GATHERERS
@pytest.mark.parametrize("options", [{"fraction": 0.3}, {"target_depth": 20.0}])
class TestDownsampling:
    def test_draws_are_binomial(self, gather, options):
        """Chi-square test of each count against SciPy's distribution."""
        rows, dense = scattered(4, 12)
        keys = np.arange(12 * 400, dtype=np.uint64).reshape(400, 12)
        found = np.stack([gather(rows, transform(**options), key) for key in keys])
        total = dense.sum(axis=1)
        keep = options.get("fraction") or np.minimum(1, options.get("target_depth", 0) / np.maximum(total, 1))
        keep = np.broadcast_to(keep, 12)
        row, col = np.nonzero((dense > 0) & (keep < 1)[:, None])
        p_values = []
        for r, c in zip(row, col, strict=True):
            n = int(dense[r, c])
            seen = np.bincount(found[:, r, c].astype(int), minlength=n + 1)
            expected = stats.binom.pmf(np.arange(n + 1), n, keep[r]) * 400
            is_rare = expected < 5
            seen = np.append(seen[~is_rare], seen[is_rare].sum())
            expected = np.append(expected[~is_rare], expected[is_rare].sum())
            used = expected > 0
            p_values.append(stats.chisquare(seen[used], expected[used]).pvalue if used.sum() > 1 else 1.0)
        assert min(p_values) > 1e-6
        assert abs(np.mean(np.array(p_values) < 0.05) - 0.05) < 0.06
        unthinned = np.flatnonzero(keep == 1)
        assert (found[:, unthinned] == dense[unthinned]).all()

    def test_depends_only_on_the_key_of_the_row(self, gather, options):
        rows, _ = scattered(5, 20)
        keys = np.arange(100, 120, dtype=np.uint64)
        whole = gather(rows, transform(**options), keys)
        np.testing.assert_array_equal(gather(rows[7:12], transform(**options), keys[7:12]), whole[7:12])
        assert (gather(rows, transform(**options), keys + np.uint64(50)) != whole).any()
        np.testing.assert_array_equal(gather(rows, transform([5, 9], **options), keys), whole[:, [5, 9]])

    def test_precedes_normalisation(self, gather, options):
        rows, _ = scattered(6, 20)
        reads = gather(rows, transform(**options))
        total = np.maximum(reads.sum(axis=1, keepdims=True), 1)
        found = gather(rows, transform(**options, target_sum=100.0))
        np.testing.assert_allclose(found, np.log1p(reads * 100 / total), rtol=2e-6)


@GATHERERS
@pytest.mark.parametrize("wanted", [None, [1, 2, 3]])
def test_invalid_columns_of_a_damaged_store_do_not_write_out_of_bounds(gather, wanted):
    bad = RowView(
        np.zeros(1, np.int64), np.array([3]), np.array([2, 60_000, 45], np.uint16), np.array([4, 5, 6], "u2"), N_COLS
    )
    if gather is as_sparse and wanted is None:
        pytest.skip("rows with all columns are copied as stored")
    rows = RowPointers.from_view(bad)
    guard = np.full((3, transform(wanted).n_columns), -1, np.float32)
    rows.to_dense(transform(wanted), np.zeros(1, np.uint64), guard[1:2])
    assert (guard[[0, 2]] == -1).all()
    assert guard[1].sum() >= 4


def test_row_views_of_different_dtypes_are_rejected():
    one, other = (RowPointers.from_view(view_of(counts(3, N_COLS), value=value)) for value in (np.uint16, np.float32))
    with pytest.raises(TypeError, match="differ in dtype"):
        RowPointers.gather([one, other], np.array([0, 1]), np.array([0, 0]))
