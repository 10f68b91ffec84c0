"""xr.open_dataset gives the Dataset of lp.open, lazily, and claims only lazypert stores."""

import dask
import numpy as np
import pytest
import xarray as xr

import lazypert as lp
from lazypert.dataset.backend import LazypertBackendEntrypoint
from lazypert.errors import StoreDamagedError, StoreNotFoundError
from tests.support.stores import copied


@pytest.mark.parametrize(
    "options",
    [{"engine": "lazypert"}, {}, {"engine": "lazypert", "chunks": {}}, {"engine": "lazypert", "chunks": {"cell": 90}}],
    ids=["engine", "guessed", "chunks", "chunked"],
)
def test_the_dataset_equals_that_of_open(made, options):
    with xr.open_dataset(made, **options) as ds:
        xr.testing.assert_identical(ds.load(), lp.open(made).load())


def test_other_stores_are_left_to_other_backends(tmp_path, made):
    plain = tmp_path / "plain.zarr"
    xr.Dataset({"a": ("x", np.arange(3.0))}).to_zarr(plain, zarr_format=3, consolidated=False)
    entry = LazypertBackendEntrypoint()
    assert entry.guess_can_open(str(made))
    assert entry.guess_can_open(made)
    for other in (plain, str(plain), tmp_path, tmp_path / "none.zarr", None, 3):
        assert not entry.guess_can_open(other)
    with xr.open_dataset(plain, engine="zarr", consolidated=False) as ds:
        assert ds.a.values.tolist() == [0, 1, 2]


def test_opening_reads_no_values(tmp_path, made):
    store = copied(made, tmp_path / "s.zarr")
    for path in [*store.glob("X/*/c/*"), *store.glob("obs/*/codes/c/*"), *store.glob("obs/_index/c/*")]:
        path.unlink()

    def raising(*_, **__):
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=raising):
        ds = xr.open_dataset(store, engine="lazypert")
        assert repr(ds)
        assert ds.isel(cell=slice(2, 5)).sizes["cell"] == 3
    assert isinstance(ds.X.variable._data, object)
    assert not ds.X.variable._in_memory
    assert not ds.cell_name.variable._in_memory
    assert not ds.store_row.variable._in_memory
    with pytest.raises(StoreDamagedError):
        ds.X[:1].load()


def test_preferred_chunks_are_whole_rows(made):
    ds = xr.open_dataset(made, engine="lazypert", chunks={})
    assert ds.X.encoding["preferred_chunks"]["gene"] == 17
    assert ds.X.chunks[1] == (17,)


def test_variables_can_be_dropped(made):
    ds = xr.open_dataset(made, engine="lazypert", drop_variables=["X", "batch"])
    assert "X" not in ds
    assert "batch" not in ds.coords
    assert "lognorm" in ds
    assert "lognorm" not in xr.open_dataset(made, engine="lazypert", drop_variables="lognorm")


def test_the_accessor_works(made):
    ds = xr.open_dataset(made, engine="lazypert")
    selection = ds.pert.select(perturbation="TP53")
    assert set(selection.perturbation.values) == {"TP53"}
    assert selection.pert.table()["n_cells"].sum() == selection.sizes["cell"]


def test_a_missing_store_raises(tmp_path):
    with pytest.raises(StoreNotFoundError):
        xr.open_dataset(tmp_path / "none.zarr", engine="lazypert")
