"""Coordinates along cell behave like NumPy arrays, and stay in the store until their values are needed."""

import copy
import pickle

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert.dataset import cell_column
from lazypert.dataset.cell_column import CellColumn
from lazypert.errors import ConfigError
from lazypert.store.columns import LazyColumn
from tests.support.stores import copied

VALUES = np.arange(1000, dtype="i8") * 3


def column(rows=None):
    """A column that counts the values that it reads."""
    n_read = []
    lazy = LazyColumn(1000, VALUES.dtype, lambda start, stop: [n_read.append(stop - start), VALUES[start:stop]][1])
    return CellColumn(lazy, rows, is_text=False), n_read


KEYS = {
    "all": slice(None),
    "range": slice(10, 40),
    "steps": slice(-3, 7, -9),
    "reversed": slice(None, None, -1),
    "none": slice(5, 5),
    "list": [7, -1, 7, 0],
    "mask": VALUES[:100] % 7 == 0,
    "one": 3,
    "last": -1,
    "grid": np.array([[1, 2], [3, -4]]),
}
FIRST = {"head": slice(0, 100), "backwards": slice(499, 399, -1), "rows": np.arange(100) ** 2 % 991}


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("key", KEYS)
def test_selections_of_selections_equal_numpy_and_read_nothing_before_they_are_used(first, key):
    cells, n_read = column()
    selected = cells[FIRST[first]][(KEYS[key], ...)]
    assert not n_read or np.ndim(KEYS[key]) == 2 or isinstance(KEYS[key], int)
    expected = VALUES[FIRST[first]][KEYS[key]]
    assert selected.shape == expected.shape
    np.testing.assert_array_equal(np.asarray(selected), expected)


def test_positions_outside_the_cells_raise():
    with pytest.raises(IndexError, match="expected positions of 100 cells"):
        column()[0][:100][[3, 100]]
    with pytest.raises(IndexError):
        column()[0][[3, 5]][2]


def test_numpy_functions_and_operators_give_numpy():
    cells, _ = column()
    for result, expected in (
        (cells + 1, VALUES + 1),
        (2 - cells, 2 - VALUES),
        (cells > 50, VALUES > 50),
        (np.concatenate([cells, cells[:3]]), np.concatenate([VALUES, VALUES[:3]])),
        (np.where(cells > 5, cells, -1), np.where(VALUES > 5, VALUES, -1)),
        (cells.astype("f4"), VALUES.astype("f4")),
    ):
        assert isinstance(result, np.ndarray)
        np.testing.assert_array_equal(result, expected)
    assert np.mean(cells) == VALUES.mean()
    assert list(cells[:3]) == [0, 3, 6]
    assert isinstance(cells[4], np.int64)
    assert cells[4, ...].shape == ()


def test_arithmetic_with_dask_stays_lazy():
    cells, n_read = column()
    x = da.ones((1000, 4), chunks=(100, 4))
    scaled = x * np.reshape(cells, (1000, 1)), da.ones(1000, chunks=100) + cells[::-1], cells - da.ones(1000, chunks=7)
    assert all(isinstance(array, da.Array) for array in scaled)
    np.testing.assert_array_equal(scaled[1].compute(), 1 + VALUES[::-1])
    np.testing.assert_array_equal(scaled[2].compute(), VALUES - 1)
    cells, n_read = column()
    da.ones(1000, chunks=100) + cells
    assert not n_read


def test_small_columns_are_read_once(monkeypatch):
    cells, n_read = column()
    np.asarray(cells), np.asarray(cells)
    assert n_read == [1000]
    monkeypatch.setattr(cell_column, "_MAX_KEPT_BYTES", 100)
    np.asarray(cells[:50]), np.asarray(cells[:50])
    assert n_read == [1000, 50, 50]


def test_copies_share_the_store_and_are_read_only():
    cells, _ = column()
    assert copy.deepcopy(cells) is cells
    with pytest.raises(ConfigError, match="assign_coords"):
        cells[0] = 1
    with pytest.raises(AttributeError, match="no attribute 'sort'"):
        cells.sort()
    assert cells.searchsorted(30) == 10


@pytest.fixture
def bare(tmp_path, made):
    """A copy of the store that has lost everything per cell except X."""
    store = copied(made, tmp_path / "bare.zarr")
    for path in [*store.glob("obs/**/c/*"), *store.glob("obs/**/c/*/*")]:
        if path.is_file() and "categories" not in str(path):
            path.unlink()
    return store


def test_computing_x_reads_no_coordinate(bare, expected):
    ds = lp.open(bare)
    totals = np.asarray(expected.X.sum(axis=1)).ravel()
    np.testing.assert_array_equal(ds.X.sum("gene").compute().values, totals)
    np.testing.assert_array_equal(ds.X.isel(cell=[5, 3]).load().sum("gene").values, totals[[5, 3]])
    ds.isel(cell=slice(0, 9)).compute()
    ds.persist()
    assert repr(ds)
    assert ds._repr_html_()


def test_arithmetic_of_x_and_a_large_column_stays_lazy(made, expected, monkeypatch):
    monkeypatch.setattr(cell_column, "_MAX_KEPT_BYTES", 0)
    ds = lp.open(made)

    def raising(*_, **__):
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=raising):
        centred = ds.X - ds.total_counts
    counts = expected.X.toarray()
    np.testing.assert_array_equal(centred.values, counts - counts.sum(axis=1, keepdims=True))


def test_a_dataset_can_be_pickled_and_copied(made):
    ds = lp.open(made)
    for other in (pickle.loads(pickle.dumps(ds)), ds.copy(deep=True), ds.chunk(cell=20)):
        assert other.identical(ds)
    assert isinstance(ds.batch.variable._data, CellColumn)


@pytest.mark.parametrize("column", ["maybe_text", "holey_category", "cell_type", "cell_name"])
def test_missing_values_are_those_of_the_column_in_memory(made, column):
    lazy = lp.open(made)[column]
    known = pd.notna(lazy.to_numpy())
    np.testing.assert_array_equal(lazy.notnull(), known)
    np.testing.assert_array_equal(lazy.isnull(), ~known)
    assert int(lazy.count()) == known.sum()
    assert lazy.dropna("cell").sizes["cell"] == known.sum()
    assert known.all() == (column in ("cell_type", "cell_name"))


def test_comparisons_are_elementwise(made):
    cell_type = lp.open(made).cell_type
    values = cell_type.to_numpy()
    np.testing.assert_array_equal(cell_type != values[0], values != values[0])
    np.testing.assert_array_equal(cell_type != values[::-1], values != values[::-1])


@pytest.mark.parametrize("order", ["all", "some"])
def test_masks_are_made_a_part_at_a_time(made, order, monkeypatch):
    monkeypatch.setattr(cell_column, "_CELLS_AT_ONCE", 7)
    ds = lp.open(made)
    ds = ds if order == "all" else ds.isel(cell=[5, 3, 3, 80, 11, 12, 40, 41, 42, 7])
    for name in ("perturbation", "batch", "u1", "f4", "cell_name"):
        cells, values = ds[name].variable.data, np.asarray(ds[name].variable.data)
        value = values[4]
        for found, expected in (
            (cells == value, values == value),
            (cells != value, values != value),
            (np.isin(cells, [value, values[0]]), np.isin(values, [value, values[0]])),
        ):
            assert found.dtype == bool
            np.testing.assert_array_equal(found, expected)
        if values.dtype.kind != "O":
            np.testing.assert_array_equal(cells > value, values > value)
            np.testing.assert_array_equal(cells * 2, values * 2)
