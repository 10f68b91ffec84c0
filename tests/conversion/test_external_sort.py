"""Rows reach their destinations, whatever the blocks and shards."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from lazypert.conversion import external_sort
from lazypert.conversion.array_files import InMemory
from lazypert.conversion.array_writer import Template
from lazypert.conversion.external_sort import BlockSorter, ShardWriter, save_reduce_inputs
from lazypert.conversion.store_files import FolderFiles
from lazypert.converter import BlockSpec, RowBlock
from lazypert.sparse.csr import CSRBlock
from lazypert.store.byte_reader import LocalReader
from lazypert.store.format import Grid
from lazypert.store.sharded_array import ShardedArray


class Source:
    """A SciPy matrix as a source file: blocks are rows of a CSR matrix, or columns of a CSC matrix."""

    def __init__(self, matrix):
        self.matrix = matrix

    def read_block(self, spec):
        if self.matrix.format == "csr":
            rows = self.matrix[spec.start : spec.stop]
            return RowBlock(spec.start, CSRBlock(rows.indptr.astype("i8"), rows.indices, rows.data, rows.shape[1]))
        cols = self.matrix[:, spec.start : spec.stop].tocsr()
        indices = (cols.indices + spec.start).astype("i4")
        return RowBlock(0, CSRBlock(cols.indptr.astype("i8"), indices, cols.data, self.matrix.shape[1]))


def sort_matrix(folder, matrix, destination, block, grid_shape, new_col=None, n_cols=None):
    """Run the map and reduce tasks by hand; return the sorted matrix."""
    n_cols = matrix.shape[1] if n_cols is None else n_cols
    axis = matrix.shape[0 if matrix.format == "csr" else 1]
    specs = [BlockSpec("X", i, min(axis, i + block)) for i in range(0, axis, block)]
    sorter = BlockSorter(Source(matrix), InMemory(destination), 0, new_col, n_cols)
    spills = [sorter.sort_block(spec, folder / f"{i}.spill") for i, spec in enumerate(specs)]
    lengths = np.zeros(matrix.shape[0], dtype=np.int64)
    for spill in spills:
        rows, row_lengths = spill.row_lengths(0, matrix.shape[0])
        lengths[rows] += row_lengths
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    save_reduce_inputs(folder, spills, np.array_split(indptr, 3))
    grid = Grid(int(indptr[-1]), *grid_shape)
    files = FolderFiles(folder)
    data, indices = Template(files, "data", np.dtype("u4"), grid), Template(files, "indices", np.dtype("i4"), grid)
    for array in ("data", "indices"):
        (folder / array / "c").mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(data=data, indices=indices, n_cols=n_cols, work=folder)
    for shard in range(grid.n_shards):
        reduced = writer.write_shard(shard)
        assert [entry.key for entry in reduced.entries] == [f"data/c/{shard}", f"indices/c/{shard}"]
        assert writer.write_shard(shard) == reduced, "a completed task is loaded from its checkpoint"
    result = [
        ShardedArray(LocalReader(folder), t.path, t.dtype, grid).read(0, grid.length) if grid.length else []
        for t in (data, indices)
    ]
    assert sum(spill.total for spill in spills) == sum(result[0])
    return sparse.csr_matrix((result[0], result[1], indptr), shape=(matrix.shape[0], n_cols))


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 6)),
    density=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    layout=st.sampled_from(["csr", "csc"]),
    block=st.integers(1, 13),
    grid_shape=st.sampled_from([(1, 1), (2, 4), (3, 9), (64, 64)]),
    seed=st.integers(0, 99),
    renumber=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_sorting_equals_fancy_indexing(tmp_path_factory, shape, density, layout, block, grid_shape, seed, renumber):
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 70_000, shape) * (rng.random(shape) < density)
    matrix = sparse.csr_matrix(dense).asformat(layout)
    source_row = rng.permutation(shape[0])
    destination = np.argsort(source_row)
    new_col, expected = None, dense[source_row]
    if renumber:  # drop a column and reverse the others
        columns = np.arange(shape[1])[::-1][: max(1, shape[1] - 1)]
        new_col = np.full(shape[1], -1, dtype=np.int32)
        new_col[columns] = np.arange(len(columns))
        expected = expected[:, columns]
    folder = tmp_path_factory.mktemp("sort")
    result = sort_matrix(folder, matrix, destination, block, grid_shape, new_col, expected.shape[1])
    np.testing.assert_array_equal(result.toarray(), expected)
    assert result.has_canonical_format  # computed by SciPy: sorted, no duplicates


def test_renumbered_columns_of_a_column_wise_matrix_are_sorted(tmp_path):
    dense = np.arange(1, 13).reshape(2, 6)
    reverse = np.arange(6, dtype=np.int32)[::-1]
    result = sort_matrix(tmp_path, sparse.csc_matrix(dense), np.arange(2), 2, (2, 4), reverse)
    np.testing.assert_array_equal(result.indices, [*range(6), *range(6)])
    np.testing.assert_array_equal(result.toarray(), dense[:, ::-1])


@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
@pytest.mark.parametrize("block", [1, 3, 100])
def test_shards_do_not_depend_on_the_blocks(tmp_path, monkeypatch, block, rows_at_once):
    monkeypatch.setattr(external_sort, "ROWS_AT_ONCE", rows_at_once)
    rng = np.random.default_rng(4)
    matrix = sparse.csr_matrix(rng.integers(0, 3, (40, 9)))
    source_row = rng.permutation(40)
    shards = []
    for size in (40, block):
        folder = tmp_path / str(size)
        folder.mkdir(exist_ok=True)
        sort_matrix(folder, matrix, np.argsort(source_row), size, (8, 32))
        shards.append({p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("c/*")})
    assert shards[0] == shards[1]
    assert len(shards[0]) > 4
