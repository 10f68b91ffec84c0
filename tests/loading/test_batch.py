"""Sparse rows are the matrix they were made of, on any device and on the host."""

import jax
import numpy as np
import pytest
from scipy import sparse

from lazypert import SparseRows
from tests.support.stores import counts


def padded(matrix, parts=1, room=None, index=np.uint16, value=np.uint16):
    per_part = matrix.shape[0] // parts
    pieces = [matrix[part * per_part : (part + 1) * per_part] for part in range(parts)]
    room = room or max(piece.nnz for piece in pieces) + 3
    indptr = np.stack([piece.indptr for piece in pieces]).astype(np.int32)
    indices, data = np.zeros((parts, room), index), np.zeros((parts, room), value)
    for part, piece in enumerate(pieces):
        indices[part, : piece.nnz], data[part, : piece.nnz] = piece.indices, piece.data
    return SparseRows(indptr, indices, data, matrix.shape[1])


@pytest.mark.parametrize("parts", [1, 3, 9])
@pytest.mark.parametrize(("index", "value"), [(np.uint16, np.uint16), (np.int32, np.float32), (np.uint16, np.uint8)])
def test_are_dense_under_jit_and_scipys_on_the_host(parts, index, value):
    matrix = counts(9, 31)
    rows = padded(matrix, parts, index=index, value=value)
    assert rows.shape == (9, 31)
    for given in (rows, jax.device_put(rows)):
        dense = jax.jit(SparseRows.to_dense)(given)
        assert dense.dtype == np.float32
        np.testing.assert_array_equal(dense, matrix.toarray())
        host = given.to_scipy()
        assert isinstance(host, sparse.csr_matrix)
        assert host.has_canonical_format
        np.testing.assert_array_equal(host.toarray(), matrix.toarray())


def test_what_lies_beyond_the_last_row_is_ignored():
    rows = padded(counts(4, 6))
    rows.data[:, rows.indptr[0, -1] :] = 9
    np.testing.assert_array_equal(jax.jit(SparseRows.to_dense)(rows), counts(4, 6).toarray())


@pytest.mark.parametrize("shape", [(3, 5), (1, 1)])
def test_empty_rows(shape):
    matrix = sparse.csr_matrix(shape, dtype="f4")
    rows = padded(matrix)
    np.testing.assert_array_equal(rows.to_dense(), np.zeros(shape))
    assert rows.to_scipy().nnz == 0


def test_compile_once_for_one_room():
    traced = []

    @jax.jit
    def step(rows):
        traced.append(rows.n_columns)
        return rows.to_dense().sum()

    for seed in range(3):
        matrix = counts(8, 20, seed)
        assert step(padded(matrix, room=200)) == matrix.sum()
    assert traced == [20]


def test_gradients_reach_the_values():
    rows = jax.device_put(padded(counts(4, 6), value=np.float32))
    weights = np.arange(24, dtype=np.float32).reshape(4, 6)

    def loss(data):
        return (SparseRows(rows.indptr, rows.indices, data, 6).to_dense() * weights).sum()

    found = np.asarray(jax.grad(loss)(rows.data))[0]
    matrix = counts(4, 6)
    row, col = np.repeat(np.arange(4), np.diff(matrix.indptr)), matrix.indices
    np.testing.assert_array_equal(found[: matrix.nnz], weights[row, col])
    assert not found[matrix.nnz :].any()
