"""Stores return the tables that AnnData reads, and never values that were not written."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest
import zarr

import lazypert as lp
from lazypert.errors import ColumnNotFoundError, LazypertError, StoreDamagedError, StoreNotFoundError
from lazypert.store.store import Store
from tests.support.stores import ROLES, converted, copied, every_column, files, flip, read_store, screen, small_grids


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        small_grids(patch)
        return converted(tmp_path_factory.mktemp("store"))[1]


@pytest.fixture(scope="module")
def expected(made):
    return read_store(made)


def test_the_var_table_and_every_obs_column_equal_those_of_anndata(made, expected):
    store = Store(made)
    pd.testing.assert_frame_equal(store.var, expected.var, check_index_type=False, check_dtype=False)
    assert store.obs_columns == tuple(every_column(1).columns)
    assert store.read_strings("obs/_index").tolist() == expected.obs_names.tolist()
    assert store.is_ordered("obs/ordered")
    for name in store.obs_columns:
        ours = pd.Series(store.read_column(f"obs/{name}"))
        assert ours.isna().tolist() == expected.obs[name].isna().tolist()
        present = expected.obs[name].notna().to_numpy()
        assert ours[present].tolist() == expected.obs[name][present].tolist()


def test_a_store_and_its_matrices_are_picklable(made, expected):
    store = pickle.loads(pickle.dumps(Store(made)))
    assert repr(store) == f"Store({str(made)!r}, 90 cells x 17 genes)"
    matrix = pickle.loads(pickle.dumps(store.matrix()))
    np.testing.assert_array_equal(matrix.read(3, 9).to_dense(), expected.X[3:9].toarray())
    assert matrix.is_counts
    assert not store.matrix("lognorm").is_counts


def test_errors_for_unknown_names_list_near_matches(made):
    with pytest.raises(ColumnNotFoundError, match="Did you mean 'lognorm'"):
        Store(made).matrix("lognrom")
    with pytest.raises(ColumnNotFoundError, match="Did you mean 'batch'"):
        Store(made).require_obs("Batch")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "Check the path, or create a store with lazypert.convert"),
        ("file", "expected the folder of a lazypert store. Convert the file first"),
        ("folder", "has no zarr.json; expected a lazypert store"),
        ("other_zarr", "without 'lazypert' in its root attributes; expected a lazypert store"),
        ("interrupted", "its conversion was interrupted, and 's.zarr.partial-1' holds the work done so far"),
        ("newer", "format_version: got 99 in .*, expected at most 4. Upgrade lazypert"),
    ],
)
def test_anything_but_a_finished_store_raises_store_not_found(tmp_path, made, kind, message):
    path = tmp_path / "s.zarr"
    if kind == "file":
        path.write_text("x")
    elif kind == "folder":
        path.mkdir()
    elif kind == "interrupted":
        (tmp_path / "s.zarr.partial-1").mkdir()
    elif kind == "other_zarr":
        zarr.create_group(path, zarr_format=3, attributes={"encoding-type": "anndata"})
    elif kind == "newer":
        copied(made, path)
        meta = json.loads((path / "zarr.json").read_text())
        meta["attributes"]["lazypert"]["format_version"] = 99
        (path / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(StoreNotFoundError, match=message) as caught:
        lp.open(path)
    assert repr(str(path)) in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"zarr_format": 3}', "\udcff"], ids=repr)
def test_damaged_root_metadata_raises_a_lazypert_error(tmp_path, made, text):
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
def test_reading_damaged_files_raises_instead_of_returning_other_values(broken, path, how):
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


def test_reading_does_not_change_the_store(made):
    before = files(made)
    lp.open(made).load()
    assert files(made) == before
    assert screen().n_obs == Store(made).n_obs
    assert Store(made).roles.control_pert == ROLES["control_pert"]
