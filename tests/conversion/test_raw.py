"""Counts in AnnData's ``raw``: as a store's X, and read from a store that keeps ``raw``."""

from dataclasses import replace

import anndata
import numpy as np
import pytest

import lazypert as lp
from lazypert import KnockdownFilterConfig, OnTargetKnockdownFilter, PerturbationAnnDataSource, PerturbationConcatSource
from lazypert.errors import ColumnNotFoundError
from lazypert.store.store import Store
from tests.support.stores import ROLES, read_store, screen, source_row, write

GENES = [f"gene{j}" for j in range(12)]


def with_raw(*, same_genes=False, seed=0):
    """Screen whose X is normalised and has some genes of raw, in another order; perturbations are genes of raw."""
    raw = screen(60, seed=seed, genes=GENES, lean=True)
    labels = np.array(["NT", "gene1", "gene11"])[np.arange(60) % 3]
    raw.obs["perturbation"], raw.obs["cell_type"], raw.obs["batch"] = labels, "T", "b"
    raw.var["in_raw"] = np.arange(12)
    adata = raw.copy()
    adata.raw = raw.copy()
    adata.X = adata.X.astype("f4") * 0.5
    adata.layers["half"] = adata.X.copy()
    del adata.var["in_raw"]
    adata.var["is_variable"] = np.arange(12) % 2 == 0
    return adata if same_genes else adata[:, ["gene5", "gene1", "gene0"]].copy()


def convert(tmp_path, adata, name="s", **options):
    path = write(adata, tmp_path / f"{name}.h5ad")
    return lp.convert(path, tmp_path / f"{name}.zarr", **{**ROLES, "control_pert": "NT", **options})


def source_of(store, **options):
    return PerturbationAnnDataSource(lp.PerturbationSourceConfig(file_path=store, control_pert="NT", **options))


@pytest.mark.parametrize("name", ["raw", "raw.X", "raw/X"])
def test_raw_becomes_X_with_its_own_genes(tmp_path, name):
    adata = with_raw()
    store = convert(tmp_path, adata, layer=name)
    result, rows = read_store(store), source_row(store)
    assert list(result.var_names) == GENES
    assert result.var["in_raw"].tolist() == list(range(12))
    np.testing.assert_array_equal(result.X.toarray(), adata.raw.X.toarray()[rows])
    assert result.raw is None
    assert Store(store).matrices == ("X",)
    notes = "\n".join(Store(store).attrs["warnings"])
    assert "X was not copied: raw becomes X" in notes
    assert "layers/half was not copied" in notes


def test_X_and_layers_stay_where_raw_has_the_same_genes(tmp_path):
    adata = with_raw(same_genes=True)
    store = convert(tmp_path, adata, layer="raw")
    result, rows = read_store(store), source_row(store)
    np.testing.assert_array_equal(result.X.toarray(), adata.raw.X.toarray()[rows])
    np.testing.assert_array_equal(result.layers["X"].toarray(), adata.X.toarray()[rows])
    np.testing.assert_array_equal(result.layers["half"].toarray(), adata.layers["half"].toarray()[rows])
    assert {"in_raw", "is_variable"} <= set(result.var.columns)
    assert not Store(store).attrs["warnings"]


def test_raw_of_several_files_is_aligned_by_its_genes(tmp_path):
    screens = [with_raw(seed=0), with_raw(seed=1)]
    few = screens[1].raw.to_adata()[:, GENES[::-2]]
    screens[1].raw = anndata.AnnData(few.X, screens[1].obs, few.var)
    paths = [write(adata, tmp_path / f"{i}.h5ad") for i, adata in enumerate(screens)]
    store = lp.convert(paths, tmp_path / "both.zarr", layer="raw", **(ROLES | {"control_pert": "NT"}))
    result, rows = read_store(store), source_row(store)
    shared = [gene for gene in GENES if gene in set(GENES[::-2])]
    assert list(result.var_names) == shared
    expected = np.concatenate([a.raw.to_adata()[:, shared].X.toarray() for a in screens])
    np.testing.assert_array_equal(result.X.toarray(), expected[rows])


