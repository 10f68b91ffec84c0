"""Tests of genes equal SciPy's and Scanpy's, cell by cell."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
from scipy import stats

import lazypert as lp
from lazypert.analysis import moments
from lazypert.analysis.t_test import adjust_p_values, welch_t_test
from lazypert.errors import ColumnNotFoundError, ConfigError, NotCountsError
from tests.support.stores import ROLES, read_store, screen, small_grids, write


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store in many shards: with a perturbation of one cell, a gene without counts, and one that is constant."""
    folder = tmp_path_factory.mktemp("rank")
    adata = screen(150, seed=3)
    labels = adata.obs["perturbation"].astype(object).to_numpy(copy=True)
    labels[:3], labels[5] = None, "only once"
    adata.obs["perturbation"] = pd.Categorical(labels)
    x = adata.X.tolil()
    x[:, 4] = 0
    x[:, 5] = 3
    adata.X = x.tocsr()
    with pytest.MonkeyPatch.context() as patch:
        small_grids(patch)
        store = lp.convert(write(adata, folder / "screen.h5ad"), folder / "screen.zarr", **ROLES)
    return store, read_store(store)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Divide even small screens into several tiles and blocks."""
    monkeypatch.setattr(moments, "_TILE_VALUES", 100)
    monkeypatch.setattr(moments, "_BLOCK_BYTES_OF_RUNS", 17 * 3 * 8)


def values_of(adata, of):
    x = adata.X.toarray().astype(float)
    return np.log1p(1e4 * x / x.sum(axis=1, keepdims=True)) if of == "log1p" else x


def cells_of(adata, perturbation, reference):
    labels = adata.obs["perturbation"].astype(object)
    others = (labels == ROLES["control_pert"]) if reference == "control" else labels.notna() & (labels != perturbation)
    return (labels == perturbation).to_numpy(), others.to_numpy()


@pytest.mark.parametrize("reference", ["control", "rest"])
@pytest.mark.parametrize("of", ["log1p", "counts"])
def test_every_test_equals_scipy(made, of, reference):
    store, adata = made
    found = lp.open(store).pert.rank_genes("t-test", reference=reference, of=of)
    assert found["score"].chunks is not None
    found, x = found.compute(), values_of(adata, of)
    assert ROLES["control_pert"] not in found.perturbation
    for perturbation in found.perturbation.values:
        one, (mine, others) = found.sel(perturbation=perturbation), cells_of(adata, perturbation, reference)
        assert (int(one["n"]), int(one["reference_n"])) == (mine.sum(), others.sum())
        np.testing.assert_allclose(one["mean"], x[mine].mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(one["reference_mean"], x[others].mean(axis=0), rtol=1e-12)
        if perturbation == "only once":
            assert np.isnan(one[["score", "p_value", "p_adjusted"]].to_array()).all()
            continue
        is_varied = np.ptp(x[mine | others], axis=0) > 0
        expected = stats.ttest_ind(x[mine][:, is_varied], x[others][:, is_varied], equal_var=False)
        np.testing.assert_allclose(one["score"][is_varied], expected.statistic, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(one["p_value"][is_varied], expected.pvalue, rtol=1e-8)
        assert (one["p_value"][~is_varied] == 1).all()
        adjusted = stats.false_discovery_control(one["p_value"].to_numpy())
        np.testing.assert_allclose(one["p_adjusted"], adjusted, rtol=1e-12)


@pytest.mark.parametrize("reference", ["control", "rest"])
def test_every_number_equals_scanpys(made, reference):
    store, adata = made
    adata = adata[adata.obs["perturbation"].notna() & (adata.obs["perturbation"] != "only once")].copy()
    adata = anndata.AnnData(adata.X.astype(np.float64), adata.obs[["perturbation"]].astype(str), adata.var[[]])
    ds = lp.open(store)
    kept = ~ds.perturbation.isin(["only once"])
    found = ds.isel(cell=kept).pert.rank_genes(reference=reference).compute()
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    scanpy.pp.log1p(adata)
    scanpy.tl.rank_genes_groups(
        adata, "perturbation", method="t-test", reference=ROLES["control_pert"] if reference == "control" else "rest"
    )
    table = scanpy.get.rank_genes_groups_df(adata, group=None)
    table = table[table["group"] != ROLES["control_pert"]]
    assert set(table["group"]) == set(found.perturbation.values)
    for group, rows in table.groupby("group", observed=True):
        one = found.sel(perturbation=group, gene=rows["names"].to_numpy())
        np.testing.assert_allclose(one["score"], rows["scores"], rtol=1e-5, atol=1e-6)  # Scanpy's are float32
        np.testing.assert_allclose(one["p_value"], rows["pvals"], rtol=1e-5)
        np.testing.assert_allclose(one["p_adjusted"], rows["pvals_adj"], rtol=1e-5)
        is_seen = rows["names"].to_numpy() != adata.var_names[4]
        np.testing.assert_allclose(one["log2_fold_change"][is_seen], rows["logfoldchanges"][is_seen], rtol=1e-3)


def test_tests_within_cell_types(made):
    store, _ = made
    ds = lp.open(store)
    found = ds.pert.rank_genes(by=("cell_type", "perturbation")).compute()
    assert found["score"].dims == ("cell_type", "perturbation", "gene")
    for cell_type in found.cell_type.values:
        alone = ds.isel(cell=ds.cell_type == cell_type).pert.rank_genes().compute()
        for name in ("score", "p_adjusted", "log2_fold_change"):
            np.testing.assert_array_equal(
                found[name].sel(cell_type=cell_type, perturbation=alone.perturbation), alone[name]
            )


def test_a_null_screen_has_uniform_p_values(tmp_path):
    """Perturbations that do nothing: one test in twenty is below 0.05, wherever the cells are in the store."""
    random = np.random.default_rng(0)
    n, names = 2_000, [ROLES["control_pert"], *(f"p{i}" for i in range(9))]
    adata = screen(n, lean=True)
    adata.X = type(adata.X)(random.poisson(3, adata.shape).astype(np.float32))
    adata.obs["perturbation"] = pd.Categorical(random.choice(names, n))
    store = lp.convert(write(adata, tmp_path / "null.h5ad"), tmp_path / "null.zarr", **ROLES)
    p = lp.open(store).pert.rank_genes(of="counts")["p_value"].to_numpy().ravel()
    assert len(p) == 9 * adata.n_vars
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert abs((p < 0.05).mean() - 0.05) < 4 * np.sqrt(0.05 * 0.95 / len(p)) + 0.02


def test_stored_values_have_a_fold_change_only_if_they_are_counts(made):
    store, adata = made
    ds = lp.open(store)
    found = ds.pert.rank_genes(of="stored", layer="lognorm").compute()
    x = np.asarray(adata.layers["lognorm"].toarray(), float)
    mine, others = cells_of(adata, "KRAS", "control")
    np.testing.assert_allclose(found["mean"].sel(perturbation="KRAS"), x[mine].mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found["reference_mean"], x[others].mean(axis=0), rtol=1e-9)
    assert "log2_fold_change" not in found, "whether they are logarithms, and of which base, is not known"
    counts = ds.pert.rank_genes(of="stored")["log2_fold_change"].compute()
    np.testing.assert_array_equal(counts, ds.pert.rank_genes(of="counts")["log2_fold_change"].compute())


@pytest.mark.parametrize("reference", ["control", "rest"])
def test_cell_types_without_cells_have_no_numbers(made, reference):
    ds = lp.open(made[0])
    some = ds.isel(cell=ds.cell_type == ds.cell_type[0])
    found = some.pert.rank_genes(reference=reference, by=("cell_type", "perturbation")).compute()
    is_empty = (found["n"] == 0).all("perturbation")
    assert is_empty.values.tolist().count(True) == found.sizes["cell_type"] - 1
    assert np.isnan(found["p_value"].isel(cell_type=is_empty.values)).all()
    assert not np.isnan(found["p_value"].isel(cell_type=~is_empty.values).sel(perturbation="KRAS")).any()


def test_p_values_that_are_missing_are_no_tests():
    p = np.array([[0.01, np.nan, 0.04, 0.03], [np.nan] * 4, [0.5, 0.9, 1, 0.2]])
    found = adjust_p_values(p)
    np.testing.assert_allclose(found[0, [0, 2, 3]], stats.false_discovery_control(p[0, [0, 2, 3]]))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(p))
    np.testing.assert_allclose(found[2], stats.false_discovery_control(p[2]))


def test_constant_genes():
    t, p = welch_t_test(
        (np.array([5.0]), np.array([1.0, 2.0, 1.0]), np.array([0.0, 0.0, 0.0])),
        (np.array([4.0]), np.array([1.0, 1.0, 1.0]), np.array([0.0, 0.0, 2.0])),
    )
    np.testing.assert_array_equal(t, [0, np.inf, 0])
    np.testing.assert_array_equal(p, [1, 0, 1])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "wilcoxn"}, ConfigError, "method: got 'wilcoxn'"),
        ({"reference": "KRAS"}, ConfigError, "reference: got 'KRAS', expected 'control' or 'rest'"),
        ({"by": "cell_type"}, ConfigError, "by: got 'cell_type', expected 'perturbation' among the names"),
        ({"by": ("guide", "perturbation")}, ColumnNotFoundError, "guide"),
        ({"genes": []}, ConfigError, r"genes: got \[\], expected at least one gene"),
        ({"layer": "lognorm"}, NotCountsError, "of: got 'log1p', but layers/lognorm"),
        ({"refrence": "rest"}, ConfigError, "reference"),
    ],
)
def test_wrong_options_are_errors(made, options, error, message):
    with pytest.raises(error, match=message):
        lp.open(made[0]).pert.rank_genes(**options)


def test_no_controls_are_an_error(made):
    ds = lp.open(made[0])
    some = ds.isel(cell=ds.perturbation == "KRAS")
    with pytest.raises(ConfigError, match="no cell here is a control"):
        some.pert.rank_genes()
