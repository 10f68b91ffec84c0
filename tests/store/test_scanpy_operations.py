"""scanpy computes the same from a store as from its source file."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import lazypert as lp
from tests.support.stores import (
    ROLES,
    dense,
    read_store,
    screen,
    small_grids,
    write,
)

sc = pytest.importorskip("scanpy")
N_OBS, N_VARS = 120, 40
PROTEINS = 5


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The screen as read from a store and from its file, cells in the same order: counts as X, logs as a layer."""
    made = screen(N_OBS, N_VARS, lean=True)
    rng = np.random.default_rng(3)
    made.X = sparse.csr_matrix(rng.negative_binomial(2, 0.02, (N_OBS, N_VARS)) * (rng.random(made.shape) < 0.6) * 1.0)
    made.X = made.X.astype("f4")
    made.layers["counts"] = made.X.copy()
    made.layers["lognorm"] = made.X.log1p()
    folder = tmp_path_factory.mktemp("scanpy")
    path = write(made, folder / "a.h5ad")
    with pytest.MonkeyPatch.context() as patch:
        small_grids(patch)
        store = lp.convert(path, folder / "a.zarr", **ROLES)
    found = read_store(store)
    return found, anndata.read_h5ad(path)[found.obs_names].copy()


def normalised(adata):
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def ranked(adata, **options):
    sc.tl.rank_genes_groups(adata, "perturbation", reference="non-targeting", **options)
    return pd.concat(sc.get.rank_genes_groups_df(adata, group) for group in ("BRCA1", "KRAS", "TP53")).reset_index(
        drop=True
    )


def aggregate(function):
    def run(adata):
        found = sc.get.aggregate(adata, ["cell_type", "perturbation"], function)
        return dense(found.layers[function])

    return run


def run_in_place(function, *results):
    """Apply a function that changes an AnnData; return parts of it."""

    def run(adata):
        function(adata)
        return [result(adata) for result in results] or adata.X

    return run


def obs(adata):
    return adata.obs


def var(adata):
    return adata.var


def x(adata):
    return adata.X


def hvg(**options):
    return run_in_place(lambda a: sc.pp.highly_variable_genes(a, n_top_genes=10, **options), var)


