"""Every variable of a Dataset has the values that AnnData shows, and a name of its own."""

import anndata
import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert.dataset.variables import MatrixArray
from lazypert.store.store import Store
from tests.support.stores import converted, counts, dense, read_store, screen, write

INDEXERS = {
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


@pytest.mark.parametrize("name", INDEXERS)
@pytest.mark.parametrize("engine", [None, "lazypert"], ids=["open", "backend"])
def test_indexing_equals_anndata(made, expected, name, engine):
    import xarray as xr

    ds = lp.open(made) if engine is None else xr.open_dataset(made, engine=engine)
    indexer = INDEXERS[name]
    selection = ds.isel(indexer)
    cell, gene = (indexer.get(d, slice(None)) for d in ("cell", "gene"))
    for variable, matrix in (("X", expected.X), ("lognorm", expected.layers["lognorm"])):
        np.testing.assert_array_equal(selection[variable].values, matrix.toarray()[cell][..., gene])
    np.testing.assert_array_equal(selection.X_pca.values, expected.obsm["X_pca"][cell])
    np.testing.assert_array_equal(selection.guides.values, dense(expected.obsm["guides"])[cell])
    np.testing.assert_array_equal(selection.cell_name.values, expected.obs_names.to_numpy(dtype=object)[cell])
    np.testing.assert_array_equal(selection.store_row.values, np.arange(90)[cell])


def test_every_obs_and_var_column_is_a_coordinate(made, expected):
    ds = lp.open(made)
    for name in expected.obs:
        values, original = pd.Series(ds[name].values), expected.obs[name].reset_index(drop=True)
        assert values.isna().tolist() == original.isna().tolist(), name
        assert values[original.notna()].tolist() == original[original.notna()].tolist(), name
        if isinstance(original.dtype, pd.CategoricalDtype):
            assert ds[f"{name}_code"].values.tolist() == original.cat.codes.tolist()
            assert ds[f"{name}_code"].attrs["categories"] == [str(c) for c in original.cat.categories]
    assert ds["gene_name"].values.tolist() == expected.var["gene_name"].tolist()
    assert ds.gene.values.tolist() == expected.var_names.tolist()


def test_arithmetic_with_codes_does_not_wrap(made, expected):
    ds, stored = lp.open(made), expected.obs["perturbation"].cat.codes
    assert stored.dtype == np.int8
    for codes in (ds.perturbation_code, ds.isel(cell=slice(3, 60, 7)).perturbation_code):
        assert codes.dtype == np.int32
        assert (codes * 100).values.tolist() == [100 * int(code) for code in stored.iloc[codes.store_row.values]]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_matrices_have_a_float_dtype_that_is_exact(tmp_path, dtype):
    matrix = counts(10, 4, dtype="f8") * (1 if dtype == "f4" else 2**25 + 1)
    ds = lp.open(lp.convert(write(anndata.AnnData(matrix), tmp_path / "a.h5ad"), tmp_path / "s.zarr"))
    assert ds.X.dtype == dtype
    np.testing.assert_array_equal(ds.X.values, matrix.toarray())


CLASHES = ["gene", "cell", "X", "cell_name", "store_row", "lognorm", "X_pca", "batch_code", "gene_name", "obs_gene"]


def test_names_that_clash_get_a_prefix(tmp_path):
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
    selection = ds.pert.select(batch="b1")
    assert selection.pert.groups.n_obs == (source.obs["batch"] == "b1").sum()
    assert selection.pert.select(perturbation="TP53").sizes["cell"] > 0


def test_an_obs_column_can_be_named_like_the_dimension_of_an_embedding(tmp_path):
    adata = screen(lean=True)
    adata.obsm["X_pca"] = np.ones((90, 2))
    adata.obs["X_pca_dim"] = np.arange(90)
    _, store = converted(tmp_path, adata)
    ds = lp.open(store)
    np.testing.assert_array_equal(ds.X_pca.values, read_store(store).obsm["X_pca"])


def test_the_repr_of_a_matrix_array_is_one_line(made):
    assert repr(MatrixArray(Store(made).matrix())) == "MatrixArray('X': 90 x 17 float32)"
