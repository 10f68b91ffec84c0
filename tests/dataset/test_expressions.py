"""Expressions that users of xarray and pandas write give what they give on the same data in memory."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import lazypert as lp

EXPRESSIONS = {
    "mean of each perturbation": lambda ds: ds.X.groupby("perturbation").mean(),
    "mean of each code": lambda ds: ds.X.groupby("perturbation_code").mean(),
    "sum by two columns": lambda ds: ds.X.groupby(["cell_type", "perturbation"]).sum(),
    "group sizes": lambda ds: ds.X.isel(gene=0).groupby("batch").count(),
    "mean of a column by group": lambda ds: ds.f4.groupby("cell_type").mean(),
    "mask of labels": lambda ds: ds.isel(cell=ds.perturbation == "TP53").X,
    "mask of numbers": lambda ds: ds.isel(cell=ds.u1 > 100).X,
    "two conditions": lambda ds: ds.isel(cell=(ds.batch == "b1") & (ds.u1 > 100)).X,
    "membership": lambda ds: ds.isel(cell=ds.perturbation.isin(["TP53", "KRAS"])).X,
    "sel with a mask": lambda ds: ds.sel(cell=ds.batch == "b2").X,
    "subscript with a mask": lambda ds: ds.X[ds.batch == "b2"],
    "where, dropping": lambda ds: ds.where(ds.batch == "b1", drop=True).X,
    "where, keeping": lambda ds: ds.X.where(ds.batch == "b1", 0),
    "where on a column": lambda ds: ds.X.where(ds.u1 > 100).mean("cell"),
    "query": lambda ds: ds.query(cell="batch == 'b1'").X,
    "query with numbers": lambda ds: ds.query(cell="u1 > 100 and flag").X,
    "a gene": lambda ds: ds.sel(gene="gene3").X,
    "genes": lambda ds: ds.sel(gene=["gene3", "gene1"]).X,
    "genes by a column": lambda ds: ds.isel(gene=ds.length > 5).X,
    "genes by a var label": lambda ds: ds.X.sel(gene=ds.gene_name == "gene4-name"),
    "a cell by name": lambda ds: ds.set_xindex("cell_name").sel(cell_name="cell0_17").X,
    "cells by name": lambda ds: ds.set_xindex("cell_name").sel(cell_name=["cell0_17", "cell0_3"]).X,
    "sorted by a column": lambda ds: ds.sortby("i8").X,
    "first cells": lambda ds: ds.head(cell=5).X,
    "every seventh": lambda ds: ds.thin(cell=7).X,
    "cells in any order": lambda ds: ds.isel(cell=[5, 3, 3, 80]).perturbation,
    "shares": lambda ds: ds.X / (ds.total_counts + 1),
    "log": lambda ds: np.log1p(ds.X).mean("cell"),
    "difference of means": lambda ds: ds.X[ds.batch == "b1"].mean("cell") - ds.X[ds.batch == "b2"].mean("cell"),
    "standard deviation": lambda ds: ds.X.std("cell"),
    "quantile of a column": lambda ds: ds.f4.quantile(0.3),
    "text": lambda ds: ds.perturbation.str.startswith("TP"),
    "a column and a number": lambda ds: ds.u1.astype("i4") * 2 + 1,
    "largest": lambda ds: ds.X.isel(gene=3).argmax("cell"),
    "concatenation": lambda ds: xr.concat([ds.isel(cell=slice(0, 5)), ds.isel(cell=slice(9, 12))], "cell").batch,
    "series": lambda ds: xr.DataArray(ds.perturbation.to_series().value_counts().sort_index()),
    "data frame": lambda ds: xr.DataArray(ds[["u1", "f4"]].reset_coords()[["u1", "f4"]].to_dataframe().to_numpy()),
    "stacked": lambda ds: ds.X.isel(cell=slice(0, 4)).stack(point=("cell", "gene")).sum(),
    "correlation": lambda ds: xr.corr(ds.X.sel(gene="gene1"), ds.f4),
    "weighted": lambda ds: ds.X.weighted(ds.f4).mean("cell"),
}  # fmt: skip


@pytest.fixture(scope="module")
def in_memory(made):
    """The same Dataset with every variable as a NumPy array."""
    ds = lp.open(made)
    values = {name: (variable.dims, np.array(variable.values)) for name, variable in ds.variables.items()}
    coords = {name: values.pop(name) for name in ds.coords}
    return xr.Dataset(values, coords)


@pytest.mark.parametrize("engine", [None, pytest.param("lazypert", marks=pytest.mark.slow)], ids=["open", "backend"])
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_give_what_they_give_in_memory(made, in_memory, expression, engine):
    ds = lp.open(made) if engine is None else xr.open_dataset(made, engine=engine)
    result, wanted = EXPRESSIONS[expression](ds), EXPRESSIONS[expression](in_memory)
    assert result.dims == wanted.dims
    assert set(result.coords) == set(wanted.coords)
    if result.dtype == object:
        assert result.values.tolist() == wanted.values.tolist()
    else:
        np.testing.assert_allclose(result.values, wanted.values, rtol=1e-5, atol=1e-6)
    for name in wanted.indexes:
        assert result.indexes[name].equals(wanted.indexes[name])


WITH_ANNDATA = {
    "cells of a label": (
        lambda ds: ds.query(cell="perturbation == 'TP53'").X.values,
        lambda a: a[a.obs["perturbation"] == "TP53"].X.toarray(),
    ),
    "two genes in order": (
        lambda ds: ds.X.sel(gene=["gene3", "gene1"]).values,
        lambda a: a[:, ["gene3", "gene1"]].X.toarray(),
    ),
    "cells and genes": (
        lambda ds: ds.isel(cell=ds.flag).sel(gene=["gene2"]).X.values,
        lambda a: a[a.obs["flag"].to_numpy(), ["gene2"]].X.toarray(),
    ),
    "mean of each gene": (lambda ds: ds.X.mean("cell").values, lambda a: np.asarray(a.X.mean(axis=0)).ravel()),
    "a layer": (
        lambda ds: ds.lognorm.sum("gene").values,
        lambda a: np.asarray(a.layers["lognorm"].sum(axis=1)).ravel(),
    ),
    "a gene as a vector": (lambda ds: ds.X.sel(gene="gene4").values, lambda a: a[:, "gene4"].X.toarray().ravel()),
    "an embedding of some cells": (
        lambda ds: ds.isel(cell=ds.batch == "b2").X_pca.values,
        lambda a: a[a.obs["batch"] == "b2"].obsm["X_pca"],
    ),
    "means by a column": (
        lambda ds: ds.pert.obs().groupby("batch", observed=True)["u1"].mean().to_numpy(),
        lambda a: a.obs.groupby("batch", observed=True)["u1"].mean().to_numpy(),
    ),
    "a cross table": (
        lambda ds: pd.crosstab(ds.pert.obs()["batch"], ds.pert.obs()["perturbation"]).to_numpy(),
        lambda a: pd.crosstab(a.obs["batch"], a.obs["perturbation"]).to_numpy(),
    ),
    "sorted cells": (
        lambda ds: ds.pert.obs().sort_values("i8").index.to_numpy(),
        lambda a: a.obs.sort_values("i8").index.to_numpy(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("expression", WITH_ANNDATA)
def test_what_users_of_anndata_and_pandas_write(made, expected, expression):
    ours, theirs = WITH_ANNDATA[expression]
    result, wanted = ours(lp.open(made)), theirs(expected)
    if np.asarray(wanted).dtype.kind in "OTU":
        assert result.tolist() == wanted.tolist()
    else:
        np.testing.assert_allclose(result, wanted, rtol=1e-5)


def test_expressions_of_anndata_have_an_equal(made, expected):
    ds = lp.open(made)
    for condition in ("perturbation == 'TP53'", "u1 > 100", "batch == 'b1' and not flag"):
        ours = ds.query(cell=condition)
        rows = expected.obs.eval(condition.replace("not flag", "flag == False")).to_numpy()
        np.testing.assert_array_equal(ours.X.values, expected[rows].X.toarray())
        pd.testing.assert_index_equal(ours.pert.obs().index, expected[rows].obs_names, check_names=False, exact=False)
    counts = ds.pert.obs()["perturbation"].value_counts()
    assert counts.to_dict() == expected.obs["perturbation"].value_counts().to_dict()


def test_a_duplicate_gene_name_selects_all_of_its_columns(made, expected):
    ds = lp.open(made).assign_coords(gene=["DUP", "DUP", *expected.var_names[2:]])
    np.testing.assert_array_equal(ds.sel(gene="DUP").X.values, expected.X[:, :2].toarray())
    with pytest.raises(pd.errors.InvalidIndexError, match="uniquely valued"):
        ds.sel(gene=["DUP", "gene5"])
    with pytest.raises(KeyError, match="not all values found"):
        ds.sel(gene="gene99")


def test_selections_can_be_written_as_zarr_and_netcdf(made, tmp_path):
    ds = lp.open(made).isel(cell=slice(5, 60, 3), gene=[3, 1])
    ds.to_zarr(tmp_path / "s.zarr", zarr_format=2, consolidated=False)
    # Without netCDF4, xarray writes netCDF 3, which has no such integers and no lists of text as attributes.
    codes = [name for name, variable in ds.variables.items() if "categories" in variable.attrs]
    ds.drop_vars(["u1", "i8", *codes]).to_netcdf(tmp_path / "s.nc")
    for again in (xr.open_zarr(tmp_path / "s.zarr", consolidated=False), xr.open_dataset(tmp_path / "s.nc")):
        np.testing.assert_array_equal(again.X.values, ds.X.values)
        np.testing.assert_array_equal(again.X_pca.values, ds.X_pca.values)
        assert again.cell_name.values.tolist() == ds.cell_name.values.tolist()
        assert again.perturbation.values.tolist() == ds.perturbation.values.tolist()
        assert again.holey_category.values.tolist() == [label or "" for label in ds.holey_category.values]
        assert len(again.pert.table()) == len(ds.pert.table())
