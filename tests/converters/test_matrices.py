"""However a matrix is laid out, chunked, compressed and cut, its pieces put together are the matrix."""

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse as sp

from lazypert.converter import open_source
from lazypert_converters._matrices import tiles
from tests.support.h5files import array, mark, sparse, write_base

DTYPES = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "i8", "f2", "f4", "f8", ">f4", ">i2"]
FILTERS = [{}, {"compression": "gzip"}, {"compression": "lzf", "shuffle": True}, {"fletcher32": True}]


@st.composite
def matrices(draw):
    """A dense matrix, in which layout it is written, and how."""
    shape = draw(st.tuples(st.integers(0, 9), st.integers(0, 8)))
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 100, shape) * (rng.random(shape) < draw(st.floats(0, 1)))
    layout = draw(st.sampled_from(["csr", "csc", "dense"]))
    dtype = draw(st.sampled_from(DTYPES))
    chunk = draw(st.tuples(st.integers(1, 10), st.integers(1, 9)))
    options = draw(st.sampled_from(FILTERS))
    index = draw(st.sampled_from(["i4", "i8", "u2", "u8", ">i4"]))
    return values.astype(dtype), layout, chunk, options, index, draw(st.integers(1, 2_000))


def write_matrix(path, values, layout, chunk, options, index):
    n_obs, n_vars = values.shape

    def change(file):
        for name in ("X", "layers"):
            del file[name]
        if layout == "dense":
            fits = 0 not in values.shape
            chunks = tuple(min(c, n) for c, n in zip(chunk, values.shape, strict=True)) if fits else None
            array(file, "X", values, chunks=chunks, **(options if fits else {}))
            return
        native = values.astype("f4" if values.dtype == "f2" else values.dtype.newbyteorder("="))
        made = sp.csr_matrix(native) if layout == "csr" else sp.csc_matrix(native)
        node = mark(file.create_group("X"), f"{layout}_matrix", "0.1.0", shape=values.shape)
        parts = {"data": made.data.astype(values.dtype), "indices": made.indices, "indptr": made.indptr}
        for name, part in parts.items():
            part = part if name == "data" else part.astype(index)
            node.create_dataset(
                name, data=part, **({"chunks": (min(chunk[0], len(part)),), **options} if len(part) else {})
            )

    return write_base(path, change, n_obs, n_vars)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(matrices())
def test_blocks_of_any_budget_are_the_matrix(tmp_path, made):
    *written, budget = made
    values = written[0]
    reader = open_source(write_matrix(tmp_path / "a.h5ad", *written))
    total = np.zeros(values.shape, "f8")
    last_col = np.full(values.shape[0], -1)
    for spec in reader.blocks("X", budget):
        block = reader.read_block(spec)
        csr = block.csr
        assert csr.n_cols == values.shape[1]
        assert csr.data.dtype.isnative
        for k in range(len(csr.indptr) - 1):
            row, cols = block.first_row + k, csr.indices[csr.indptr[k] : csr.indptr[k + 1]]
            # Pieces of a row come in the order of its columns.
            assert (np.diff([last_col[row], *cols]) > 0).all()
            last_col[row] = cols[-1] if len(cols) else last_col[row]
            total[row, cols] += csr.data[csr.indptr[k] : csr.indptr[k + 1]]
    np.testing.assert_array_equal(total, values.astype("f8"))


sides = st.integers(0, 40)


@given(st.tuples(sides, sides), st.none() | st.tuples(st.integers(1, 50), st.integers(1, 50)), st.integers(1, 2_000))
def test_tiles_cover_a_matrix_once_and_cut_chunks_only_where_they_must(shape, chunks, limit):
    seen = np.zeros(shape, int)
    ends = np.zeros(shape[0], int)
    rows, cols = (1, max(1, shape[1])) if chunks is None else np.minimum(chunks, np.maximum(shape, 1))
    for r0, r1, c0, c1 in tiles(shape, chunks, limit):
        assert r0 < r1
        assert c0 < c1
        seen[r0:r1, c0:c1] += 1
        assert (ends[r0:r1] == c0).all()  # from left to right in every row
        ends[r0:r1] = c1
        assert (r1 - r0) * (c1 - c0) <= limit or (r1 - r0 == 1 and c1 - c0 <= cols)
        assert c0 % cols == 0
        if rows * cols <= limit:
            assert r0 % rows == 0
    assert (seen == 1).all()


@pytest.mark.parametrize("chunks", [(100, 1), (1, 100), (10, 10), (100, 100)])
def test_no_chunk_of_a_dense_matrix_is_read_twice(tmp_path, chunks):
    """A budget of an eighth of the matrix suffices for each of these, but for the last: one chunk is all of it."""
    values = np.arange(10_000, dtype="f4").reshape(100, 100)

    def change(file):
        for name in ("X", "layers"):
            del file[name]
        array(file, "X", values, chunks=chunks)

    reader = open_source(write_base(tmp_path / "a.h5ad", change, 100, 100))
    blocks = reader.blocks("X", 10_000)
    touched = [
        (r, c)
        for spec in blocks
        for r in range(spec.start // 100 // chunks[0], (spec.stop - 1) // 100 // chunks[0] + 1)
        for c in range(spec.start % 100 // chunks[1], (spec.stop - 1) % 100 // chunks[1] + 1)
    ]
    assert len(set(touched)) == 10_000 // (chunks[0] * chunks[1])
    if chunks != (100, 100):
        assert len(touched) == len(set(touched))


def test_repeated_values_are_handed_on_as_they_are(tmp_path):
    """The engine sums them, in the order of the file."""

    def change(file):
        for name in ("X", "layers"):
            del file[name]
        matrix = sp.csr_matrix(([1, 2, 4], [2, 0, 2], [0, 3, 3]), shape=(2, 3))
        sparse(file, "X", matrix)

    with h5py.File(write_base(tmp_path / "a.h5ad", change, 2, 3)) as file:
        assert list(file["X/indices"]) == [2, 0, 2]
    reader = open_source(tmp_path / "a.h5ad")
    block = reader.read_block(reader.blocks("X", 100)[0]).csr
    assert block.indices.tolist() == [2, 0, 2]
    assert block.data.tolist() == [1, 2, 4]
