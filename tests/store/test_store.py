"""Reading a finished store: any rows, any table, and never anything that was not written."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import lazypert as lp
from lazypert.errors import ColumnNotFoundError, LazypertError, StoreDamagedError, StoreNotFoundError
from lazypert.sparse.columns import ColumnSelection
from lazypert.store import native
from lazypert.store.sharded_array import ShardedArray
from lazypert.store.store import Store
from tests.support.stores import (
    ROLES,
    converted,
    copied,
    dense,
    every_column,
    files,
    flip,
    read_store,
    screen,
    small_grids,
)


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


@given(st.lists(st.integers(0, 89), max_size=30))
@settings(max_examples=50, deadline=None)
def test_any_rows_equal_anndata(opened, expected, rows):
    for name, matrix in (("X", expected.X), ("layers/lognorm", expected.layers["lognorm"])):
        block = opened.sparse(name).read_rows(np.array(rows, dtype=int))
        np.testing.assert_array_equal(block.to_dense(), matrix[rows].toarray())


def in_memory(array, numbers, original=ShardedArray._packed):
    """Chunks as they come of objects, which are no files."""
    if array.reader.has_files:
        array = ShardedArray(replace(array.reader, has_files=False), array.path, array.dtype, array.grid)
    return original(array, numbers)


WAYS = ["together", "a chunk and a shard at a time", "from memory", "without the functions"]


@pytest.mark.parametrize("way", WAYS)
@given(
    st.lists(st.integers(0, 89), max_size=30),
    st.lists(st.integers(0, 16), unique=True, max_size=17),
)
@settings(max_examples=40, deadline=None)
def test_wanted_columns_of_any_rows_equal_anndata(opened, expected, way, rows, wanted):
    """Each row with its total over all columns, whichever are wanted."""
    table = ColumnSelection.from_indices(np.array(wanted, dtype=int), 17)
    with pytest.MonkeyPatch.context() as patch:
        if way == "a chunk and a shard at a time":
            patch.setattr(ShardedArray, "CHUNKS_AT_ONCE", 1)
            patch.setattr(ShardedArray, "FILES_AT_ONCE", 1)
        elif way == "from memory":
            patch.setattr(ShardedArray, "_packed", in_memory)
        elif way == "without the functions":
            patch.setattr(native, "FUNCTIONS", None)
        for name, matrix in (("X", expected.X), ("layers/lognorm", expected.layers["lognorm"])):
            placed = opened.sparse(name).read_columns(np.array(rows, dtype=int), table, totals=True)
            assert placed.n_cols == len(wanted)
            found = np.zeros((len(rows), len(wanted)))
            for line, start, length in zip(found, placed.starts, placed.lengths, strict=True):
                line[placed.indices[start : start + length]] = placed.data[start : start + length]
            np.testing.assert_array_equal(found, matrix[rows].toarray()[:, wanted])
            totals = matrix[rows].toarray().sum(axis=1, dtype=float)
            np.testing.assert_allclose(placed.totals, totals, rtol=1e-12)
            assert opened.sparse(name).read_columns(np.array(rows, dtype=int), table).totals is None
            for target_sum in (None, 1e4):
                shown = opened.sparse(name).read_dense(np.array(rows, dtype=int), table, target_sum=target_sum)
                assert (shown.dtype, shown.shape) == (np.float32, (len(rows), len(wanted)))
                scale = 1.0 if target_sum is None else target_sum / np.where(totals > 0, totals, 1)[:, None]
                scaled = matrix[rows].toarray().astype(float)[:, wanted] * scale
                np.testing.assert_allclose(shown, scaled if target_sum is None else np.log1p(scaled), rtol=3e-6)


@pytest.mark.parametrize("part", ["indices", "data"])
def test_damage_is_found_where_only_some_columns_are_wanted(tmp_path, made, part):
    broken = copied(made, tmp_path / "broken.zarr")
    flip(broken / f"X/{part}/c/0", 8 * 30)
    matrix, table = Store(broken).matrix(), ColumnSelection.from_indices(np.arange(3), 17)
    for read in (matrix.read_columns, matrix.read_dense):
        with pytest.raises(StoreDamagedError, match=f"X/{part}/c/0: the checksum of chunk 0"):
            read(np.arange(90), table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bounds: bounds[::-1], "descends"),
        (lambda bounds: np.where(np.arange(91) == 40, bounds[20], bounds), "descends"),
        (lambda bounds: np.where(np.arange(91) == 40, bounds[60], bounds), "descends"),
        (lambda bounds: bounds + bounds[-1], "points beyond the [0-9,]+ stored values"),
        (lambda bounds: bounds - 50, "points beyond|descends"),
    ],
)
def test_bounds_that_make_no_sense_are_damage(tmp_path, made, change, message):
    """With every checksum right: nothing is decoded to where it does not belong."""
    broken = copied(made, tmp_path / "broken.zarr")
    array = zarr.open_array(broken / "X/indptr", mode="r+")
    array[:] = change(array[:].astype("i8"))
    matrix = Store(broken).matrix()
    rows = np.array([1, 2, 10, 38, 39, 41, 45, 61, 80, 89])
    table = ColumnSelection.from_indices(np.arange(17), 17)
    reads = [matrix.read_rows, lambda r: matrix.read_columns(r, table), lambda r: matrix.read_dense(r, table)]
    for read in reads:
        with pytest.raises(StoreDamagedError, match=message):
            read(rows)


def test_the_var_table_and_every_column_come_back(made, expected):
    store = Store(made)
    pd.testing.assert_frame_equal(store.var, expected.var, check_index_type=False, check_dtype=False)
    assert store.obs_columns == tuple(every_column(1).columns)
    assert store.strings("obs/_index").tolist() == expected.obs_names.tolist()
    assert store.is_ordered("obs/ordered")
    for name in store.obs_columns:
        ours = pd.Series(store.column(f"obs/{name}"))
        assert ours.isna().tolist() == expected.obs[name].isna().tolist()
        kept = expected.obs[name].notna().to_numpy()
        assert ours[kept].tolist() == expected.obs[name][kept].tolist()


def test_embeddings(made, expected):
    found = Store(made).obsm["X_pca"]
    assert (found.shape, found.dtype) == ((90, 3), np.float32)
    np.testing.assert_array_equal(found[5:9], expected.obsm["X_pca"][5:9])
    np.testing.assert_array_equal(found.oindex[np.array([7, 2, 2])], expected.obsm["X_pca"][[7, 2, 2]])
    np.testing.assert_array_equal(
        dense(expected.obsm["guides"]), Store(made).sparse("obsm/guides").read(0, 90).to_dense()
    )


def test_a_store_and_its_matrices_are_picklable(made, expected):
    store = pickle.loads(pickle.dumps(Store(made)))
    assert repr(store) == f"Store({str(made)!r}, 90 cells x 17 genes)"
    matrix = pickle.loads(pickle.dumps(store.matrix()))
    np.testing.assert_array_equal(matrix.read(3, 9).to_dense(), expected.X[3:9].toarray())
    assert matrix.is_counts
    assert not store.matrix("lognorm").is_counts


def test_unknown_names_list_near_ones(made):
    with pytest.raises(ColumnNotFoundError, match="Did you mean 'lognorm'"):
        Store(made).matrix("lognrom")
    with pytest.raises(ColumnNotFoundError, match="Did you mean 'batch'"):
        Store(made).require_obs("Batch")


@pytest.mark.parametrize("kind", ["missing", "file", "folder", "other_zarr", "partial", "newer"])
def test_what_is_no_store_is_not_found(tmp_path, made, kind):
    path = tmp_path / "s.zarr"
    if kind == "file":
        path.write_text("x")
    elif kind in ("folder", "partial"):
        path.mkdir()
    elif kind == "other_zarr":
        zarr.create_group(path, zarr_format=3, attributes={"encoding-type": "anndata"})
    elif kind == "newer":
        copied(made, path)
        meta = json.loads((path / "zarr.json").read_text())
        meta["attributes"]["lazypert"]["format_version"] = 99
        (path / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(StoreNotFoundError) as caught:
        lp.open(path)
    assert repr(str(path)) in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"zarr_format": 3}', "\udcff"], ids=repr)
def test_damaged_root_metadata_is_a_lazypert_error(tmp_path, made, text):
    store = copied(made, tmp_path / "s.zarr")
    (store / "zarr.json").write_text(text, errors="surrogateescape")
    with pytest.raises(LazypertError):
        lp.open(store)


READS = {
    "X/data": lambda ds: ds.X.values,
    "X/indices": lambda ds: ds.X.values,
    "X/indptr": lambda ds: ds.X.values,
    "obs/_index": lambda ds: ds.cell_name.values,
    "var/_index": lambda ds: ds.gene.values,
    "obs/maybe_text/values": lambda ds: ds.maybe_text.values,
    "obs/maybe_int/mask": lambda ds: ds.maybe_int.values,
    "obs/batch/codes": lambda ds: ds.batch.values,
    "obsm/X_pca": lambda ds: ds.X_pca.values,
    "obsm/guides/data": lambda ds: ds.guides.values,
}


@pytest.fixture(scope="module")
def broken(made, tmp_path_factory):
    return copied(made, tmp_path_factory.mktemp("broken") / "s.zarr")


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
@pytest.mark.parametrize("path", READS)
def test_damage_is_an_error_on_reading_never_other_values(broken, path, how):
    file = sorted(p for p in (broken / path / "c").rglob("*") if p.is_file())[0]
    good = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(good[: len(good) // 2])
    else:
        flip(file, 8 * 17 + 3)
    with pytest.raises(StoreDamagedError, match=path):
        READS[path](lp.open(broken))
    file.write_bytes(good)
    READS[path](lp.open(broken))


def test_reading_changes_nothing(made):
    before = files(made)
    lp.open(made).load()
    assert files(made) == before
    assert screen().n_obs == Store(made).n_obs
    assert Store(made).roles.control_pert == ROLES["control_pert"]
