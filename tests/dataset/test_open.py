"""lp.open is lazy, shows what AnnData shows, and reads only what is asked for."""

from dataclasses import dataclass
from typing import ClassVar

import anndata
import dask
import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert.errors import StoreDamagedError
from lazypert.store.byte_reader import LocalReader
from lazypert.store.store import Store
from tests.support.stores import converted, copied, counts, dense, read_store, screen, small_grids, write


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        small_grids(patch)
        return converted(tmp_path_factory.mktemp("dataset"))[1]


@pytest.fixture(scope="module")
def expected(made):
    return read_store(made)


@pytest.fixture
def hollow(tmp_path, made):
    """A copy of the store without a single value of X."""
    store = copied(made, tmp_path / "hollow.zarr")
    for part in ("data", "indices"):
        for path in (store / f"X/{part}/c").iterdir():
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


def test_everything_but_values_works_without_values(hollow):
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


PICKS = {
    "rows": {"cell": slice(10, 40)},
    "one_row": {"cell": 7},
    "last_row": {"cell": -1},
    "steps": {"cell": slice(80, 3, -7)},
    "list": {"cell": [5, 5, 2, 89]},
    "mask": {"cell": np.arange(90) % 4 == 0},
    "none": {"cell": slice(5, 5)},
    "genes": {"gene": [3, 0, 3]},
    "gene_slice": {"gene": slice(2, 15, 3)},
    "one_gene": {"gene": 4},
    "both": {"cell": [8, 1], "gene": slice(None, None, -1)},
    "one_value": {"cell": 3, "gene": 2},
}


@pytest.mark.parametrize("pick", PICKS)
@pytest.mark.parametrize("engine", [None, "lazypert"], ids=["open", "backend"])
def test_picks_equal_anndata(made, expected, pick, engine):
    import xarray as xr

    ds = lp.open(made) if engine is None else xr.open_dataset(made, engine=engine)
    part = ds.isel(PICKS[pick])
    cell, gene = (PICKS[pick].get(d, slice(None)) for d in ("cell", "gene"))
    for name, matrix in (("X", expected.X), ("lognorm", expected.layers["lognorm"])):
        np.testing.assert_array_equal(part[name].values, matrix.toarray()[cell][..., gene])
    np.testing.assert_array_equal(part.X_pca.values, expected.obsm["X_pca"][cell])
    np.testing.assert_array_equal(part.guides.values, dense(expected.obsm["guides"])[cell])
    np.testing.assert_array_equal(part.cell_name.values, expected.obs_names.to_numpy(dtype=object)[cell])
    np.testing.assert_array_equal(part.store_row.values, np.arange(90)[cell])


def test_labels_and_their_compositions_equal_anndata(made, expected):
    ds = lp.open(made)
    part = ds.pert.select(perturbation=["TP53", "KRAS"]).pert.select(batch="b2").sel(gene=["gene4", "gene1"])
    keep = expected.obs["perturbation"].isin(["TP53", "KRAS"]) & (expected.obs["batch"] == "b2")
    np.testing.assert_array_equal(part.X.values, expected[keep.to_numpy(), ["gene4", "gene1"]].X.toarray())
    assert float(part.X.isel(cell=slice(1, 4)).sum()) == expected[keep.to_numpy(), ["gene4", "gene1"]].X[1:4].sum()


def test_reductions_equal_anndata(made, expected):
    ds = lp.open(made)
    np.testing.assert_allclose(ds.X.mean("cell").values, np.asarray(expected.X.mean(axis=0)).ravel(), rtol=1e-6)
    np.testing.assert_array_equal(ds.X.sum("gene").values, np.asarray(expected.X.sum(axis=1)).ravel())
    assert float((ds.X - 1).min()) == -1  # unsigned counts would wrap round


def test_every_column_is_shown(made, expected):
    ds = lp.open(made)
    for name in expected.obs:
        values, theirs = pd.Series(ds[name].values), expected.obs[name].reset_index(drop=True)
        assert values.isna().tolist() == theirs.isna().tolist(), name
        assert values[theirs.notna()].tolist() == theirs[theirs.notna()].tolist(), name
        if isinstance(theirs.dtype, pd.CategoricalDtype):
            assert ds[f"{name}_code"].values.tolist() == theirs.cat.codes.tolist()
            assert ds[f"{name}_code"].attrs["categories"] == [str(c) for c in theirs.cat.categories]
    assert ds["gene_name"].values.tolist() == expected.var["gene_name"].tolist()
    assert ds.gene.values.tolist() == expected.var_names.tolist()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_matrices_show_in_an_exact_float(tmp_path, dtype):
    matrix = counts(10, 4, dtype="f8") * (1 if dtype == "f4" else 2**25 + 1)
    ds = lp.open(lp.convert(write(anndata.AnnData(matrix), tmp_path / "a.h5ad"), tmp_path / "s.zarr"))
    assert ds.X.dtype == dtype
    np.testing.assert_array_equal(ds.X.values, matrix.toarray())


