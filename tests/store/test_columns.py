"""Lazy columns return what AnnData reads, however they are indexed."""

import pickle

import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert.screen.labels import factorise, label_text
from lazypert.store.columns import LazyColumn, open_column
from lazypert.store.store import Store
from tests.support.stores import ROLES, converted, every_column, read_store, screen, small_grids, write


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        small_grids(patch)
        return converted(tmp_path_factory.mktemp("columns"))[1]


@pytest.mark.parametrize("name", every_column(1).columns)
def test_every_kind_of_column_equals_that_of_anndata(made, name):
    column = open_column(Store(made), f"obs/{name}")
    expected = read_store(made).obs[name]
    assert column[:].dtype == column.dtype
    found = pd.Series(column[:])  # pandas 3 turns texts into its own dtype
    assert found.isna().tolist() == expected.isna().tolist()
    assert found[expected.notna().to_numpy()].tolist() == expected[expected.notna()].tolist()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(column))[:], column[:])
    np.testing.assert_array_equal(column.to_dask().compute(), column[:])


@pytest.mark.parametrize(
    "categories",
    [np.array([0.1, 3], "f4"), np.array([2**53 + 1, 2**53 + 2]), np.array([1, 2], "u1")],
    ids=["float32", "large", "small"],
)
def test_numbers_of_categories_stay_exact(tmp_path, categories):
    adata = screen(lean=True)
    adata.obs["number"] = pd.Categorical(np.resize(categories, adata.n_obs), categories)
    store = lp.convert(write(adata, tmp_path / "s.h5ad"), tmp_path / "s.zarr", progress=False, **ROLES)
    values = open_column(Store(store), "obs/number")[:]
    assert set(values.tolist()) == set(categories.tolist())
    assert {label_text(value) for value in values} == set(factorise(categories)[1])


@pytest.mark.parametrize(
    "key",
    [
        slice(3, 9),
        slice(None, None, 4),
        slice(80, 2, -7),
        slice(9, 3),
        [7, 2, 2, 88],
        [],
        5,
        np.array([[1, 2], [3, 4]]),
    ],
    ids=repr,
)
def test_indexing_equals_numpy(key):
    values = np.arange(90) * 2
    column = LazyColumn(90, values.dtype, lambda start, stop: values[start:stop])
    key = np.array(key, dtype=int) if isinstance(key, list) else key
    np.testing.assert_array_equal(column[key], values[key])
    np.testing.assert_array_equal(column[(key,)], values[key])
    assert isinstance(column[key], np.ndarray)


def test_distant_rows_are_read_separately(monkeypatch):
    monkeypatch.setattr("lazypert.store.columns.COLUMN_CHUNK", 10)
    reads = []

    def read(start, stop):
        reads.append((start, stop))
        return np.arange(start, stop)

    column = LazyColumn(1_000, np.dtype(int), read)
    assert column[np.array([900, 3, 12])].tolist() == [900, 3, 12]
    assert reads == [(3, 13), (900, 901)]


def test_the_repr_names_length_and_dtype(made):
    assert repr(open_column(Store(made), "obs/u1")) == "LazyColumn(90 cells, uint8)"
