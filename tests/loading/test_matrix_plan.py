"""Genes, normalisation, downsampling and embeddings follow the options."""

import numpy as np
import pytest
from scipy import sparse

from lazypert.downsampling.config import DownsamplingConfig
from lazypert.errors import ConfigError, NotCountsError
from lazypert.loading.config import LoaderConfig
from lazypert.loading.matrix_plan import MatrixPlan
from tests.support.loaders import loader_of, whole_loader
from tests.support.stores import counts, screen, write


def test_normalisation_equals_scanpy(source, reference):
    import scanpy as sc

    expected = reference.adata.copy()
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected)
    for batch in loader_of(source, target_sum=1e4):
        names = list(source.obs_names(np.asarray(batch.row)))
        np.testing.assert_allclose(batch.counts, expected[names].X.toarray(), rtol=1e-5)


def test_genes_are_returned_in_the_requested_order(source, reference):
    genes = [reference.adata.var_names[i] for i in (150, 3, 77)]
    for batch in loader_of(source, genes=genes):
        names = list(source.obs_names(np.asarray(batch.row)))
        np.testing.assert_array_equal(batch.counts, reference.adata[names, genes].X.toarray())


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_genes_named_twice_are_rejected(tmp_path):
    loader = whole_loader(write(screen(60, genes=["a", "b", "c", "b"], lean=True), tmp_path / "s.h5ad"))
    assert loader(genes=["c", "a"]).width == 2
    for genes, repeated in ((["b"], "b"), (["c", "a", "c"], "c"), (["a", "a", "b"], "a")):
        with pytest.raises(ConfigError, match=f"genes: got '{repeated}', which occurs more than once"):
            loader(genes=genes)


def test_an_empty_list_of_genes_gives_no_features(source):
    batch = next(iter(loader_of(source, genes=[])))
    assert (batch.counts.shape, batch.controls.shape) == ((28, 0), (28, 2, 0))


def test_reads_of_cells_and_controls_are_downsampled_anew_in_each_epoch(source):
    loader = loader_of(source, downsampling=DownsamplingConfig(fraction=0.25))
    raw = list(loader_of(source))
    for field in ("counts", "controls"):
        loader.set_epoch(0)
        thinned = np.concatenate([np.asarray(getattr(batch, field)) for batch in loader])
        reads = np.concatenate([np.asarray(getattr(batch, field)) for batch in raw])
        assert (thinned <= reads).all()
        assert abs(thinned.sum() / reads.sum() - 0.25) < 0.01
    loader.set_epoch(0)
    first = {int(r): np.asarray(c) for b in loader for r, c in zip(b.row, b.counts, strict=True)}
    loader.set_epoch(1)
    again = {int(r): np.asarray(c) for b in loader for r, c in zip(b.row, b.counts, strict=True)}
    assert np.mean([(first[row] == again[row]).all() for row in first]) < 0.05


def test_cells_are_downsampled_to_the_target_depth(source):
    loader = loader_of(source, downsampling=DownsamplingConfig(mode="target_depth", target_depth=50), n_basal_samples=0)
    depth = np.concatenate([np.asarray(batch.counts).sum(axis=1) for batch in loader])
    assert abs(depth.mean() - 50) < 2


def test_embeddings_are_returned_as_stored(tmp_path):
    adata = screen(60)
    make_loader = whole_loader(write(adata, tmp_path / "s.h5ad"), output_space="embedding", embedding_key="X_pca")
    source, loader = make_loader.source, make_loader()
    for batch in loader:
        names = list(source.obs_names(np.asarray(batch.row)))
        np.testing.assert_array_equal(batch.counts, adata[names].obsm["X_pca"])
        controls = list(source.obs_names(np.asarray(batch.control_row).ravel()))
        np.testing.assert_array_equal(np.asarray(batch.controls).reshape(16, 3), adata[controls].obsm["X_pca"])
    assert len(np.unique(np.concatenate([np.asarray(b.control_row).ravel() for b in loader]))) > 8
    for name, value in {
        "layout": "csr", "target_sum": 1.0, "genes": ["gene1"], "downsampling": DownsamplingConfig()
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=f"{name}: got .* with output_space='embedding'"):
            make_loader(**{name: value})


NEEDS_COUNTS = {"downsampling": DownsamplingConfig(fraction=0.5), "target_sum": 1e4}


@pytest.mark.parametrize("option", NEEDS_COUNTS)
def test_only_counts_can_be_downsampled_or_normalised(tmp_path, option):
    make_loader = whole_loader(write(screen(60), tmp_path / "s.h5ad"), layer="lognorm")
    with pytest.raises(NotCountsError, match=rf"{option}: got layers/lognorm, which holds .* not counts .*layer="):
        make_loader(**{option: NEEDS_COUNTS[option]})
    assert make_loader().width == make_loader.source.get_n_genes()


@pytest.mark.parametrize("value", [0.5, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("option", NEEDS_COUNTS)
def test_a_single_value_that_is_not_a_count_is_enough(tmp_path, option, value):
    adata = screen(60, lean=True)
    values = counts(60, 17).toarray().astype("f4")
    values[59, 16] = value
    adata.X = sparse.csr_matrix(values)
    make_loader = whole_loader(write(adata, tmp_path / "s.h5ad"))
    with pytest.raises(NotCountsError, match=f"{option}: got X, which holds values that are not counts"):
        make_loader(**{option: NEEDS_COUNTS[option]})


def test_genes_are_selected_while_reading_unless_reads_are_dropped_first(source):
    genes = tuple(source.var.index[[5, 2]])
    plan = MatrixPlan.from_config(source, LoaderConfig(genes=genes, target_sum=10.0))
    assert (plan.n_features, plan.columns.n_columns, plan.transform.columns) == (2, 2, None)
    assert plan.transform.target_sum == 10.0
    thinned = MatrixPlan.from_config(source, LoaderConfig(genes=genes, downsampling=DownsamplingConfig(fraction=0.5)))
    assert (thinned.n_features, thinned.columns, thinned.transform.columns.n_columns) == (2, None, 2)
    assert thinned.transform.fraction == 0.5
    all_genes = MatrixPlan.from_config(source, LoaderConfig())
    assert (all_genes.n_features, all_genes.columns, all_genes.transform.columns) == (200, None, None)
