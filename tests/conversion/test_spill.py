"""Spills give back any range of rows, and are recalled only when every byte is as it was."""

import numpy as np
import pytest
from scipy import sparse

from lazypert.conversion.spill import ROWS_PER_MARK, PackedRows, Spill
from lazypert.sparse.csr import CSRBlock
from lazypert.sparse.value_stats import ValueStats

N_DEST = 3 * ROWS_PER_MARK + 5


def make(path, seed=0, n_rows=400, packed=False):
    rng = np.random.default_rng(seed)
    target = np.sort(rng.choice(N_DEST, n_rows, replace=False)).astype("i8")
    matrix = sparse.random_array((n_rows, 30), density=0.2, rng=rng, format="csr")
    lengths = np.diff(matrix.indptr)
    filled = lengths > 0
    matrix, target = matrix[filled], target[filled]
    if packed:
        matrix.data = rng.choice([1, 2, 254, 255, 256, 65_535], matrix.nnz).astype("f4")
    csr = CSRBlock(matrix.indptr.astype("i8"), matrix.indices.astype("u2"), matrix.data, 30)
    if packed:
        csr = PackedRows.pack(csr, np.arange(csr.shape[0]))
    return Spill.write(path, target, csr, N_DEST, ValueStats(integral=False), float(matrix.data.sum())), target, matrix


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
def test_any_range_of_destinations(tmp_path, span, packed):
    spill, target, matrix = make(tmp_path / "a.spill", packed=packed)
    piece = spill.read(*span)
    chosen = matrix[(target >= span[0]) & (target < span[1])]
    np.testing.assert_array_equal(piece.destinations, target[(target >= span[0]) & (target < span[1])])
    np.testing.assert_array_equal(piece.indptr, chosen.indptr)
    np.testing.assert_array_equal(placed(piece, span, chosen), chosen.toarray())


def placed(piece, span, expected):
    """Put a piece where it belongs, as a shard of nothing else does; return it densely."""
    lengths = np.zeros(span[1] - span[0], dtype="i8")
    lengths[piece.destinations - span[0]] = np.diff(piece.indptr)
    place = np.concatenate([[0], np.cumsum(lengths)])
    indices, data = np.empty(place[-1], "i4"), np.empty(place[-1], expected.dtype)
    filled = np.zeros(len(lengths), dtype="i8")
    piece.scatter(span[0], place, filled, indices, data)
    np.testing.assert_array_equal(filled, lengths)
    return sparse.csr_matrix((data, indices, place), (len(lengths), 30)).toarray()[piece.destinations - span[0]]


def test_row_lengths(tmp_path):
    spill, target, matrix = make(tmp_path / "a.spill")
    rows, lengths = spill.row_lengths()
    np.testing.assert_array_equal(rows, target)
    np.testing.assert_array_equal(lengths, np.diff(matrix.indptr))


def test_nothing_to_spill(tmp_path):
    spill, _, _ = make(tmp_path / "a.spill", n_rows=0)
    piece = spill.read(0, N_DEST)
    assert [len(part) for part in (piece.destinations, piece.indptr, piece.indices, piece.data)] == [0, 1, 0, 0]


def test_it_is_recalled_as_it_was(tmp_path):
    spill, _, _ = make(tmp_path / "a.spill")
    assert Spill.from_checkpoint(tmp_path / "a.spill") == spill
    assert Spill.from_checkpoint(tmp_path / "b.spill") is None


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "no note", "torn note"])
def test_damage_is_not_recalled(tmp_path, damage):
    make(tmp_path / "a.spill")
    path, note = tmp_path / "a.spill", tmp_path / "a.json"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    elif damage == "gone":
        path.unlink()
    elif damage == "no note":
        note.unlink()
    else:
        note.write_text(note.read_text()[:30])
    assert Spill.from_checkpoint(path) is None


def test_removal_takes_the_note_along(tmp_path):
    make(tmp_path / "a.spill")[0].remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "i8", "u2", "u1", "bool"])
def test_small_counts_of_any_type_are_packed_in_any_order(dtype):
    rng = np.random.default_rng(0)
    matrix = sparse.random_array((50, 9_000), density=0.05, rng=rng, format="csr")
    matrix.sort_indices()
    matrix.data = np.minimum(rng.choice([1, 3, 254, 255, 300, 40_000], matrix.nnz), np.iinfo("u2").max).astype(dtype)
    csr = CSRBlock(matrix.indptr.astype("i8"), matrix.indices.astype("i4"), matrix.data, 9_000)
    order = rng.permutation(50)
    packed = PackedRows.pack(csr, order)
    assert packed.maximum == int(matrix.data.max())
    np.testing.assert_array_equal(packed.indptr, matrix[order].indptr)
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
        pytest.param([0, 1], [1, 2.0**32 + 1], id="beyond 32 bits and odd"),
    ],
)
def test_other_rows_are_not_packed(indices, data):
    csr = CSRBlock(np.array([0, 2]), np.array(indices, "i4"), np.array(data, "f8"), 1_000)
    assert PackedRows.pack(csr, np.array([0])) is None
    fine = CSRBlock(np.array([0, 2]), np.array([0, 255], "i4"), np.array([1, 65_535], "f8"), 1_000)
    assert PackedRows.pack(fine, np.array([0])) is not None
