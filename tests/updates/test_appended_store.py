"""A store that cells were appended to is that of all files at once, but for the order of its rows."""

import anndata
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr

import lazypert as lp
from lazypert.errors import StoreDamagedError
from lazypert.store.format import TABLES
from lazypert.store.store import Store
from tests.fuzz.lying_stores import seal
from tests.support.appended import RICH, enrich, files_of
from tests.support.loaders import whole_loader
from tests.support.spec_store import SpecStore
from tests.support.stores import ROLES, copied, dense, read_store, small_grids

pytestmark = pytest.mark.filterwarnings("ignore::lazypert.errors.NotCopiedWarning")


@pytest.fixture(scope="module", params=["plain", "rich"])
def stores(tmp_path_factory, request):
    folder, options = tmp_path_factory.mktemp("append"), {**ROLES, "progress": False}
    one, two = paths = files_of(folder)
    if request.param == "rich":
        options |= RICH
        for seed, path in enumerate(paths):
            enrich(path, seed)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "rich":
            small_grids(patch)
        lp.convert(one, folder / "appended.zarr", **options)
        lp.append(folder / "appended.zarr", two, progress=False)
    lp.convert([one, two], folder / "joint.zarr", **options)
    return folder


def by_name(adata):
    keys = adata.obs["dataset"].astype(str).str.cat(adata.obs_names, sep="/").to_numpy()
    return np.argsort(keys)


def test_every_value_is_that_of_a_store_of_all_files(stores):
    found, expected = (anndata.read_zarr(stores / f"{name}.zarr") for name in ("appended", "joint"))
    lp.verify(stores / "appended.zarr")
    found, expected = found[by_name(found)], expected[by_name(expected)]
    assert (found.obs_names == expected.obs_names).all()
    assert list(found.var_names) == list(expected.var_names)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    for name in expected.layers:
        np.testing.assert_array_equal(found.layers[name].toarray(), expected.layers[name].toarray())
    assert set(found.obsm) == set(expected.obsm)
    for name, values in expected.obsm.items():
        if isinstance(values, pd.DataFrame):
            pd.testing.assert_frame_equal(found.obsm[name].astype(object), values.astype(object))
        else:
            dense = [
                one.toarray() if hasattr(one, "toarray") else np.asarray(one) for one in (found.obsm[name], values)
            ]
            np.testing.assert_array_equal(*dense)
    assert (found.raw is None) == (expected.raw is None)
    if expected.raw is not None:
        np.testing.assert_array_equal(found.raw.X.toarray(), expected.raw.X.toarray())
        assert list(found.raw.var_names) == list(expected.raw.var_names)
    assert set(found.obs.columns) == set(expected.obs.columns)
    for name in expected.obs:
        left, right = found.obs[name], expected.obs[name]
        assert (left.dtype.kind, type(left.dtype)) == (right.dtype.kind, type(right.dtype)), name
        pd.testing.assert_series_equal(left.astype(object), right.astype(object), check_names=False)


