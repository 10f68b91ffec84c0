"""Cell statistics collected during conversion equal those computed from the store."""

import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert.errors import ConfigError
from lazypert.store.sharded_array import ShardedArray
from lazypert.store.store import Store
from tests.support.screens import CONTROL, make_screen, write_screen
from tests.support.stores import (
    ROLES,
    read_store,
    small_blocks,
    small_grids,
)

GENES = ["A", "B", "C", "D", "E", "x"]


def random_screen(seed, n=200, *, floats=False):
    rng = np.random.default_rng(seed)

    def pick(*values):
        return np.array(values, dtype=object)[rng.integers(0, len(values), n)].tolist()

    obs = {
        "perturbation": pick(CONTROL, "A", "B", "A+B", "nogene", None),
        "cell_type": pick("K562", "A549", None),
        "batch": pick("b1", "b2"),
    }
    counts = rng.poisson(0.8, (n, len(GENES))).astype("f4")
    counts[::9] = 0
    names = [f"ENSG{j}" for j in range(len(GENES))]
    return make_screen(obs, counts / 3 if floats else counts, genes=names, var={"symbol": GENES})


@pytest.fixture(scope="module", params=["grouped", "source", "floats", "one_shard"])
def stored(request, tmp_path_factory):
    order = "source" if request.param == "source" else "grouped"
    folder = tmp_path_factory.mktemp("stored")
    path = write_screen(random_screen(3, floats=request.param == "floats"), folder / "a.h5ad")
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "one_shard":
            small_grids(patch)  # rows span shards, and some shards hold only parts of one row
            small_blocks(patch, 300)
        return lp.convert(path, folder / "a.zarr", order=order, **ROLES)


def test_totals_and_genes_detected_equal_the_matrix(stored):
    dense, stats = read_store(stored).X.toarray().astype("f8"), Store(stored).cell_stats
    np.testing.assert_allclose(stats.total.read(0, 200), dense.sum(axis=1), rtol=1e-12)
    np.testing.assert_array_equal(stats.n_genes.read(0, 200), (dense > 0).sum(axis=1))
    ds = lp.open(stored)
    np.testing.assert_array_equal(ds.total_counts.values, stats.total.read(0, 200))
    np.testing.assert_array_equal(ds.n_genes_by_counts.values, stats.n_genes.read(0, 200))


def test_own_targets_equal_the_matrix(stored):
    adata, stats = read_store(stored), Store(stored).cell_stats
    assert stats.gene_col == "symbol", "the perturbations are named after this column, not the index"
    dense = adata.X.toarray()
    expected = [
        dense[i, GENES.index(label)] if label in GENES else np.nan
        for i, label in enumerate(adata.obs["perturbation"].astype(object))
    ]
    np.testing.assert_array_equal(stats.own_target.read(0, 200), expected)
    labels = Store(stored).groups.labels["perturbation"].tolist()
    assert dict(zip(labels, stats.target.tolist(), strict=True)) == {
        "A": 0, "B": 1, "A+B": -1, "nogene": -1, CONTROL: -1,
    }  # fmt: skip


def test_control_sums_equal_the_matrix(stored):
    adata, store = read_store(stored), Store(stored)
    dense, stats = adata.X.toarray().astype("f8"), store.cell_stats
    keys = adata.obs[["cell_type", "batch"]].astype(object).where(adata.obs.notna(), None).apply(tuple, axis=1)
    is_control = (adata.obs["perturbation"] == CONTROL).to_numpy()
    assert len(stats.control_row) == keys[is_control].nunique()
    for row, sums in zip(stats.control_row, stats.control_sum, strict=True):
        cells = is_control & (keys == keys.iloc[row]).to_numpy()
        for label, target, total in zip(store.groups.labels["perturbation"], stats.target, sums, strict=True):
            expected = dense[cells, target].sum() if target >= 0 else 0
            assert total == pytest.approx(expected, rel=1e-12), label


def record_reads(monkeypatch):
    """Paths of the arrays that are read from now on."""
    gather, paths = ShardedArray.gather, []
    monkeypatch.setattr(ShardedArray, "gather", lambda self, *args: [paths.append(self.path), gather(self, *args)])
    return paths


@pytest.mark.parametrize("match", ["all", "cell_type", "batch"])
def test_knockdown_of_a_fresh_store_reads_no_matrix(stored, monkeypatch, match):
    options = {"residual_expression": 1.0, "cell_residual_expression": 1.0, "min_cells": 1, "control_match": match}
    paths = record_reads(monkeypatch)
    from_stats = lp.open(stored).pert.knockdown(var_gene_col="symbol", **options)
    assert paths
    assert not [path for path in paths if path.startswith("X/")]
    monkeypatch.setattr(Store, "has_cell_stats", False)
    from_matrix = lp.open(stored).pert.knockdown(var_gene_col="symbol", **options)
    assert [path for path in paths if path.startswith("X/")]
    np.testing.assert_array_equal(from_stats.mask, from_matrix.mask)
    assert from_stats.table.drop(columns="reason").equals(from_matrix.table.drop(columns="reason")) or np.allclose(
        from_stats.table[["control_mean", "residual_expression"]],
        from_matrix.table[["control_mean", "residual_expression"]],
        rtol=1e-12,
        equal_nan=True,
    )


def test_knockdown_without_any_target_reads_no_matrix(stored, monkeypatch):
    paths = record_reads(monkeypatch)
    with pytest.raises(ConfigError, match=r"0 of 4 targets .*var\['symbol'\] has 2 of them"):
        lp.open(stored).pert.knockdown(min_cells=1)  # looks in the var index, which names no perturbation
    assert not [path for path in paths if path.startswith("X/")]


def test_a_selection_of_cells_does_not_use_the_stored_statistics(stored):
    ds = lp.open(stored)
    selected = ds.isel(cell=np.flatnonzero(ds.batch.values == "b1"))
    options = {"residual_expression": 1.0, "cell_residual_expression": 1.0, "min_cells": 1, "var_gene_col": "symbol"}
    table = selected.pert.knockdown(**options).table.set_index("perturbation")
    adata = read_store(stored)
    adata = adata[(adata.obs["batch"] == "b1").to_numpy()]
    own = adata.X.toarray().astype("f8")[:, 0]
    labels = adata.obs["perturbation"].astype(object)
    assert table.loc["A", "control_mean"] == pytest.approx(own[(labels == CONTROL).to_numpy()].mean(), rel=1e-12)


def test_knockdown_refuses_cells_that_occur_twice(tmp_path):
    obs = {"perturbation": ["g0", "ctrl", "ctrl"] * 10, "cell_type": ["T"] * 30}
    path = write_screen(make_screen(obs), tmp_path / "a.h5ad")
    store = lp.convert(
        path, tmp_path / "a.zarr", pert_col="perturbation", control_pert="ctrl", cell_type_col="cell_type"
    )
    ds = lp.open(store)
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="more than once"):
        ds.isel(cell=np.sort(rng.integers(0, 30, 30))).pert.knockdown(min_cells=1)
    mixed = ds.isel(cell=rng.permutation(30)).pert.knockdown(min_cells=1).table
    pd.testing.assert_frame_equal(mixed, ds.pert.knockdown(min_cells=1).table)