def test_a_file_without_raw_lists_what_it_has(tmp_path):
    adata = with_raw()
    adata.raw = None
    with pytest.raises(ColumnNotFoundError, match=r"layer: got 'raw', expected a layer .*'half'"):
        convert(tmp_path, adata, layer="raw")
    with pytest.raises(ColumnNotFoundError, match=r"layer: got 'rwa'.*'raw'"):
        convert(tmp_path, with_raw(), layer="rwa")


def test_a_layer_called_raw_comes_first(tmp_path):
    adata = with_raw(same_genes=True)
    adata.layers["raw"] = adata.X * 4
    store = Store(convert(tmp_path, adata))
    assert store.matrix("raw").name == "layers/raw"
    assert store.matrix("raw/X").name == "raw/X"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Store that keeps raw, and its cells in the store's order."""
    folder, adata = tmp_path_factory.mktemp("raw"), with_raw()
    store = convert(folder, adata)
    return store, adata[source_row(store)]


def test_genes_follow_the_matrix(kept):
    store, adata = kept
    source = source_of(store, layer="raw")
    assert source.get_gene_names() == GENES
    assert source.n_features == 12
    assert repr(source).endswith("60 cells x 12 genes)")
    np.testing.assert_array_equal(source.read_features(np.arange(60)), adata.raw.X.toarray())
    assert source_of(store).get_gene_names() == list(adata.var_names)
    with pytest.raises(ColumnNotFoundError, match="hvg_col: got 'is_variable'"):
        source_of(store, layer="raw", hvg_col="is_variable")


def test_the_loader_selects_genes_of_raw(kept):
    store, adata = kept
    config = lp.PerturbationPipelineConfig(sentence_size=4, control_pert="NT", layer="raw")
    loader = (
        lp.PerturbationPipeline(config).setup([store]).loader("train", genes=["gene11", "gene2"], extras=("barcode",))
    )
    expected = adata.raw.to_adata().to_df()[["gene11", "gene2"]]
    for batch in loader:
        np.testing.assert_array_equal(np.asarray(batch.counts), expected.loc[batch.barcodes()])


def test_knockdown_finds_targets_that_only_raw_has(kept):
    store, adata = kept
    source = source_of(store)
    assert (
        OnTargetKnockdownFilter().run(source).table.set_index("perturbation").reason["gene11"]
        == "target gene not measured"
    )
    table = OnTargetKnockdownFilter(KnockdownFilterConfig(layer="raw")).run(source).table.set_index("perturbation")
    values = adata.raw.to_adata().to_df()["gene11"]
    labels = adata.obs["perturbation"].to_numpy()
    assert table.control_mean["gene11"] == pytest.approx(values[labels == "NT"].mean())
    assert table.perturbed_mean["gene11"] == pytest.approx(values[labels == "gene11"].mean())


def test_several_screens_align_the_genes_of_each_layer(kept, tmp_path):
    other = convert(tmp_path, with_raw(seed=3)[:, ["gene0", "gene5"]].copy(), "other")
    both = PerturbationConcatSource([source_of(kept[0]), source_of(other)])
    assert both.get_gene_names() == ["gene5", "gene0"]
    assert list(both.layer_var("raw").index) == GENES
    alone = OnTargetKnockdownFilter(KnockdownFilterConfig(layer="raw")).run(source_of(kept[0])).table
    table = OnTargetKnockdownFilter(KnockdownFilterConfig(layer="raw")).run(both).table
    assert table.perturbation.tolist() == alone.perturbation.tolist()
    assert not table.control_mean.isna().any()
    raw = PerturbationConcatSource([replace_layer(source, "raw") for source in both.sources])
    assert raw.get_gene_names() == GENES
    assert both.segments("raw")[1].matrix.name == "raw/X"


def replace_layer(source, layer):
    return PerturbationAnnDataSource(replace(source.config, layer=layer))


def test_the_dataset_shows_raw_lazily(kept):
    store, adata = kept
    with lp.open(store) as ds:
        assert ds["raw"].dims == ("cell", "raw_gene")
        assert ds["raw"].chunks is not None
        assert ds["raw_gene"].values.tolist() == GENES
        np.testing.assert_array_equal(ds["raw"].values, adata.raw.X.toarray())
        np.testing.assert_array_equal(ds["raw"].sel(raw_gene="gene11").values, adata.raw.X.toarray()[:, 11])
        table = ds.pert.knockdown(layer="raw").table
        assert table.perturbed_mean.notna().all()
