"""Matrices return the rows and columns that AnnData reads, however chunks are read, and detect damage."""

from dataclasses import replace

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert.errors import StoreDamagedError
from lazypert.sparse.columns import ColumnSelection
from lazypert.store.sharded_array import ShardedArray
from lazypert.store.store import Store
from tests.support.native import hide_native_functions
from tests.support.stores import converted, copied, flip, read_store, small_grids


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        small_grids(patch)
        return converted(tmp_path_factory.mktemp("store"))[1]


@pytest.fixture(scope="module")
def opened(made):
    return Store(made)


@pytest.fixture(scope="module")
def expected(made):
    return read_store(made)


@given(st.integers(0, 90), st.integers(0, 90))
@settings(max_examples=50, deadline=None)
def test_ranges_of_rows_equal_anndata(opened, expected, a, b):
    start, stop = min(a, b), max(a, b)
    block = opened.matrix().read(start, stop)
    np.testing.assert_array_equal(block.to_dense(), expected.X[start:stop].toarray())


@pytest.mark.parametrize("resident_rows", [0, 90])
@given(st.lists(st.integers(0, 89), max_size=30))
@settings(max_examples=50, deadline=None)
def test_any_rows_equal_anndata(opened, expected, resident_rows, rows):
    """Whether the bounds of all rows are in memory, or those of the rows are read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lazypert.store.matrix.RESIDENT_ROWS", resident_rows)
        for name, matrix in (("X", expected.X), ("layers/lognorm", expected.layers["lognorm"])):
            block = opened.open_matrix(name).read_rows(np.array(rows, dtype=int))
            np.testing.assert_array_equal(block.to_dense(), matrix[rows].toarray())
            assert block.indices.dtype == matrix.indices.dtype == np.int32


def in_memory(array, numbers, original=ShardedArray.open_chunks):
    """Read chunks into memory, as those of remote objects are."""
    if array.reader.has_files:
        array = ShardedArray(replace(array.reader.reader, has_files=False), array.path, array.dtype, array.grid)
    return original(array, numbers)


@pytest.mark.parametrize("way", ["at once", "in small steps", "from memory", "python"])
@given(
    st.lists(st.integers(0, 89), max_size=30),
    st.lists(st.integers(0, 16), unique=True, max_size=17),
)
@settings(max_examples=40, deadline=None)
def test_selected_columns_of_any_rows_equal_anndata(opened, expected, way, rows, wanted):
    """Also the totals, which are over all columns."""
    columns = ColumnSelection.from_indices(np.array(wanted, dtype=int), 17)
    with pytest.MonkeyPatch.context() as patch:
        if way == "in small steps":
            patch.setattr(ShardedArray, "MAX_CHUNKS_IN_MEMORY", 1)
            patch.setattr(ShardedArray, "MAX_OPEN_FILES", 1)
        elif way == "from memory":
            patch.setattr(ShardedArray, "open_chunks", in_memory)
        elif way == "python":
            hide_native_functions(patch)
        for name, matrix in (("X", expected.X), ("layers/lognorm", expected.layers["lognorm"])):
            view = opened.open_matrix(name).read_columns(np.array(rows, dtype=int), columns, totals=True)
            assert view.n_cols == len(wanted)
            found = np.zeros((len(rows), len(wanted)))
            for row, start, length in zip(found, view.offsets, view.lengths, strict=True):
                row[view.indices[start : start + length]] = view.data[start : start + length]
            np.testing.assert_array_equal(found, matrix[rows].toarray()[:, wanted])
            totals = matrix[rows].toarray().sum(axis=1, dtype=float)
            np.testing.assert_allclose(view.totals, totals, rtol=1e-12)
            assert opened.open_matrix(name).read_columns(np.array(rows, dtype=int), columns).totals is None
            for target_sum in (None, 1e4):
                out = opened.open_matrix(name).read_dense(np.array(rows, dtype=int), columns, target_sum=target_sum)
                assert (out.dtype, out.shape) == (np.float32, (len(rows), len(wanted)))
                scale = 1.0 if target_sum is None else target_sum / np.where(totals > 0, totals, 1)[:, None]
                scaled = matrix[rows].toarray().astype(float)[:, wanted] * scale
                np.testing.assert_allclose(out, scaled if target_sum is None else np.log1p(scaled), rtol=3e-6)


@pytest.mark.parametrize("array", ["indices", "data"])
def test_damage_is_detected_when_columns_are_selected(tmp_path, made, array):
    broken = copied(made, tmp_path / "broken.zarr")
    flip(broken / f"X/{array}/c/0", 8 * 30)
    matrix, columns = Store(broken).matrix(), ColumnSelection.from_indices(np.arange(3), 17)
    for read in (matrix.read_columns, matrix.read_dense):
        with pytest.raises(StoreDamagedError, match=f"X/{array}/c/0: the checksum of chunk 0"):
            read(np.arange(90), columns)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bounds: bounds[::-1], "row bounds descend"),
        (lambda bounds: np.where(np.arange(91) == 40, bounds[20], bounds), "row bounds descend"),
        (lambda bounds: np.where(np.arange(91) == 40, bounds[60], bounds), "row bounds descend"),
        (lambda bounds: bounds + bounds[-1], "row bounds point beyond the [0-9,]+ stored values"),
        (lambda bounds: bounds - 50, "row bounds (point beyond|descend)"),
    ],
)
@pytest.mark.parametrize("resident_rows", [0, 90])
def test_impossible_row_bounds_raise_though_every_checksum_matches(
    tmp_path, made, change, message, resident_rows, monkeypatch
):
    """So that nothing is decoded out of bounds."""
    monkeypatch.setattr("lazypert.store.matrix.RESIDENT_ROWS", resident_rows)
    broken = copied(made, tmp_path / "broken.zarr")
    array = zarr.open_array(broken / "X/indptr", mode="r+")
    array[:] = change(array[:].astype("i8"))
    matrix = Store(broken).matrix()
    rows = np.array([1, 2, 10, 38, 39, 41, 45, 61, 80, 89])
    columns = ColumnSelection.from_indices(np.arange(17), 17)
    reads = [matrix.read_rows, lambda r: matrix.read_columns(r, columns), lambda r: matrix.read_dense(r, columns)]
    for read in reads:
        with pytest.raises(StoreDamagedError, match=message):
            read(rows)


def test_rows_out_of_bounds_raise(opened):
    with pytest.raises(IndexError, match="X: got rows 3 to 90, expected rows within its 90 rows"):
        opened.matrix().read_rows(np.array([90, 3]))


def test_the_repr_names_matrix_shape_and_dtype(opened, expected):
    nnz = expected.layers["lognorm"].nnz
    assert repr(opened.matrix("lognorm")) == f"Matrix('layers/lognorm', 90 x 17, float64, {nnz:,} stored values)"
