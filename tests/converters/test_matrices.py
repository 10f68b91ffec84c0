"""Source blocks of any layout, chunking, compression and size add up to the matrix, and broken matrices are refused."""

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse as sp

from lazypert.converter import open_source
from lazypert_converters._matrices import tiles
from tests.support.conversions import assert_converted, assert_refused, write_changed
from tests.support.h5changes import X, all_of, as_type, attribute, cut, drop, only, put, without
from tests.support.h5files import N_OBS, N_VARS, PERTURBATION_ROLES, array, dense_x, mark, replace, sparse, write_base
from tests.support.sampling import sampled

DTYPES = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "i8", "f2", "f4", "f8", ">f4", ">i2"]
FILTERS = [{}, {"compression": "gzip"}, {"compression": "lzf", "shuffle": True}, {"fletcher32": True}]


@st.composite
def matrices(draw):
    """Draw a dense matrix, and the layout and options with which it is written."""
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
            is_chunked = 0 not in values.shape
            chunks = tuple(min(c, n) for c, n in zip(chunk, values.shape, strict=True)) if is_chunked else None
            array(file, "X", values, chunks=chunks, **(options if is_chunked else {}))
            return
        native = values.astype("f4" if values.dtype == "f2" else values.dtype.newbyteorder("="))
        made = sp.csr_matrix(native) if layout == "csr" else sp.csc_matrix(native)
        node = mark(file.create_group("X"), f"{layout}_matrix", "0.1.0", shape=values.shape)
        arrays = {
            "data": made.data.astype(values.dtype),
            "indices": made.indices.astype(index),
            "indptr": made.indptr.astype(index),
        }
        for name, data in arrays.items():
            node.create_dataset(
                name, data=data, **({"chunks": (min(chunk[0], len(data)),), **options} if len(data) else {})
            )

    return write_base(path, change, n_obs, n_vars)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(matrices())
def test_source_blocks_of_any_size_add_up_to_the_matrix(tmp_path, made):
    *written, max_bytes = made
    values = written[0]
    reader = open_source(write_matrix(tmp_path / "a.h5ad", *written))
    total = np.zeros(values.shape, "f8")
    last_col = np.full(values.shape[0], -1)
    for spec in reader.blocks("X", max_bytes):
        block = reader.read_block(spec)
        csr = block.csr
        assert csr.n_cols == values.shape[1]
        assert csr.data.dtype.isnative
        for k in range(len(csr.indptr) - 1):
            row, cols = block.first_row + k, csr.indices[csr.indptr[k] : csr.indptr[k + 1]]
            # The blocks hold the values of a row in column order.
            assert (np.diff([last_col[row], *cols]) > 0).all()
            last_col[row] = cols[-1] if len(cols) else last_col[row]
            total[row, cols] += csr.data[csr.indptr[k] : csr.indptr[k + 1]]
    np.testing.assert_array_equal(total, values.astype("f8"))


sides = st.integers(0, 40)


@given(st.tuples(sides, sides), st.none() | st.tuples(st.integers(1, 50), st.integers(1, 50)), st.integers(1, 2_000))
def test_tiles_cover_a_matrix_once_and_cut_chunks_only_if_they_exceed_the_limit(shape, chunks, limit):
    seen = np.zeros(shape, int)
    ends = np.zeros(shape[0], int)
    rows, cols = (1, max(1, shape[1])) if chunks is None else np.minimum(chunks, np.maximum(shape, 1))
    for r0, r1, c0, c1 in tiles(shape, chunks, limit):
        assert r0 < r1
        assert c0 < c1
        seen[r0:r1, c0:c1] += 1
        assert (ends[r0:r1] == c0).all()  # left to right in every row
        ends[r0:r1] = c1
        assert (r1 - r0) * (c1 - c0) <= limit or (r1 - r0 == 1 and c1 - c0 <= cols)
        assert c0 % cols == 0
        if rows * cols <= limit:
            assert r0 % rows == 0
    assert (seen == 1).all()


