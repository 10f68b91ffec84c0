"""A store's tables hold its groups, and cell statistics whatever the screen."""

import anndata
import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert.errors import ConfigError
from lazypert.store.format import TABLES
from lazypert.store.store import Store
from tests.support.stores import (
    ROLES,
    assert_same,
    converted,
    read_store,
    screen,
    write,
)


def test_the_run_table_covers_every_group(tmp_path):
    _, store = converted(tmp_path, screen(lean=True))
    opened = Store(store)
    obs = read_store(store).obs
    start, stop = opened.read_array(f"{TABLES}/runs/start"), opened.read_array(f"{TABLES}/runs/stop")
    for a, b in zip(start, stop, strict=True):
        assert all(obs.iloc[a:b][c].nunique() == 1 for c in ("perturbation", "cell_type"))
    table = lp.open(store).pert.table()
    naive = obs.groupby(["cell_type", "perturbation"], observed=True).size()
    assert dict(zip(zip(table["cell_type"], table["perturbation"], strict=True), table["n_cells"], strict=True)) == (
        naive.to_dict()
    )


def test_cells_without_a_label_are_in_no_group(tmp_path):
    adata = screen(lean=True)
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(object).where(np.arange(90) % 5 > 0, None)
    adata.obs["perturbation"] = pd.Categorical(adata.obs["perturbation"])
    path, store = converted(tmp_path, adata)
    assert_same(store, anndata.read_h5ad(path))
    assert Store(store).groups.n_unlabelled == 18
    assert lp.open(store).pert.table()["n_cells"].sum() == 72


def test_a_screen_without_any_label_is_converted(tmp_path):
    adata = screen(lean=True)
    adata.obs["perturbation"] = pd.Categorical([None] * adata.n_obs, categories=["never"])
    path = write(adata, tmp_path / "a.h5ad")
    store = lp.convert(path, tmp_path / "s.zarr", pert_col="perturbation", cell_type_col="cell_type")
    assert Store(store).attrs["summary"]["n_unlabelled"] == adata.n_obs


def test_a_screen_without_genes_or_controls_has_cell_statistics(tmp_path):
    path = write(screen(lean=True)[:, :0].copy(), tmp_path / "a.h5ad")
    store = lp.convert(path, tmp_path / "s.zarr", pert_col="perturbation")
    assert Store(store).cell_stats.control_sum.shape == (0, 4)
    store = lp.convert(path, tmp_path / "s.zarr", overwrite=True, **ROLES)
    with pytest.raises(ConfigError, match=r"0 of \d targets are in the var index"):
        lp.open(store).pert.knockdown()
