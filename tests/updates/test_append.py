"""Appending cells: the result is a store converted from all files at once, but for the order of its rows."""

import pickle
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert.errors import ConfigError, StoreChangedError
from lazypert.store.store import Store
from tests.support.stores import ROLES, screen, write

pytestmark = pytest.mark.filterwarnings("ignore::lazypert.errors.NotCopiedWarning")


def files_of(folder, **options):
    """Two screens with partly the same labels, and a store of the first and of both."""
    first, second = screen(90, seed=0, **options), screen(70, seed=1, **options)
    labels = np.where(np.arange(70) % 7 == 0, "gene3", second.obs["perturbation"].astype(str))
    second.obs["perturbation"] = pd.Categorical(labels)
    second.obs["batch"] = pd.Categorical(np.where(second.obs["batch"] == "b1", "a0", second.obs["batch"].astype(str)))
    for name, adata in (("one", first), ("two", second)):
        write(adata, folder / f"{name}.h5ad")
    return folder / "one.h5ad", folder / "two.h5ad"


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("append")
    one, two = files_of(folder)
    lp.convert(one, folder / "appended.zarr", progress=False, **ROLES)
    lp.append(folder / "appended.zarr", two, progress=False)
    lp.convert([one, two], folder / "joint.zarr", progress=False, **ROLES)
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
            pd.testing.assert_frame_equal(found.obsm[name], values)
        else:
            dense = [one.toarray() if hasattr(one, "toarray") else np.asarray(one) for one in (found.obsm[name], values)]
            np.testing.assert_array_equal(*dense)
    assert set(found.obs.columns) == set(expected.obs.columns)
    for name in expected.obs:
        left, right = found.obs[name], expected.obs[name]
        assert left.dtype.kind == right.dtype.kind and type(left.dtype) is type(right.dtype), name
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


def batches(store, **options):
    source = lp.PerturbationAnnDataSource(store)
    sampler = lp.PerturbationSamplerConfig(batch_size=4, sentence_size=4, seed=3)
    return lp.Loader(source, sampler, **options)


def test_splits_are_those_of_a_store_of_all_files(stores):
    sets = []
    for name in ("appended", "joint"):
        source = lp.PerturbationAnnDataSource(lp.PerturbationSourceConfig(path=stores / f"{name}.zarr"))
        split = lp.RandomSplitter(lp.RandomSplitterConfig(seed=5)).split(source)
        names = Store(stores / f"{name}.zarr").read_strings("obs/_index")
        sets.append({part: sorted(names[getattr(split, part).rows[:]]) for part in ("train", "valid", "test")})
    assert sets[0] == sets[1]
