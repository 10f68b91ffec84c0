"""Batches of both layouts, on the host and on the device, hold the same values."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from lazypert import SparseRows
from lazypert.errors import ConfigError
from lazypert.loading.block_reader import Block
from lazypert.loading.buffer_pool import BufferPool
from lazypert.loading.collate import CollateConfig, Collator
from lazypert.loading.row_pointers import RowPointers, RowTransform
from lazypert.sparse.row_view import RowView, contiguous_layout
from tests.support.loaders import loader_of, same_batch, whole_loader
from tests.support.stores import counts, screen, write


def test_sparse_rows_equal_dense_ones(source):
    for dense, csr in zip(loader_of(source), loader_of(source, layout="csr"), strict=True):
        assert isinstance(csr.counts, SparseRows)
        np.testing.assert_array_equal(jax.jit(SparseRows.to_dense)(csr.counts), dense.counts)
        np.testing.assert_array_equal(np.asarray(csr.controls.to_dense()).reshape(28, 2, 200), dense.controls)
        assert csr.counts.to_scipy().shape == (28, 200)


@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_numpy_arrays_equal_those_of_jax(source, layout):
    for on_device, on_host in zip(
        loader_of(source, layout=layout), loader_of(source, layout=layout, to="numpy"), strict=True
    ):
        assert not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(on_host))
        assert same_batch(on_device, on_host)


def test_sparse_batches_compile_at_most_twice(source):
    traced = []

    @jax.jit
    def step(batch):
        traced.append(batch.counts.data.shape)
        return batch.counts.to_dense().sum()

    for batch in loader_of(source, layout="csr"):
        step(batch)
    assert len(traced) <= 2  # one capacity for nearly all batches, and a larger one for the others


@pytest.mark.parametrize("to", ["jax", "numpy"])
def test_64_bit_counts_become_float32(tmp_path, to):
    adata = screen(60, lean=True)
    adata.X = counts(60, 17, dtype="i8") * 2**37
    loader = whole_loader(write(adata, tmp_path / "s.h5ad"))
    for dense, csr in zip(loader(to=to), loader(to=to, layout="csr"), strict=True):
        names = list(loader.source.obs_names(np.asarray(dense.row)))
        np.testing.assert_array_equal(dense.counts, adata[names].X.toarray())
        np.testing.assert_array_equal(csr.counts.to_dense(), dense.counts)
        np.testing.assert_array_equal(np.asarray(csr.controls.to_dense()).reshape(8, 2, 17), dense.controls)


@pytest.fixture
def buffers():
    return BufferPool(10**6)


def make_collator(buffers, *, n_columns=40, **options):
    config = {"batch_size": 6, "sentence_size": 3, "n_basal_samples": 0, "layout": "csr", "to": "numpy"}
    config |= {"nnz_per_cell": 12.0, "is_zero_copy": True}
    transform = RowTransform(columns=None, n_columns=n_columns)
    return Collator(CollateConfig(**config | options), transform, NoMetadata(), buffers)


class NoMetadata:
    axis_vectors = ()


def make_block(rows):
    """A block of sparse rows whose other fields are zeros."""
    n = len(rows)
    columns = {
        name: np.zeros(n, np.int32) for name in ("pert_code", "cell_type_code", "batch_code", "dataset_code", "row")
    }
    columns |= {name: np.zeros(n, bool) for name in ("is_control", "is_padding")}
    return Block(columns, rows, None, np.zeros(n, np.uint64), np.zeros(0, np.uint64), {})


def view_at(matrix, starts, size):
    """A row view of a SciPy matrix with rows at given offsets, and other values between them."""
    view = RowView(
        starts, np.diff(matrix.indptr).astype(np.int64), np.full(size, 7, np.uint16), np.full(size, 99, np.float32), 40
    )
    for row, start in enumerate(starts):
        of_row = slice(matrix.indptr[row], matrix.indptr[row + 1])
        view.indices[start : start + view.lengths[row]] = matrix.indices[of_row]
        view.data[start : start + view.lengths[row]] = matrix.data[of_row]
    return view


def test_rows_in_the_padded_layout_are_not_copied(buffers):
    matrix = counts(18, 40)
    collator = make_collator(buffers)
    starts, size = collator.padded_layout(np.diff(matrix.indptr).astype(np.int64))
    view = view_at(matrix, starts, size)
    block = make_block(RowPointers.from_view(view))
    for number in range(3):
        batch = collator.batch(block, number)
        assert np.shares_memory(batch.counts.data, view.data)
        np.testing.assert_array_equal(batch.counts.to_scipy().toarray(), matrix[6 * number : 6 * number + 6].toarray())
        padding = batch.counts.data[0, batch.counts.indptr[0, -1] :]
        assert len(padding)
        assert not padding.any()


def test_capacity_depends_on_the_batch_alone(buffers):
    """Batches have the same shape whatever else is in their block; a large one does not widen its neighbours."""
    collator = make_collator(buffers, nnz_per_cell=500.0, n_columns=10_000)
    lengths = np.array([400] * 6 + [880] * 6 + [0] * 6)
    offsets, size = collator.padded_layout(lengths)
    alone = [collator.padded_layout(lengths[start : start + 6]) for start in (0, 6, 12)]
    assert [each for _, each in alone] == [4096, 6144, 4096]
    assert size == sum(each for _, each in alone)
    starts = np.repeat(np.cumsum([0, 4096, 6144]), 6)
    np.testing.assert_array_equal(offsets, starts + np.concatenate([each for each, _ in alone]))


def test_rows_in_another_layout_are_copied(buffers):
    matrix = counts(18, 40)
    starts, size = contiguous_layout(np.diff(matrix.indptr).astype(np.int64))
    view = view_at(matrix, starts, size)
    batch = make_collator(buffers).batch(make_block(RowPointers.from_view(view)), 1)
    assert not np.shares_memory(batch.counts.data, view.data)
    np.testing.assert_array_equal(batch.counts.to_scipy().toarray(), matrix[6:12].toarray())


def test_controls_are_always_copied(buffers):
    """Even if they are as many as the rows of their row view, and it happens to have the padded layout."""
    matrix = counts(12, 40)
    collator = make_collator(buffers, n_basal_samples=2)
    starts, size = make_collator(buffers, batch_size=12).padded_layout(np.diff(matrix.indptr).astype(np.int64))
    drawn = np.array([3, 1, 0, 2, 5, 4, 11, 7, 6, 10, 8, 9])
    cells = RowPointers.from_view(view_at(matrix[:6], *contiguous_layout(np.diff(matrix.indptr[:7]).astype(np.int64))))
    controls = RowPointers.from_view(view_at(matrix, starts, size))[drawn]
    block = replace(make_block(cells), controls=controls, control_keys=np.zeros(12, np.uint64))
    batch = collator.batch(block, 0)
    assert not np.shares_memory(batch.controls.data, controls.views[0].data)
    np.testing.assert_array_equal(batch.controls.to_scipy().toarray(), matrix[drawn].toarray())


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_embeddings_are_not_transformed(buffers, layout):
    features = np.random.default_rng(0).random((12, 40), dtype=np.float32)
    batch = make_collator(buffers, layout=layout).batch(make_block(features), 1)
    np.testing.assert_array_equal(batch.counts, features[6:])


def test_nearly_all_batches_have_the_same_capacity(buffers):
    """It is that of an average batch plus 15 %, and grows in few steps."""
    collator = make_collator(buffers, nnz_per_cell=1000.0, n_columns=18_000)
    assert collator._capacity(6, 0) == collator._capacity(6, 6_900) == 7_168
    assert collator._capacity(6, 7_000) == collator._capacity(6, 8_625) == 9_216
    assert make_collator(buffers, nnz_per_cell=1000.0, n_columns=10)._capacity(6, 60) == 1_024


def test_a_sharding_must_divide_the_batch(buffers):
    class Indivisible:
        is_fully_addressable = True

        def shard_shape(self, shape):
            raise ValueError("not divisible")

    with pytest.raises(ConfigError, match=r"sharding: got .*, which cannot divide a batch of 6 cells: not divisible"):
        make_collator(buffers, sharding=Indivisible(), to="jax")
