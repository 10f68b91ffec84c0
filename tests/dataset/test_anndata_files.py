"""AnnData objects and files of a Dataset equal AnnData's own of the same selection."""

import anndata
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import sparse

import lazypert as lp
from lazypert.dataset import anndata_parts
from lazypert.errors import ColumnNotFoundError, ConfigError, StoreDamagedError, StoreExistsError
from tests.support.stores import copied, dense, layers_of, leftovers

CELLS, GENES = np.r_[80:20:-3, 5, 7], np.array([16, 0, 4])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(anndata_parts, "_BLOCK_BYTES", 17 * 4 * 8)


def assert_equal(result, expected):
    for table in ("obs", "var"):
        left, right = getattr(result, table), getattr(expected, table)
        assert left.dtypes.to_dict() == right.dtypes.to_dict()
        pd.testing.assert_frame_equal(left, pd.DataFrame(right), check_names=False, check_index_type=False)
    np.testing.assert_array_equal(dense(result.X), dense(expected.X))
    assert layers_of(result) == layers_of(expected)
    assert set(result.obsm) == set(expected.obsm)
    for name in layers_of(expected):
        np.testing.assert_array_equal(dense(result.layers[name]), dense(expected.layers[name]))
        assert result.layers[name].dtype == expected.layers[name].dtype
    for name in expected.obsm:
        np.testing.assert_array_equal(dense(result.obsm[name]), dense(expected.obsm[name]))
        assert sparse.issparse(result.obsm[name]) == sparse.issparse(expected.obsm[name])


SELECTIONS = {
    "all": (slice(None), slice(None)),
    "cells": (CELLS, slice(None)),
    "both": (CELLS, GENES),
    "slices": (slice(60, 4, -1), slice(2, 9)),
    "no-cell": (slice(0, 0), slice(None)),
}


@pytest.mark.parametrize("engine", ["open", "backend", "computed"])
@pytest.mark.parametrize("name", SELECTIONS)
def test_selections_equal_those_of_anndata(made, expected, name, engine):
    cells, genes = SELECTIONS[name]
    ds = xr.open_dataset(made, engine="lazypert") if engine == "backend" else lp.open(made)
    ds = ds.isel(cell=cells, gene=genes)
    assert_equal((ds.compute() if engine == "computed" else ds).pert.to_anndata(), expected[cells][:, genes])


@pytest.mark.parametrize("name", SELECTIONS)
def test_files_equal_those_of_anndata(made, expected, tmp_path, name):
    cells, genes = SELECTIONS[name]
    ds = lp.open(made).isel(cell=cells, gene=genes)
    path = ds.pert.write_h5ad(tmp_path / "ours.h5ad", compression="gzip")
    with anndata.settings.override(allow_write_nullable_strings=True):
        expected[cells][:, genes].copy().write_h5ad(tmp_path / "theirs.h5ad")
    ours, theirs = anndata.read_h5ad(path), anndata.read_h5ad(tmp_path / "theirs.h5ad")
    assert_equal(ours, theirs)
    assert ours.X.has_canonical_format
    assert ours.X.indices.dtype == ours.X.indptr.dtype
    assert leftovers(tmp_path, "ours.h5ad", "theirs.h5ad") == []


def test_a_file_can_be_converted_again(made, expected, tmp_path):
    path = lp.open(made).isel(cell=CELLS).pert.write_h5ad(tmp_path / "part.h5ad")
    again = lp.open(lp.convert(path, tmp_path / "part.zarr", order="source"))
    np.testing.assert_array_equal(again.X.values, expected.X[CELLS].toarray())
    assert again.cell_name.values.tolist() == expected.obs_names[CELLS].tolist()


def test_what_was_assigned_is_exported(made, expected):
    ds = lp.open(made).isel(cell=CELLS, gene=GENES)
    changed = ds.assign(X=np.log1p(ds.X), twice=ds.X * 2, score=("cell", np.arange(len(CELLS)))).rename(batch="plate")
    changed = (
        changed.assign_coords(u1=("cell", ds.u1.values.astype("i4") + 1))
        .drop_vars(["text", "lognorm"])
        .transpose("gene", ...)
    )
    adata, own = changed.pert.to_anndata(), expected[CELLS][:, GENES]
    np.testing.assert_allclose(adata.X.toarray(), np.log1p(own.X.toarray()))
    np.testing.assert_array_equal(adata.layers["twice"].toarray(), own.X.toarray() * 2)
    assert layers_of(adata) == {"twice"}
    assert adata.obs["score"].tolist() == list(range(len(CELLS)))
    assert adata.obs["plate"].tolist() == own.obs["batch"].tolist()
    assert adata.obs["u1"].tolist() == (own.obs["u1"].astype("i4") + 1).tolist()
    assert not {"batch", "text", "batch_code", "total_counts"} & set(adata.obs)
    assert ds.pert.to_anndata(dtype="f8").X.dtype == "f8"


