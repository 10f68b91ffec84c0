"""Other libraries read a store as it is, and real screens survive conversion."""

import warnings
from importlib.metadata import version

import anndata
import numpy as np
import pytest

import lazypert as lp
from lazypert.errors import LazypertError
from lazypert.store.store import Store
from tests.support.data import DATA
from tests.support.s3_server import S3Server
from tests.support.stores import ROLES, assert_same, converted, dense, read_store, screen, small_grids

SCREENS = {
    "schraivogel2020_tapseq_k562_counts": ROLES,
    "perturbench_devel_asis": {"pert_col": "condition", "control_pert": "control", "cell_type_col": "cell_type"},
    "norman2019_mcfaline2023_perturbench_counts": {
        "pert_col": "condition",
        "control_pert": "control",
        "cell_type_col": "cell_type",
    },
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        small_grids(patch, 256, 1024)
        return converted(tmp_path_factory.mktemp("compat"), screen(400, 60))[1]


def test_anndata_reads_lazily(made):
    lazy = anndata.experimental.read_lazy(made)
    expected = read_store(made)
    np.testing.assert_array_equal(dense(lazy.X[10:50].compute()), expected.X[10:50].toarray())
    assert lazy.obs["perturbation"].to_numpy().tolist() == expected.obs["perturbation"].tolist()
    assert list(lazy.var_names) == list(expected.var_names)
    memory = lazy[5:60].to_memory()
    np.testing.assert_array_equal(dense(memory.X), expected.X[5:60].toarray())


def test_annbatch_reads_a_store(made):
    annbatch = pytest.importorskip("annbatch")
    import zarr

    group = zarr.open_group(made, mode="r")
    expected = read_store(made)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = annbatch.Loader(
            chunk_size=16, preload_nchunks=4, batch_size=32, shuffle=False, preload_to_gpu=False, return_index=True
        )
        loader.add_dataset(anndata.io.sparse_dataset(group["X"]), obs=expected.obs[["perturbation"]])
        rows, found, labels = [], [], []
        for batch in loader:
            rows.append(np.asarray(batch["index"]))
            found.append(dense(batch["X"]))
            labels += batch["obs"]["perturbation"].tolist()
    rows = np.concatenate(rows)
    np.testing.assert_array_equal(np.sort(rows), np.arange(400))
    assert {part.dtype for part in found} == {np.dtype("f4")}
    np.testing.assert_array_equal(np.concatenate(found), expected.X.toarray()[rows])
    assert labels == expected.obs["perturbation"].iloc[rows].tolist()


@pytest.mark.parametrize("name", SCREENS)
def test_real_screens_are_unchanged_by_conversion(tmp_path, name):
    path = DATA / "screens" / f"{name}.h5ad"
    if not path.exists():
        pytest.skip(f"no {name}.h5ad: set LAZYPERT_DATA to the folder of real screens")
    store = lp.convert(path, tmp_path / "s.zarr", **SCREENS[name])
    source = anndata.read_h5ad(path)
    for group in ("uns", "obsp", "varm", "varp"):
        getattr(source, group).clear()
    assert_same(store, source)
    assert lp.verify(store) > 10
    ds, role = lp.open(store), SCREENS[name]
    control = source.obs[role["pert_col"]] == role["control_pert"]
    assert ds.pert.select(controls=True).sizes["cell"] == control.sum()
    assert float(ds.X.sum()) == pytest.approx(float(source.X.sum()), rel=1e-6)
    if "schraivogel" in name:
        assert Store(store).matrix().dtype == np.uint16
        guides = dense(source.obsm["guide_counts"])
        np.testing.assert_array_equal(np.sort(ds.guide_counts.sum("guide_counts_dim").values), np.sort(guides.sum(1)))


ENCODINGS = sorted((DATA / "encodings").glob("*.h5ad"))


@pytest.mark.slow
@pytest.mark.parametrize("path", ENCODINGS or [None], ids=lambda p: p.stem if p else "absent")
def test_files_of_many_tools_are_converted_or_refused_with_a_clear_error(tmp_path, path):
    if path is None:
        pytest.skip("no encodings: set LAZYPERT_DATA to the folder of encoded files")
    try:
        store = lp.convert(path, tmp_path / "s.zarr", order="source")
    except LazypertError as error:
        refused = ("AnnData before 0.7", "has no X", "expected numbers", "cannot be the name")
        assert any(text in str(error) for text in refused), error  # noqa: PT017 - both outcomes are correct
        assert list(tmp_path.iterdir()) == []
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = anndata.read_h5ad(path)
    found = read_store(store)
    np.testing.assert_array_equal(dense(found.X), dense(source.X))
    assert list(found.obs_names) == list(source.obs_names)
    assert list(found.var_names) == list(source.var_names)
    assert list(found.obs.columns) == list(source.obs.columns)
    assert list(found.var.columns) == list(source.var.columns)
    for name in source.obs:
        ours, theirs = found.obs[name], source.obs[name]
        assert ours.isna().tolist() == theirs.isna().tolist()
        assert ours[theirs.notna().to_numpy()].tolist() == theirs[theirs.notna()].tolist()
    lp.verify(store)


@pytest.mark.slow
def test_a_store_on_s3_equals_the_local_one(made, monkeypatch):
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    server = S3Server()
    try:
        server.clear()
        files = s3fs.S3FileSystem(**server.options, use_listings_cache=False)
        files.put(str(made), "bucket/screen.zarr", recursive=True)
        url = "s3://bucket/screen.zarr"
        ds, local = lp.open(url, storage_options=server.options), lp.open(made)
        np.testing.assert_array_equal(ds.X.values, local.X.values)
        assert ds.cell_name.values.tolist() == local.cell_name.values.tolist()
        np.testing.assert_array_equal(ds.X_pca.values, local.X_pca.values)
        selection = ds.pert.select(perturbation="TP53")
        np.testing.assert_array_equal(selection.X.values, local.pert.select(perturbation="TP53").X.values)
        assert selection.pert.table().equals(local.pert.select(perturbation="TP53").pert.table())
        files.rm("bucket/screen.zarr/X/data/c/0")
        with pytest.raises(LazypertError, match="X/data/c/0"):
            lp.open(url, storage_options=server.options).X[:1].compute()
    finally:
        server.stop()


def test_the_installed_zarr_is_supported():
    assert tuple(int(n) for n in version("zarr").split(".")[:2]) >= (3, 1)


def test_names_that_differ_by_case_are_read_from_consolidated_metadata(tmp_path):
    adata = screen(60, 20, lean=True)
    adata.obs["Study"], adata.obs["study"], adata.obs["STUDY"] = "one", range(60), 1.5
    adata.obs["study_id"] = adata.obs["Study_ID"] = "s"
    adata.obs[["Study", "study_id", "Study_ID"]] = adata.obs[["Study", "study_id", "Study_ID"]].astype("category")
    adata.var["Gene"], adata.var["gene"] = "x", "y"
    adata.layers["Counts"], adata.layers["counts"] = adata.X * 3, adata.X * 2
    assert_same(converted(tmp_path, adata)[1], adata)


def test_a_store_with_names_that_differ_by_case_is_opened_and_converted_again(tmp_path):
    adata = screen(60, 20, lean=True)
    adata.layers["Counts"], adata.layers["counts"] = adata.X * 3, adata.X * 2
    store = converted(tmp_path, adata)[1]
    again = lp.convert(store, tmp_path / "again.zarr", **ROLES)
    with lp.open(again) as ds:
        np.testing.assert_array_equal(ds["Counts"].values, 3 * ds["X"].values)
        np.testing.assert_array_equal(ds["counts"].values, 2 * ds["X"].values)


def test_consolidated_metadata_are_those_of_the_nodes(made):
    import zarr

    root = zarr.open_group(made, mode="r")
    apart = zarr.open_group(made, mode="r", use_consolidated=False)
    nodes, expected = dict(root.members(max_depth=None)), dict(apart.members(max_depth=None))
    assert nodes.keys() == expected.keys()
    for path, node in expected.items():
        found = nodes[path].metadata.to_dict() | {"consolidated_metadata": None}
        assert found == node.metadata.to_dict() | {"consolidated_metadata": None}, path
