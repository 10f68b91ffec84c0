"""A store that is converted again while it is open: what was opened before refuses to read the new files."""

import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert import PerturbationPipeline, PerturbationPipelineConfig
from lazypert.errors import StoreChangedError
from lazypert.store.columns import open_column
from lazypert.store.store import Store
from tests.support.stores import ROLES, converted, screen, write

REPLACED = r"The store .* was replaced after it was opened"


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Stores of a screen, and of the same cells in another order with twice the counts."""
    folder = tmp_path_factory.mktemp("replaced")
    _, old = converted(folder)
    other = screen()[::-1].copy()
    other.X = other.X * 2
    write(other, folder / "new.h5ad")
    return old, lp.convert(folder / "new.h5ad", folder / "new.zarr", progress=False, **ROLES)


@pytest.fixture
def store(versions, tmp_path):
    return shutil.copytree(versions[0], tmp_path / "s.zarr")


@pytest.fixture
def replace(versions, store, tmp_path):
    """Replace the store, as conversion with overwrite=True does: by a rename."""

    def replace():
        shutil.copytree(versions[1], tmp_path / "next")
        store.rename(tmp_path / "last")
        (tmp_path / "next").rename(store)

    return replace


def loader_of(store):
    result = PerturbationPipeline(PerturbationPipelineConfig(output_space="all")).setup([store])
    return result.loader("train", to="numpy", sentence_size=4, sentences_per_batch=2, threads=1, prefetch=1)


def test_batches_are_refused(store, replace):
    loader = loader_of(store)
    replace()
    with pytest.raises(StoreChangedError, match=REPLACED):
        next(iter(loader))
    with pytest.raises(StoreChangedError, match=REPLACED):
        loader.batch(0, 0)
    assert loader_of(store).batch(0, 0).counts.sum() > 0


def test_an_epoch_stops(store, replace):
    batches = iter(loader_of(store))
    next(batches)
    replace()
    with pytest.raises(StoreChangedError, match=REPLACED):
        list(batches)


@pytest.mark.parametrize("name", ["X", "lognorm", "X_pca", "guides", "perturbation", "text", "f8", "cell_name"])
@pytest.mark.parametrize("is_used", [False, True], ids=["unread", "read before"])
def test_variables_of_a_dataset_are_refused(store, replace, name, is_used):
    ds = lp.open(store)
    if is_used:
        ds[name][:3].compute()
    replace()
    with pytest.raises(StoreChangedError, match=REPLACED):
        ds[name][5:9].values  # noqa: B018


def test_tables_are_refused(store, replace):
    opened, ds = Store(store), lp.open(store)
    replace()
    for read in (
        lambda: opened.groups,
        lambda: open_column(opened, "obs/f8")[:2],
        lambda: ds.pert.obs(),
        lambda: ds.isel(cell=slice(2, 20)).pert.table(),
        lambda: ds.pert.to_anndata(),
    ):
        with pytest.raises(StoreChangedError, match=REPLACED):
            read()


def test_what_was_pickled_is_refused(store, replace):
    opened, ds = pickle.dumps(Store(store)), lp.open(store)
    replace()
    with pytest.raises(StoreChangedError, match=REPLACED):
        pickle.loads(opened)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert "was replaced" in pool.submit(_sum, ds.X).result()


def _sum(array):
    try:
        return str(float(array.sum()))
    except StoreChangedError as error:
        return str(error)


def test_the_same_conversion_again_is_the_same_store(store, versions, tmp_path):
    loader, ds = loader_of(store), lp.open(store)
    expected = ds.X.values
    store.rename(tmp_path / "last")
    shutil.copytree(versions[0], store)
    np.testing.assert_array_equal(ds.X.values, expected)
    assert loader.batch(0, 0).counts.sum() > 0


def test_a_store_that_is_gone_is_not_called_replaced(store):
    ds = lp.open(store)
    shutil.rmtree(store)
    with pytest.raises(OSError, match=r"no store at .* any more: it was deleted") as raised:
        ds.X.values  # noqa: B018
    assert not isinstance(raised.value, StoreChangedError)


@pytest.mark.parametrize("has_additions", [False, True])
def test_the_same_file_with_another_table_is_another_store(tmp_path, has_additions):
    path = write(screen(), tmp_path / "s.h5ad")
    table = pd.DataFrame({"mine": np.arange(90)}, index=screen().obs_names)
    options = {"obs": table, "progress": False} | ROLES
    store = lp.convert(path, tmp_path / "s.zarr", **options)
    if has_additions:
        lp.add_obs(store, pd.DataFrame({"more": np.arange(90)}, index=screen().obs_names))
    ds, opened = lp.open(store), Store(store)
    lp.convert(path, store, **options | {"obs": table.iloc[::-1].set_axis(table.index)}, overwrite=True)
    with pytest.raises(StoreChangedError, match=REPLACED):
        ds.X.values  # noqa: B018
    with pytest.raises(StoreChangedError, match=REPLACED):
        open_column(opened, "obs/mine")[:2]