@pytest.mark.parametrize("chunks", [(100, 1), (1, 100), (10, 10), (100, 100)])
def test_chunks_of_a_dense_matrix_are_read_once(tmp_path, chunks):
    """An eighth of the matrix is a sufficient block size, except if one chunk is the entire matrix."""
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


def test_repeated_entries_are_not_summed(tmp_path):
    """The conversion sums them, in file order."""

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


def unsorted(file):
    matrix = X.copy()
    for row in range(N_OBS):
        here = slice(matrix.indptr[row], matrix.indptr[row + 1])
        matrix.indices[here], matrix.data[here] = matrix.indices[here][::-1], matrix.data[here][::-1]
    replace(file, "X/indices", matrix.indices)
    replace(file, "X/data", matrix.data)


CONVERTED = {
    "indices_int64": all_of(as_type("X/indices", "i8"), as_type("X/indptr", "i8")),
    "indices_unsigned": all_of(as_type("X/indices", "u4"), as_type("X/indptr", "u8")),
    "indices_narrow": all_of(as_type("X/indices", "u1"), as_type("X/indptr", "i2")),
    "indices_unsorted": unsorted,
    "indices_repeated": all_of(put("X/indices", slice(0, 3), 2)),
    "explicit_zeros": put("X/data", slice(0, 9, 2), 0),
    "nothing_stored": only(lambda f: sparse(f, "X", X * 0)),
    "no_values": only(lambda f: sparse(f, "X", type(X)(X.shape))),
    "csc": only(lambda f: sparse(f, "X", X.tocsc(), "csc_matrix", chunks=(4,))),
    "dense": lambda f: dense_x(f, X.toarray()),
    "dense_by_columns": lambda f: dense_x(f, X.toarray(), chunks=(N_OBS, 1), compression="gzip"),
    "dense_in_tiles": lambda f: dense_x(f, X.toarray(), chunks=(5, 3), compression="lzf"),
    "dense_not_finite": lambda f: dense_x(f, np.where(X.toarray() > 5, np.nan, np.inf)),
    "dense_with_fortran_order": lambda f: dense_x(f, np.asfortranarray(X.toarray())),
    "float64": lambda f: replace(f, "X/data", X.data * np.pi),
    "float16_dense": lambda f: dense_x(f, X.toarray().astype("f2") / 4),
    "bool": lambda f: dense_x(f, X.toarray() > 0),
    "int8": lambda f: replace(f, "X/data", -X.data.astype("i1")),
    "uint8": as_type("X/data", "u1"),
    "int64_large": lambda f: replace(f, "X/data", X.data.astype("i8") + 2**60),
}


@pytest.mark.parametrize("case", sampled(CONVERTED))
def test_odd_matrices_are_converted_exactly(tmp_path, case):
    assert_converted(tmp_path / "odd.h5ad", CONVERTED[case])


@pytest.mark.parametrize("case", ["csc", "dense_in_tiles"])
def test_odd_matrices_are_grouped_exactly(tmp_path, case):
    assert_converted(tmp_path / "odd.h5ad", CONVERTED[case], **PERTURBATION_ROLES)


