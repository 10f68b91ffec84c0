"""Sparse rows equal the matrix they were made from, on the device and on the host; reprs are short."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from scipy import sparse

from lazypert import SparseRows
from tests.support.loaders import loader_of
from tests.support.stores import counts


def padded(matrix, n_slices=1, capacity=None, index=np.uint16, value=np.uint16):
    per_slice = matrix.shape[0] // n_slices
    slices = [matrix[number * per_slice : (number + 1) * per_slice] for number in range(n_slices)]
    capacity = capacity or max(rows.nnz for rows in slices) + 3
    indptr = np.stack([rows.indptr for rows in slices]).astype(np.int32)
    indices, data = np.zeros((n_slices, capacity), index), np.zeros((n_slices, capacity), value)
    for number, rows in enumerate(slices):
        indices[number, : rows.nnz], data[number, : rows.nnz] = rows.indices, rows.data
    return SparseRows(indptr, indices, data, matrix.shape[1])


@pytest.mark.parametrize("n_slices", [1, 3, 9])
@pytest.mark.parametrize(("index", "value"), [(np.uint16, np.uint16), (np.int32, np.float32), (np.uint16, np.uint8)])
def test_to_dense_and_to_scipy_equal_the_matrix(n_slices, index, value):
    matrix = counts(9, 31)
    rows = padded(matrix, n_slices, index=index, value=value)
    assert rows.shape == (9, 31)
    for placed in (rows, jax.device_put(rows)):
        dense = jax.jit(SparseRows.to_dense)(placed)
        assert dense.dtype == np.float32
        np.testing.assert_array_equal(dense, matrix.toarray())
        host = placed.to_scipy()
        assert isinstance(host, sparse.csr_matrix)
        assert host.has_canonical_format
        np.testing.assert_array_equal(host.toarray(), matrix.toarray())
        np.testing.assert_array_equal((host[3] - host[5]).toarray(), (matrix[3] - matrix[5]).toarray())


@pytest.mark.parametrize(("stored", "expected"), [("u2", "f4"), ("u4", "f8"), ("i4", "f8"), ("f4", "f4")])
def test_to_scipy_gives_floats_that_are_exact(stored, expected):
    largest = 2**32 - 1 if stored == "u4" else 2**31 - 1 if stored == "i4" else 65_535
    host = padded(sparse.csr_matrix(np.array([[largest, 0], [0, 1]])), value=np.dtype(stored)).to_scipy()
    assert host.dtype == expected
    assert host.toarray().tolist() == [[largest, 0], [0, 1]]


def test_values_after_the_last_row_are_ignored():
    rows = padded(counts(4, 6))
    rows.data[:, rows.indptr[0, -1] :] = 9
    np.testing.assert_array_equal(jax.jit(SparseRows.to_dense)(rows), counts(4, 6).toarray())


@pytest.mark.parametrize("shape", [(3, 5), (1, 1)])
def test_empty_rows(shape):
    matrix = sparse.csr_matrix(shape, dtype="f4")
    rows = padded(matrix)
    np.testing.assert_array_equal(rows.to_dense(), np.zeros(shape))
    assert rows.to_scipy().nnz == 0


def test_equal_capacities_compile_once():
    traced = []

    @jax.jit
    def step(rows):
        traced.append(rows.n_columns)
        return rows.to_dense().sum()

    for seed in range(3):
        matrix = counts(8, 20, seed)
        assert step(padded(matrix, capacity=200)) == matrix.sum()
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


@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize("to", ["jax", "numpy"])
def test_repr_shows_dtypes_and_shapes_in_a_few_lines(source, layout, to):
    obs = ("perturbation", "cell_type", "batch", source.stores[0].obs_columns[0])
    extras = ("pert_emb", "cell_type_onehot", "batch_onehot", "barcode")
    batch = next(iter(loader_of(source, layout=layout, to=to, extras=extras, obs=obs)))
    text = repr(batch)
    assert len(text.splitlines()) <= 8
    assert max(map(len, text.splitlines())) <= 120
    assert "is_padding bool[28]" in text
    assert "obs['cell_type'] int32[28]" in text
    assert "sentence_size 7" in text
    if layout == "dense":
        assert "counts float32[28,200], controls float32[28,2,200]" in text
    else:
        assert "counts SparseRows(n_columns=200: indptr int32[1,29]," in text


def test_repr_of_batches_of_other_leaves(source):
    """JAX maps functions over batches, and prints batches of tracers in its errors."""
    batch = next(iter(loader_of(source, n_basal_samples=0)))
    assert "controls" not in repr(batch)
    assert "counts 'leaf'" in repr(jax.tree.map(lambda _: "leaf", batch))
    texts = []
    jax.jit(lambda traced: texts.append(repr(traced)))(batch)
    assert "counts float32[28,200]" in texts[0]


def test_numpy_batches_do_not_import_jax_and_are_pytrees_once_it_is(reference):
    code = (
        "import sys, lazypert as lp; from lazypert.pipeline import *\n"
        f"result = PerturbationPipeline(PerturbationPipelineConfig()).setup([{str(reference.store)!r}])\n"
        "loader = result.loader('train', to='numpy', layout='csr', sentences_per_batch=2, sentence_size=4)\n"
        "batch = next(iter(loader)); print('jax' in sys.modules, loader.host, loader.n_hosts)\n"
        "import jax; new = loader.batch(0, 0); print(len(jax.tree.leaves(new)), batch.counts.to_dense().shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "False 0 1"
    assert done.stdout.split("\n")[1] == "14 (8, 200)"