def test_obs_equals_anndata(made, expected):
    ds = lp.open(made)
    for rows in (slice(None), CELLS, np.array([3, 3, 1]), slice(0, 0)):
        pd.testing.assert_frame_equal(
            ds.isel(cell=rows).pert.obs(), expected.obs.iloc[rows], check_index_type=False, check_names=False
        )
    some = ds.pert.select(perturbation="TP53").pert.obs(["ordered", "maybe_int"])
    pd.testing.assert_frame_equal(
        some,
        expected.obs.loc[expected.obs.perturbation == "TP53", ["ordered", "maybe_int"]],
        check_index_type=False,
        check_names=False,
    )
    assert list(ds.pert.obs("batch")) == ["batch"]
    with pytest.raises(ColumnNotFoundError, match="Did you mean 'batch'"):
        ds.pert.obs("bacth")


def test_what_anndata_has_no_place_for_raises(made):
    ds = lp.open(made)
    with pytest.raises(ConfigError, match=r"means: got dimensions \('gene', 'k'\).*drop_vars\('means'\)"):
        ds.assign(means=(("gene", "k"), np.ones((17, 2)))).pert.to_anndata()
    with pytest.raises(ConfigError, match=r"expected 'cell' and 'gene'.*with a list"):
        ds.sel(gene="gene3").pert.to_anndata()


def test_a_file_is_complete_or_not_there(made, tmp_path):
    broken = copied(made, tmp_path / "broken.zarr")
    for path in (broken / "X/data/c").iterdir():
        path.unlink()
    ds, target = lp.open(broken), tmp_path / "a.h5ad"
    with pytest.raises(StoreDamagedError):
        ds.pert.write_h5ad(target)
    assert leftovers(tmp_path, "broken.zarr") == []
    target.write_text("mine")
    with pytest.raises(StoreExistsError, match="overwrite=True"):
        lp.open(made).pert.write_h5ad(target)
    with pytest.raises(StoreDamagedError):
        ds.pert.write_h5ad(target, overwrite=True)
    assert target.read_text() == "mine"
    lp.open(made).pert.write_h5ad(target, overwrite=True)
    assert anndata.read_h5ad(target).shape == (90, 17)
    with pytest.raises(ConfigError, match="existing local folder"):
        lp.open(made).pert.write_h5ad(tmp_path / "no" / "a.h5ad")


def test_raw_is_exported_with_its_genes(tmp_path):
    rng = np.random.default_rng(0)
    raw = anndata.AnnData(
        sparse.csr_matrix(rng.poisson(1.0, (30, 8)).astype("f4")),
        pd.DataFrame({"perturbation": ["A", "ctrl"] * 15}, index=[f"c{i}" for i in range(30)]),
        pd.DataFrame({"symbol": list("abcdefgh")}, index=[f"g{i}" for i in range(8)]),
    )
    adata = raw[:, :3].copy()
    adata.raw = raw
    adata.write_h5ad(tmp_path / "s.h5ad")
    store = lp.convert(tmp_path / "s.h5ad", tmp_path / "s.zarr", pert_col="perturbation", control_pert="ctrl")
    ds = lp.open(store).isel(cell=[4, 29, 0])
    source = adata[ds.cell_name.to_numpy()]
    ds.pert.write_h5ad(tmp_path / "out.h5ad")
    for found in (ds.pert.to_anndata(), anndata.read_h5ad(tmp_path / "out.h5ad")):
        assert found.raw.var_names.tolist() == raw.var_names.tolist()
        assert found.raw.var["symbol"].tolist() == list("abcdefgh")
        np.testing.assert_array_equal(dense(found.raw.X), dense(source.raw.X))
        assert not found.obsm
    some = ds.isel(raw_gene=[2, 0]).pert.to_anndata()
    assert some.raw.var_names.tolist() == ["g2", "g0"]
    np.testing.assert_array_equal(dense(some.raw.X), dense(source.raw.X)[:, [2, 0]])
