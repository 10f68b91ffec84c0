"""Spills return any range of rows, and load from a checkpoint only if their file is intact."""

import numpy as np
import pytest
from scipy import sparse

from lazypert.conversion.spill import ROWS_PER_MARK, PackedRows, Spill
from lazypert.sparse.csr import CSRBlock
from lazypert.sparse.value_stats import ValueStats

N_DEST = 3 * ROWS_PER_MARK + 5


def make(path, seed=0, n_rows=400, packed=False):
    rng = np.random.default_rng(seed)
    destinations = np.sort(rng.choice(N_DEST, n_rows, replace=False)).astype("i8")
    matrix = sparse.random_array((n_rows, 30), density=0.2, rng=rng, format="csr")
    lengths = np.diff(matrix.indptr)
    filled = lengths > 0
    matrix, destinations = matrix[filled], destinations[filled]
    if packed:
        matrix.data = rng.choice([1, 2, 254, 255, 256, 65_535], matrix.nnz).astype("f4")
    csr = CSRBlock(matrix.indptr.astype("i8"), matrix.indices.astype("u2"), matrix.data, 30)
    if packed:
        csr = PackedRows.pack(csr, np.arange(csr.shape[0]))
    spill = Spill.write(path, destinations, csr, N_DEST, ValueStats(integral=False), float(matrix.data.sum()))
    return spill, destinations, matrix


@pytest.mark.parametrize(
    "span",
    [
        (0, N_DEST),
        (0, 1),
        (ROWS_PER_MARK - 3, ROWS_PER_MARK + 3),
        (ROWS_PER_MARK, 2 * ROWS_PER_MARK),
        (5000, 5000),
        (12000, N_DEST),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_any_range_of_destinations_reads_back_equal(tmp_path, span, packed):
    spill, destinations, matrix = make(tmp_path / "a.spill", packed=packed)
    rows = spill.read(*span)
    inside = (destinations >= span[0]) & (destinations < span[1])
    np.testing.assert_array_equal(rows.destinations, destinations[inside])
    np.testing.assert_array_equal(rows.indptr, matrix[inside].indptr)
    np.testing.assert_array_equal(scattered(rows, span, matrix.dtype), matrix[inside].toarray())


def scattered(rows, span, dtype):
    """Scatter rows into an otherwise empty output; return them as a dense array."""
    lengths = np.zeros(span[1] - span[0], dtype="i8")
    lengths[rows.destinations - span[0]] = np.diff(rows.indptr)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    indices, data = np.empty(offsets[-1], "i4"), np.empty(offsets[-1], dtype)
    n_filled = np.zeros(len(lengths), dtype="i8")
    rows.scatter(span[0], offsets, n_filled, indices, data)
    np.testing.assert_array_equal(n_filled, lengths)
    return sparse.csr_matrix((data, indices, offsets), (len(lengths), 30)).toarray()[rows.destinations - span[0]]


def test_row_lengths_equal_those_of_the_matrix(tmp_path):
    spill, destinations, matrix = make(tmp_path / "a.spill")
    for first, last in ((0, N_DEST), (5, ROWS_PER_MARK), (ROWS_PER_MARK + 1, N_DEST), (7, 7)):
        inside = (destinations >= first) & (destinations < last)
        rows, lengths = spill.row_lengths(first, last)
        np.testing.assert_array_equal(rows, destinations[inside])
        np.testing.assert_array_equal(lengths, np.diff(matrix.indptr)[inside])


def test_an_empty_spill_reads_back_empty(tmp_path):
    spill, _, _ = make(tmp_path / "a.spill", n_rows=0)
    rows = spill.read(0, N_DEST)
    assert [len(array) for array in (rows.destinations, rows.indptr, rows.indices, rows.data)] == [0, 1, 0, 0]


def test_an_intact_spill_loads_from_its_checkpoint(tmp_path):
    spill, _, _ = make(tmp_path / "a.spill")
    assert Spill.from_checkpoint(tmp_path / "a.spill") == spill
    assert Spill.from_checkpoint(tmp_path / "b.spill") is None


@pytest.mark.parametrize("damage", ["truncated", "changed", "deleted", "no checkpoint", "truncated checkpoint"])
def test_a_damaged_spill_does_not_load_from_its_checkpoint(tmp_path, damage):
    make(tmp_path / "a.spill")
    path, checkpoint = tmp_path / "a.spill", tmp_path / "a.json"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    elif damage == "deleted":
        path.unlink()
    elif damage == "no checkpoint":
        checkpoint.unlink()
    else:
        checkpoint.write_text(checkpoint.read_text()[:30])
    assert Spill.from_checkpoint(path) is None


def test_removing_a_spill_removes_its_checkpoint(tmp_path):
    make(tmp_path / "a.spill")[0].remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "u2", "u1", "bool"])
def test_small_counts_of_any_dtype_are_packed_in_any_order(dtype):
    rng = np.random.default_rng(0)
    matrix = sparse.random_array((50, 9_000), density=0.05, rng=rng, format="csr")
    matrix.sort_indices()
    matrix.data = np.minimum(rng.choice([1, 3, 254, 255, 300, 40_000], matrix.nnz), np.iinfo("u2").max).astype(dtype)
    csr = CSRBlock(matrix.indptr.astype("i8"), matrix.indices.astype("i4"), matrix.data, 9_000)
    permutation = rng.permutation(50)
    packed = PackedRows.pack(csr, permutation)
    assert packed.maximum == int(matrix.data.max())
    np.testing.assert_array_equal(packed.indptr, matrix[permutation].indptr)
    assert len(packed.payload) <= 2 * matrix.nnz + 2 * int((matrix.data >= 255).sum())


@pytest.mark.parametrize(
    ("indices", "data"),
    [
        pytest.param([1, 0], [1, 1], id="unsorted"),
        pytest.param([3, 3], [1, 1], id="duplicate"),
        pytest.param([0, 256], [1, 1], id="far apart"),
        pytest.param([255, 256], [1, 1], id="far from the first"),
        pytest.param([0, 1], [1, 0.5], id="fraction"),
        pytest.param([0, 1], [1, -1], id="negative"),
        pytest.param([0, 1], [1, 65_536], id="large"),
        pytest.param([0, 1], [1, np.nan], id="nan"),
        pytest.param([0, 1], [1, np.inf], id="infinite"),
        pytest.param([0, 1], [1, 2.0**32], id="beyond 32 bits"),
        pytest.param([0, 1], [1, 2.0**32 + 1], id="odd and beyond 32 bits"),
    ],
)
def test_other_rows_are_not_packed(indices, data):
    csr = CSRBlock(np.array([0, 2]), np.array(indices, "i4"), np.array(data, "f8"), 1_000)
    assert PackedRows.pack(csr, np.array([0])) is None
    packable = CSRBlock(np.array([0, 2]), np.array([0, 255], "i4"), np.array([1, 65_535], "f8"), 1_000)
    assert PackedRows.pack(packable, np.array([0])) is not None