OPERATIONS = {
    **{f"aggregate {name}": aggregate(name) for name in ("sum", "mean", "var", "count_nonzero", "median")},
    "normalize_total": run_in_place(sc.pp.normalize_total),
    "normalize_total to a sum": run_in_place(lambda a: sc.pp.normalize_total(a, target_sum=1e4)),
    "normalize_total of a layer": run_in_place(
        lambda a: sc.pp.normalize_total(a, layer="counts"), lambda a: a.layers["counts"]
    ),
    "log1p": run_in_place(sc.pp.log1p),
    "log1p to base 2": run_in_place(lambda a: sc.pp.log1p(a, base=2)),
    "sqrt": lambda a: sc.pp.sqrt(a, copy=True).X,
    "scale": run_in_place(lambda a: sc.pp.scale(a, max_value=10), x, var),
    "scale without centring": run_in_place(lambda a: sc.pp.scale(a, zero_center=False), x, var),
    "regress_out": run_in_place(lambda a: sc.pp.regress_out(a, "batch")),
    "combat": run_in_place(lambda a: sc.pp.combat(normalised(a), "batch")),
    "pca": run_in_place(lambda a: sc.pp.pca(normalised(a), n_comps=5), lambda a: a.obsm["X_pca"]),
    "pca of counts": run_in_place(lambda a: sc.pp.pca(a, n_comps=5), lambda a: a.obsm["X_pca"]),
    "pca without centring": run_in_place(
        lambda a: sc.pp.pca(a, n_comps=5, zero_center=False), lambda a: a.obsm["X_pca"]
    ),
    "downsample cells": run_in_place(lambda a: sc.pp.downsample_counts(a, counts_per_cell=500, random_state=0)),
    "downsample all": run_in_place(lambda a: sc.pp.downsample_counts(a, total_counts=20_000, random_state=0)),
    "hvg of seurat": lambda a: hvg(flavor="seurat")(normalised(a)),
    "hvg of cell_ranger": lambda a: hvg(flavor="cell_ranger")(normalised(a)),
    "hvg by batch": lambda a: hvg(flavor="seurat", batch_key="batch")(normalised(a)),
    "hvg of seurat_v3": hvg(flavor="seurat_v3", span=0.9),
    "hvg of seurat_v3 in a layer": hvg(flavor="seurat_v3", span=0.9, layer="counts"),
    "hvg of Pearson residuals": run_in_place(
        lambda a: sc.experimental.pp.highly_variable_genes(a, flavor="pearson_residuals", n_top_genes=10), var
    ),
    "Pearson residuals": run_in_place(sc.experimental.pp.normalize_pearson_residuals),
    "t-test": lambda a: ranked(normalised(a), method="t-test"),
    "t-test of counts": lambda a: ranked(a, method="t-test"),
    "t-test with overestimated variance": lambda a: ranked(normalised(a), method="t-test_overestim_var"),
    "t-test of a layer": lambda a: ranked(a, method="t-test", layer="lognorm"),
    "wilcoxon": lambda a: ranked(normalised(a), method="wilcoxon"),
    "wilcoxon with ties": lambda a: ranked(a, method="wilcoxon", tie_correct=True),
    "calculate_qc_metrics": run_in_place(
        lambda a: sc.pp.calculate_qc_metrics(a, percent_top=(5, 20), inplace=True), obs, var
    ),
    "calculate_qc_metrics of a layer": run_in_place(
        lambda a: sc.pp.calculate_qc_metrics(a, percent_top=None, layer="counts", inplace=True), obs, var
    ),
    "filter_genes by counts": run_in_place(lambda a: sc.pp.filter_genes(a, min_counts=3_600), x, var),
    "filter_genes by cells": run_in_place(lambda a: sc.pp.filter_genes(a, min_cells=60), x, var),
    "filter_cells by counts": run_in_place(lambda a: sc.pp.filter_cells(a, min_counts=1_800), x, obs),
    "filter_cells by genes": run_in_place(lambda a: sc.pp.filter_cells(a, max_genes=24), x, obs),
    "score_genes": run_in_place(
        lambda a: sc.tl.score_genes(a, list(a.var_names[:5]), ctrl_size=5, n_bins=5, random_state=0), obs
    ),
    "neighbors": run_in_place(
        lambda a: sc.pp.neighbors(a, n_neighbors=5, use_rep="X", transformer="sklearn"), lambda a: a.obsp["distances"]
    ),
    "obs_df": lambda a: sc.get.obs_df(a, [*a.var_names[:3], "batch"]),
    "var_df": lambda a: sc.get.var_df(a, list(a.obs_names[:3])),
    "obs_vector": lambda a: a.obs_vector("gene3") - 100,
    "to_df": lambda a: a.to_df() - a.to_df().iloc[0],
    "to_df of a layer": lambda a: a.to_df(layer="counts").diff(),
    "differences in chunks": lambda a: np.concatenate([dense(c)[1:] - dense(c)[:-1] for c, _, _ in a.chunked_X(50)]),
    "concat": lambda a: (lambda both: both.X[: a.n_obs] - both.X[a.n_obs :])(anndata.concat([a, a[::-1].copy()])),
    "means of a view": lambda a: np.asarray(a[a.obs["perturbation"] == "TP53", :20].X.mean(axis=0)),
    "transpose": lambda a: a.T.X - a.T.X.mean(axis=0),
}


def assert_equal(found, expected):
    if isinstance(expected, list | tuple):
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected, check_exact=True)
    else:
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(dense(found), dense(expected))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_on_a_store_equals_the_one_on_the_file(pair, name):
    """Bit for bit, as both have the same dtypes: float32 counts and logs."""
    if "seurat_v3" in name:
        pytest.importorskip("skmisc", reason="seurat_v3 needs scikit-misc")
    found, source = (one.copy() for one in pair)
    assert found.X.dtype == source.X.dtype == np.float32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_equal(OPERATIONS[name](found), OPERATIONS[name](source))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["to_df of a layer", "obs_vector", "concat", "differences in chunks"])
def test_operation_is_wrong_on_unsigned_counts(pair, name):
    """The test above can fail: this is what stores that show counts as they are stored give."""
    found, source = (one.copy() for one in pair)
    found.X, found.layers["counts"] = found.X.astype("u2"), found.layers["counts"].astype("u2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unsigned, expected = (dense(OPERATIONS[name](one)) for one in (found, source))
    assert not np.allclose(unsigned, expected, equal_nan=True)