def test_groups_are_those_of_a_store_of_all_files_cell_by_cell(stores):
    found, expected = (Store(stores / f"{name}.zarr") for name in ("appended", "joint"))
    ours, theirs = found.groups, expected.groups
    for axis, labels in theirs.labels.items():
        assert ours.labels[axis].tolist() == labels.tolist()
    for name in ("start", "stop"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    for axis, codes in theirs.codes.items():
        np.testing.assert_array_equal(ours.codes[axis], codes)
    assert len(ours.conditions) == len(theirs.conditions)
    np.testing.assert_array_equal(ours.condition, theirs.condition)
    names = [store.read_strings("obs/_index") for store in (found, expected)]
    assert names[0][ours.row_order].tolist() == names[1].tolist()  # the same cell at every position
    np.testing.assert_array_equal(ours.batch_of(ours.row_order), theirs.batch_of(np.arange(theirs.n_obs)))
    for name in ("run", "batch", "n_cells"):
        np.testing.assert_array_equal(getattr(ours.batch_counts, name), getattr(theirs.batch_counts, name))
    for key in ("summary", "roles", "n_obs"):
        assert found.attrs[key] == expected.attrs[key], key
    for name, summary in expected.attrs["matrices"].items():
        assert found.attrs["matrices"][name] == pytest.approx(summary), name


def test_cell_statistics_are_those_of_a_store_of_all_files(stores):
    found, expected = (Store(stores / f"{name}.zarr") for name in ("appended", "joint"))
    ours, theirs, order = found.cell_stats, expected.cell_stats, found.groups.row_order
    for name in ("total", "n_genes", "own_target"):
        values = [getattr(one, name).read(0, found.n_obs) for one in (ours, theirs)]
        np.testing.assert_array_equal(values[0][order], values[1])
    np.testing.assert_array_equal(ours.target, theirs.target)
    np.testing.assert_array_equal(ours.control_sum, theirs.control_sum)


def test_splits_are_those_of_a_store_of_all_files(stores):
    sets = []
    for name in ("appended", "joint"):
        source = lp.PerturbationAnnDataSource(lp.PerturbationSourceConfig(file_path=stores / f"{name}.zarr"))
        split = lp.RandomSplitter(lp.RandomSplitterConfig(seed=5)).split(source)
        names = Store(stores / f"{name}.zarr").read_strings("obs/_index")
        sets.append({part: sorted(names[np.asarray(split[part])]) for part in ("train", "valid", "test")})
    assert sets[0] == sets[1]
    assert all(sets[0].values())


def test_every_sentence_and_control_is_that_of_a_store_of_all_files(stores):
    """So sampling is as fair as in that store, whose groups are in the order of a hash."""
    epochs = []
    for name in ("appended", "joint"):
        names = Store(stores / f"{name}.zarr").read_strings("obs/_index")
        batches = list(whole_loader(stores / f"{name}.zarr")())
        epochs.append([(names[np.asarray(b.row)].tolist(), names[np.asarray(b.control_row)].tolist()) for b in batches])
        counts = [np.asarray(b.counts) for b in batches]
        epochs[-1] += [counts]
    *ours, our_counts = epochs[0]
    *theirs, their_counts = epochs[1]
    assert ours == theirs
    for left, right in zip(our_counts, their_counts, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.fixture(scope="module")
def knockdown_stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("knockdown")
    genes = ["TP53", "BRCA1", "KRAS", "gene3", *(f"other{i}" for i in range(9))]
    one, two = files_of(folder, genes=genes)
    lp.convert(one, folder / "appended.zarr", progress=False, **ROLES)
    lp.append(folder / "appended.zarr", two, progress=False)
    lp.convert([one, two], folder / "joint.zarr", progress=False, **ROLES)
    return folder


@pytest.mark.parametrize("layer", [None, "lognorm"])
def test_knockdown_is_that_of_a_store_of_all_files(knockdown_stores, layer):
    """By the stored statistics, and by values of a layer, which has none."""
    results, passing = [], []
    for name in ("appended", "joint"):
        store = Store(knockdown_stores / f"{name}.zarr")
        assert store.cell_stats is not None
        results.append(lp.open(knockdown_stores / f"{name}.zarr").pert.knockdown(layer=layer))
        passing.append(sorted(store.read_strings("obs/_index")[results[-1].mask]))
    pd.testing.assert_frame_equal(*(result.table for result in results))
    assert set(results[1].table["perturbation"]) == {"TP53", "BRCA1", "KRAS", "gene3"}
    assert passing[0] == passing[1]
    assert results[0].units == results[1].units


def test_a_reader_written_from_the_format_page_reads_it(stores):
    store, expected = SpecStore(stores / "appended.zarr"), read_store(stores / "appended.zarr")
    np.testing.assert_array_equal(store.matrix("X"), expected.X.toarray())
    np.testing.assert_array_equal(store.matrix("obsm/guides"), dense(expected.obsm["guides"]))
    np.testing.assert_array_equal(store.dense("obsm/X_pca"), expected.obsm["X_pca"])
    for name, column in expected.obs.items():
        found = [None if pd.isna(value) else value for value in store.column(f"obs/{name}")]
        assert found == [None if pd.isna(value) else value for value in column], name
    order, labels = store.array(f"{store.groups}/order"), expected.obs
    for start, stop, (cell_type, perturbation, dataset) in store.runs():
        run = labels.iloc[order[start:stop]]
        assert {*run["cell_type"]} == {cell_type}
        assert {*run["perturbation"]} == {perturbation}
        assert {*run["dataset"]} == {dataset}
    assert store.manifest() == [[e.key, e.size, e.crc32] for e in Store(stores / "appended.zarr").read_manifest()]


def test_scanpy_and_xarray_read_it(stores):
    scanpy = pytest.importorskip("scanpy")
    adata = anndata.read_zarr(stores / "appended.zarr")
    scanpy.pp.filter_cells(adata, min_counts=1)
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    scanpy.pp.log1p(adata)
    lazy = xr.open_dataset(stores / "appended.zarr", engine="lazypert")
    expected = anndata.read_zarr(stores / "appended.zarr")
    np.testing.assert_array_equal(np.asarray(lazy.X.data), expected.X.toarray())
    assert lazy.dataset.to_series().astype(str).tolist() == expected.obs["dataset"].astype(str).tolist()
    chosen = lazy.pert.select(perturbation="KRAS")
    is_chosen = (expected.obs["perturbation"] == "KRAS").to_numpy()
    assert sorted(chosen.cell_name.values) == sorted(expected.obs_names[is_chosen])


def read_tables(path):
    store = Store(path)
    return store.groups.batch_of(np.arange(3)), store.cell_stats


LIES = {
    "a row occurs twice": ("order", 5, 0),
    "a row beyond the cells": ("order", 5, 10**6),
    "a run begins before the one before": ("runs/start", 3, 0),
    "a code beyond the labels": ("runs/perturbation", 1, 99),
    "numbers of cells do not add up": ("subgroups/n_cells", 2, 77),
    "a batch beyond the labels": ("batch", 5, 9),
    "a target beyond the genes": ("facts/target", 0, 10**6),
    "a control beyond the cells": ("facts/control_row", 0, 10**6),
}


@pytest.mark.parametrize("lie", LIES)
def test_tables_of_all_cells_that_cannot_be_right_are_refused(stores, tmp_path, lie):
    store, (table, index, value) = copied(stores / "appended.zarr", tmp_path / "s.zarr"), LIES[lie]
    path = f"{TABLES}/appended_1/{table}"
    array = zarr.open_group(store, mode="r+", use_consolidated=False)[path]
    values = array[:]
    values[index] = value
    array[:] = values
    seal(store)
    with pytest.raises(StoreDamagedError, match=f"{TABLES}/appended_1/{table.split('/')[0]}"):
        read_tables(store)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_other_lengths_of_the_tables_of_all_cells_are_refused(stores, tmp_path):
    for table in ("order", "batch"):
        store = copied(stores / "appended.zarr", tmp_path / f"{table}.zarr")
        zarr.open_group(store, mode="r+", use_consolidated=False)[f"{TABLES}/appended_1/{table}"].resize((159,))
        zarr.consolidate_metadata(store)
        seal(store)
        with pytest.raises(StoreDamagedError, match=f"appended_1/{table}: got 159"):
            read_tables(store)