REFUSED = {
    "negative_index": (put("X/indices", 3, -1), "'X/indices'.*holds -1 at element 3"),
    "index_too_large": (put("X/indices", 3, N_VARS), "'X/indices'.*holds 7 at element 3"),
    "index_beyond_32_bits": (all_of(as_type("X/indices", "i8"), put("X/indices", 3, 2**32)), "'X/indices'.*4294967296"),
    "index_of_a_column_too_large": (
        all_of(only(lambda f: sparse(f, "X", X.tocsc(), "csc_matrix")), put("X/indices", 0, N_OBS)),
        "'X/indices'.*holds 12",
    ),
    "layer_index_too_large": (put("layers/double/indices", 0, 99), "'layers/double/indices'.*holds 99"),
    "indptr_not_from_zero": (put("X/indptr", 0, 1), "'X/indptr'.*starts at 1"),
    "indptr_decreases": (put("X/indptr", 5, 0), "'X/indptr'.*decreases"),
    "indptr_past_the_end": (put("X/indptr", -1, 10**6), "'X/indptr'.*ends at 1,000,000"),
    "indptr_short": (cut("X/indptr"), "'X/indptr'.*has 12 elements, expected 13"),
    "indptr_beyond_64_bits": (
        all_of(as_type("X/indptr", "u8"), put("X/indptr", -1, 2**64 - 1)),
        "'X/indptr'.*18446744073709551615",
    ),
    "data_shorter_than_indices": (cut("X/data"), "'X/indices'.*as many as data"),
    "both_shorter_than_indptr": (all_of(cut("X/data"), cut("X/indices")), "'X/indptr'.*ends at"),
    "indices_of_floats": (as_type("X/indices", "f8"), "'X/indices'.*float64, expected integers"),
    "no_indptr": (drop("X/indptr"), "'X/indptr'.*is missing"),
    "no_data": (drop("X/data"), "'X/data'.*is missing"),
    "data_is_a_group": (all_of(drop("X/data"), lambda f: f.create_group("X/data")), "'X/data'.*is a group"),
    "data_in_a_table": (lambda f: replace(f, "X/data", f["X/data"][:][None]), "'X/data'.*one dimension"),
    "integers_beyond_64_bits": (
        lambda f: replace(f, "X/data", np.full(X.nnz, 2**63, "u8")),
        "'X/data'.*9223372036854775808",
    ),
    "shape_wrong": (attribute("X", shape=[N_OBS, N_VARS + 1]), r"'X'.*\(12, 8\), expected \(12, 7\)"),
    "shape_of_three": (attribute("X", shape=[1, 2, 3]), r"'X'.*\[1, 2, 3\] as its shape"),
    "shape_negative": (attribute("X", shape=[-1, 2]), r"'X'.*\[-1, 2\] as its shape"),
    "shape_of_text": (attribute("X", shape="12x7"), "'X'.*'12x7' as its shape"),
    "no_shape": (without("X", "shape"), "'X'.*None as its shape"),
    "x_of_three_dimensions": (lambda f: dense_x(f, np.zeros((N_OBS, N_VARS, 2))), r"'X'.*\(12, 7, 2\)"),
    "x_of_one_dimension": (lambda f: dense_x(f, np.zeros(N_OBS)), r"'X'.*\(12,\)"),
    "x_transposed": (lambda f: dense_x(f, X.toarray().T), r"'X'.*\(7, 12\), expected \(12, 7\)"),
    "x_of_text": (lambda f: dense_x(f, np.full((N_OBS, N_VARS), b"x")), "'X'.*expected numbers"),
    "x_of_complex_numbers": (lambda f: dense_x(f, X.toarray().astype("c16")), "'X'.*complex128"),
    "x_of_long_doubles": (lambda f: dense_x(f, X.toarray().astype("g")), "'X'.*float128"),
    "data_of_text": (lambda f: replace(f, "X/data", np.full(X.nnz, b"x")), "'X/data'.*expected numbers"),
    "x_of_unknown_encoding": (attribute("X", **{"encoding-type": "coo_matrix"}), "'X'.*'coo_matrix 0.1.0'"),
    "x_of_a_later_version": (attribute("X", **{"encoding-version": "9.0"}), "'X'.*'csr_matrix 9.0'"),
    "x_without_encoding": (without("X", "encoding-type"), "'X'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_broken_matrices_are_refused_with_one_clear_error(tmp_path, capsys, case):
    change, says = REFUSED[case]
    path, written = write_changed(tmp_path / "odd.h5ad", change)
    assert_refused(path, says, capsys, written=written)
