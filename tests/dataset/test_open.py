"""lp.open is lazy, and reads only what is needed; values equal those of AnnData."""

import dask
import numpy as np
import pytest

import lazypert as lp
from lazypert.errors import StoreDamagedError
from lazypert.store.store import Store
from tests.support.counting import CountingReader
from tests.support.stores import copied


@pytest.fixture
def hollow(tmp_path, made):
    """A copy of the store without the values of X."""
    store = copied(made, tmp_path / "hollow.zarr")
    for array in ("data", "indices"):
        for path in (store / f"X/{array}/c").iterdir():
            path.unlink()
    return store


def raising(*_, **__):
    raise AssertionError("something was computed")


def test_opening_computes_nothing(made):
    with dask.config.set(scheduler=raising):
        ds = lp.open(made)
        assert "90 cells x 17 genes" in ds.attrs["screen"]
        ds.isel(cell=slice(3, 9)).X.sel(gene=["gene1"]).mean()
        repr(ds)
        assert ds._repr_html_()
    assert dict(ds.sizes) == {"cell": 90, "gene": 17, "guides_dim": 5, "X_pca_dim": 3}
    assert list(ds.indexes) == ["gene"]


def test_only_values_of_x_need_the_matrix(hollow):
    ds = lp.open(hollow)
    table = ds.pert.table()
    assert table["n_cells"].sum() == 90
    splits = ds.pert.split("fewshot", held_out_perturbations=("TP53",))
    assert len(splits.train_indices) + len(splits.valid_indices) + len(splits.test_indices) == 90
    assert ds.pert.match_controls(n_basal_samples=2).shape[1] == 2
    assert ds.pert.select(perturbation="TP53", cell_type="Neuron").pert.groups.n_obs > 0
    assert "90 cells" in repr(ds.pert)
    assert repr(ds)
    with pytest.raises(StoreDamagedError, match="X/indices/c/0: the file is missing"):
        ds.X[:1].compute()
    with pytest.raises(StoreDamagedError):
        ds.X.mean().compute()
    assert ds.lognorm[:2].compute().shape == (2, 17)


def test_selections_by_label_equal_anndata(made, expected):
    ds = lp.open(made)
    selection = ds.pert.select(perturbation=["TP53", "KRAS"]).pert.select(batch="b2").sel(gene=["gene4", "gene1"])
    keep = expected.obs["perturbation"].isin(["TP53", "KRAS"]) & (expected.obs["batch"] == "b2")
    np.testing.assert_array_equal(selection.X.values, expected[keep.to_numpy(), ["gene4", "gene1"]].X.toarray())
    assert float(selection.X.isel(cell=slice(1, 4)).sum()) == expected[keep.to_numpy(), ["gene4", "gene1"]].X[1:4].sum()


def test_reductions_equal_anndata(made, expected):
    ds = lp.open(made)
    np.testing.assert_allclose(ds.X.mean("cell").values, np.asarray(expected.X.mean(axis=0)).ravel(), rtol=1e-6)
    np.testing.assert_array_equal(ds.X.sum("gene").values, np.asarray(expected.X.sum(axis=1)).ravel())
    assert float((ds.X - 1).min()) == -1  # unsigned counts would wrap round


def test_a_row_range_reads_only_the_chunks_it_touches(made, expected, monkeypatch):
    from lazypert.store import opening

    monkeypatch.setattr(opening, "LocalReader", CountingReader)
    CountingReader.seen = []
    ds = lp.open(made)
    CountingReader.seen.clear()
    ds.X.data[20:23].compute()
    keys = {key for key, _ in CountingReader.seen}
    grid = Store(made).matrix().data.grid
    first, last = expected.X.indptr[20], expected.X.indptr[23]
    shards = range(first // grid.shard, (last - 1) // grid.shard + 1)
    wanted = {f"X/{array}/c/{k}" for array in ("data", "indices") for k in shards}
    assert keys == wanted | {"X/indptr/c/0"}
    n_chunks = (last - 1) // grid.chunk - first // grid.chunk + 1
    assert n_chunks < 6
    body = sum(length for key, length in CountingReader.seen if key.startswith("X/indices"))
    index = (grid.shard // grid.chunk * 16 + 4) * len(shards)
    assert body <= n_chunks * (grid.chunk * 4 + 16 + 4) + index


def test_a_column_of_a_row_range_reads_no_other_rows(made, monkeypatch):
    from lazypert.store import opening

    monkeypatch.setattr(opening, "LocalReader", CountingReader)
    monkeypatch.setattr("lazypert.dataset.variables._BLOCK_BYTES", 17 * 4 * 9)  # nine rows per block
    CountingReader.seen = []
    ds = lp.open(made)
    picked = ds.isel(cell=slice(0, 9)).sel(gene=["gene3"])
    CountingReader.seen.clear()
    picked.X.data.compute()
    keys = {key for key, _ in CountingReader.seen}
    assert keys <= {"X/indptr/c/0", "X/data/c/0", "X/indices/c/0"}