@dataclass(frozen=True)
class CountingReader(LocalReader):
    """Remembers which bytes of which files were asked for."""

    has_files: bool = False  # so that all is read through what counts
    seen: ClassVar[list] = []  # one for all, since readers are copied

    def read_ranges(self, pieces, out):
        self.seen.extend((key, length) for key, _, length in pieces)
        return super().read_ranges(pieces, out)


def test_a_row_range_reads_only_the_chunks_it_touches(made, expected, monkeypatch):
    from lazypert.store import store as store_module

    monkeypatch.setattr(store_module, "LocalReader", CountingReader)
    CountingReader.seen = []
    ds = lp.open(made)
    CountingReader.seen.clear()
    ds.X.data[20:23].compute()
    keys = {key for key, _ in CountingReader.seen}
    grid = Store(made).matrix().data.grid
    first, last = expected.X.indptr[20], expected.X.indptr[23]
    shards = range(first // grid.shard, (last - 1) // grid.shard + 1)
    wanted = {f"X/{part}/c/{k}" for part in ("data", "indices") for k in shards}
    assert keys == wanted | {"X/indptr/c/0"}
    n_chunks = (last - 1) // grid.chunk - first // grid.chunk + 1
    assert n_chunks < 6
    body = sum(length for key, length in CountingReader.seen if key.startswith("X/indices"))
    index = (grid.shard // grid.chunk * 16 + 4) * len(shards)
    assert body <= n_chunks * (grid.chunk * 4 + 16 + 4) + index


def test_a_column_slice_of_a_selection_reads_no_other_rows(made, monkeypatch):
    from lazypert.store import store as store_module

    monkeypatch.setattr(store_module, "LocalReader", CountingReader)
    monkeypatch.setattr("lazypert.dataset.variables._BLOCK_BYTES", 17 * 4 * 9)  # nine rows a block
    CountingReader.seen = []
    ds = lp.open(made)
    picked = ds.isel(cell=slice(0, 9)).sel(gene=["gene3"])
    CountingReader.seen.clear()
    picked.X.data.compute()
    keys = {key for key, _ in CountingReader.seen}
    assert keys <= {"X/indptr/c/0", "X/data/c/0", "X/indices/c/0"}


CLASHES = ["gene", "cell", "X", "cell_name", "store_row", "lognorm", "X_pca", "batch_code", "gene_name", "obs_gene"]


def test_names_that_clash_are_told_apart(tmp_path):
    adata = screen(lean=True)
    adata.layers["lognorm"], adata.obsm["X_pca"] = adata.X, np.ones((90, 2))
    for name in CLASHES:
        adata.obs[name] = [f"{name}{i}" for i in range(90)]
    adata.obs = adata.obs[[*CLASHES, *(c for c in adata.obs if c not in CLASHES)]]
    adata.var["batch"] = np.arange(17)
    _, store = converted(tmp_path, adata)
    ds, source = lp.open(store), read_store(store)
    np.testing.assert_array_equal(ds.X.values, dense(source.X))
    assert ds.gene.values.tolist() == source.var_names.tolist()
    assert ds.store_row.values.tolist() == list(range(90))
    for name in [*CLASHES, "batch"]:
        (shown,) = [n for n, v in ds.coords.items() if v.attrs.get("obs_column") == name]
        assert ds[shown].dims == ("cell",)
        assert ds[shown].values.tolist() == source.obs[name].tolist()
    assert ds["var_batch"].values.tolist() == list(range(17))
    part = ds.pert.select(batch="b1")
    assert part.pert.groups.n_obs == (source.obs["batch"] == "b1").sum()
    assert part.pert.select(perturbation="TP53").sizes["cell"] > 0


def test_an_obs_column_named_like_an_embeddings_dimension(tmp_path):
    adata = screen(lean=True)
    adata.obsm["X_pca"] = np.ones((90, 2))
    adata.obs["X_pca_dim"] = np.arange(90)
    _, store = converted(tmp_path, adata)
    ds = lp.open(store)
    np.testing.assert_array_equal(ds.X_pca.values, read_store(store).obsm["X_pca"])
