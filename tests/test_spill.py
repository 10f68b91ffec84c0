"""Spills give back any range of rows, and are recalled only when every byte is as it was."""

import numpy as np
import pytest
from scipy import sparse

from lazypert.csr import CSRBlock
from lazypert.schema import ValueFacts
from lazypert.spill import MARK, Spill

N_DEST = 3 * MARK + 5


def make(path, seed=0, n_rows=400):
    rng = np.random.default_rng(seed)
    target = np.sort(rng.choice(N_DEST, n_rows, replace=False)).astype("i8")
    matrix = sparse.random_array((n_rows, 30), density=0.2, rng=rng, format="csr")
    lengths = np.diff(matrix.indptr)
    filled = lengths > 0
    matrix, target = matrix[filled], target[filled]
    csr = CSRBlock(matrix.indptr.astype("i8"), matrix.indices.astype("u2"), matrix.data, 30)
    return Spill.write(path, target, csr, N_DEST, ValueFacts(integral=False), float(matrix.data.sum())), target, matrix


@pytest.mark.parametrize(
    "span", [(0, N_DEST), (0, 1), (MARK - 3, MARK + 3), (MARK, 2 * MARK), (5000, 5000), (12000, N_DEST)]
)
def test_any_range_of_destinations(tmp_path, span):
    spill, target, matrix = make(tmp_path / "a.spill")
    rows, offsets, indices, data = spill.read(*span)
    chosen = (target >= span[0]) & (target < span[1])
    np.testing.assert_array_equal(rows, target[chosen])
    np.testing.assert_array_equal(offsets, matrix[chosen].indptr)
    np.testing.assert_array_equal(indices, matrix[chosen].indices)
    np.testing.assert_array_equal(data, matrix[chosen].data)


def test_row_lengths(tmp_path):
    spill, target, matrix = make(tmp_path / "a.spill")
    rows, lengths = spill.row_lengths()
    np.testing.assert_array_equal(rows, target)
    np.testing.assert_array_equal(lengths, np.diff(matrix.indptr))


def test_nothing_to_spill(tmp_path):
    spill, _, _ = make(tmp_path / "a.spill", n_rows=0)
    assert [len(part) for part in spill.read(0, N_DEST)] == [0, 1, 0, 0]


def test_it_is_recalled_as_it_was(tmp_path):
    spill, _, _ = make(tmp_path / "a.spill")
    assert Spill.recall(tmp_path / "a.spill") == spill
    assert Spill.recall(tmp_path / "b.spill") is None


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
    assert Spill.recall(path) is None


def test_removal_takes_the_note_along(tmp_path):
    make(tmp_path / "a.spill")[0].remove()
    assert list(tmp_path.iterdir()) == []
