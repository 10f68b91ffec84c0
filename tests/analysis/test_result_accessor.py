"""Statistics as AnnData objects, and sums of replicates."""

import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert.errors import ColumnNotFoundError, ConfigError
from tests.support.stores import ROLES, read_store, screen, write


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    adata = screen(150, seed=3)
    adata.obs["donor"] = pd.Categorical([f"d{i % 3}" for i in range(150)])
    store = lp.convert(write(adata, folder / "screen.h5ad"), folder / "screen.zarr", **ROLES)
    return lp.open(store), read_store(store)


def test_pseudobulk_is_the_sum_of_the_cells_of_each_replicate(made):
    ds, adata = made
    bulk = ds.pert.pseudobulk(by=("perturbation", "donor"))
    assert bulk["sum"].chunks is not None
    found = bulk.pert.to_anndata()
    expected = adata.obs.groupby(["perturbation", "donor"], observed=True).indices
    assert found.n_obs == len(expected)
    assert found.var_names.tolist() == adata.var_names.tolist()
    for (perturbation, donor), cells in expected.items():
        row = found[f"{perturbation}_{donor}"]
        assert (row.obs["perturbation"].item(), row.obs["donor"].item()) == (perturbation, donor)
        assert row.obs["n"].item() == len(cells)
        np.testing.assert_array_equal(row.X[0], adata.X[cells].toarray().sum(axis=0, dtype=float))


def test_small_groups_are_left_out(made):
    ds, _ = made
    bulk = ds.pert.pseudobulk()
    least = int(np.median(bulk.n))
    found = bulk.pert.to_anndata(min_cells=least)
    assert found.n_obs == int((bulk.n >= least).sum())
    assert found.obs["n"].min() >= least
    assert bulk.pert.to_anndata(min_cells=10**6).shape == (0, ds.sizes["gene"])


def test_other_statistics_are_layers(made):
    ds, _ = made
    lazy = ds.pert.aggregate(by="perturbation", stats=("mean", "n", "fraction"))
    found, expected = lazy.pert.to_anndata("fraction"), lazy.compute()
    np.testing.assert_array_equal(found.X, expected["fraction"])
    np.testing.assert_array_equal(found.layers["mean"], expected["mean"])
    assert found.obs_names.tolist() == expected.perturbation.values.tolist()
    assert ds.pert.aggregate(by=(), stats=("n", "mean")).pert.to_anndata().obs_names.tolist() == ["all"]


def test_selected_genes_and_groups(made):
    ds, _ = made
    means = ds.pert.aggregate(stats=("n", "mean"))
    part = means.sel(cell_type=means.cell_type[0]).isel(gene=[3, 1])
    found = part.pert.to_anndata()
    assert found.var_names.tolist() == [str(name) for name in means.gene.values[[3, 1]]]
    np.testing.assert_array_equal(found.X, part["mean"].sel(perturbation=found.obs_names.to_numpy()))
    assert repr(part.pert).startswith("ResultAccessor(aggregate of {'perturbation':")


def test_tests_of_genes(made):
    ds, _ = made
    lazy = ds.pert.rank_genes(by=("cell_type", "perturbation"))
    found = lazy.pert.to_anndata("log2_fold_change", min_cells=2)
    one = found[0]
    expected = lazy.sel(cell_type=one.obs["cell_type"].item(), perturbation=one.obs["perturbation"].item()).compute()
    np.testing.assert_array_equal(one.X[0], expected["log2_fold_change"])
    assert one.obs["reference_n"].item() == int(expected["reference_n"])


def test_attributes_of_a_screen_may_have_any_name(made):
    ds, _ = made
    assert len(ds.assign_attrs(statistics="mine").pert.groups) == len(ds.pert.groups)


def test_what_cannot_be_a_table_is_an_error(made):
    ds, _ = made
    means = ds.pert.aggregate(stats=("mean",))
    with pytest.raises(ConfigError, match="Ask for the statistic 'n' too"):
        means.pert.to_anndata()
    with pytest.raises(ConfigError, match="the dimension 'gene'"):
        ds.pert.aggregate(stats=("n", "mean")).isel(gene=0).pert.to_anndata()
    with pytest.raises(ConfigError, match="x: got 'median', expected one of 'mean'"):
        ds.pert.aggregate(stats=("n", "mean")).pert.to_anndata("median")
    with pytest.raises(ColumnNotFoundError, match="'replicate'"):
        ds.pert.pseudobulk(by=("perturbation", "replicate"))
