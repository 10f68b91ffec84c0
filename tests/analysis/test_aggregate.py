"""Aggregates equal brute force over what AnnData reads, and have the same bits however they are computed."""

import pickle
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import lazypert as lp
from lazypert.analysis import moments
from lazypert.errors import ColumnNotFoundError, ConfigError, NotCountsError, StoreDamagedError
from lazypert.store.sharded_array import ShardedArray
from tests.support.native import hide_native_functions
from tests.support.stores import ROLES, copied, flip, read_store, screen, small_grids, write

ALL = ("n", "sum", "mean", "var", "n_nonzero", "fraction")


def with_gaps(n_obs=150, seed=3):
    """A screen with missing labels, a cell without counts, a gene without counts, and a group of one cell."""
    adata = screen(n_obs, seed=seed)
    labels = adata.obs["perturbation"].astype(object).to_numpy(copy=True)
    labels[:3], labels[5] = None, "only once"
    adata.obs["perturbation"] = pd.Categorical(labels)
    x = adata.X.tolil()
    x[7], x[:, 4] = 0, 0
    x[9, 2] = 1_000
    adata.X = x.tocsr()
    adata.obs["donor"] = pd.Categorical([f"d{i % 3}" for i in range(n_obs)])
    adata.obs["plate"] = np.arange(n_obs) % 4
    return adata


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Stores of one screen in both orders, and compact, in many chunks and shards."""
    folder = tmp_path_factory.mktemp("aggregate")
    path = write(with_gaps(), folder / "screen.h5ad")
    with pytest.MonkeyPatch.context() as patch:
        small_grids(patch)
        return {
            name: lp.convert(path, folder / f"{name}.zarr", **ROLES, **options)
            for name, options in {
                "grouped": {},
                "source": {"order": "source"},
                "compact": {"compression": "compact"},
            }.items()
        }


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Divide even small screens into several tiles and blocks."""
    monkeypatch.setattr(moments, "_TILE_VALUES", 100)
    monkeypatch.setattr(moments, "_BLOCK_BYTES", 17 * 3 * 8 * 4)
    monkeypatch.setattr(moments, "_BLOCK_BYTES_OF_RUNS", 17 * 3 * 8 * 4)


def values_of(adata, of):
    x = adata.X.toarray().astype(float)
    if of in ("cp10k", "log1p"):
        total = x.sum(axis=1, keepdims=True)
        x = np.divide(1e4 * x, total, out=np.zeros_like(x), where=total > 0)
    return np.log1p(x) if of == "log1p" else x


def brute_force(adata, by, of):
    """One row of statistics for each combination of labels that occurs."""
    x = values_of(adata, of)
    obs = adata.obs[list(by)].astype(object).map(lambda label: label if label is None else str(label))
    is_labelled = adata.obs[list(by)].notna().all(axis=1).to_numpy()
    for labels, rows in pd.DataFrame(obs[is_labelled]).groupby(list(by)).indices.items() if by else [((), None)]:
        cells = x[is_labelled][slice(None) if rows is None else rows]
        labels = (labels,) if isinstance(labels, str) else labels
        with np.errstate(invalid="ignore"):
            var = cells.var(axis=0, ddof=1) if len(cells) > 1 else np.full(x.shape[1], np.nan)
        yield (
            labels,
            {
                "n": len(cells),
                "sum": cells.sum(axis=0),
                "mean": cells.mean(axis=0),
                "var": var,
                "n_nonzero": (cells != 0).sum(axis=0),
                "fraction": (cells != 0).mean(axis=0),
            },
        )


@pytest.mark.parametrize("name", ["grouped", "source", pytest.param("compact", marks=pytest.mark.slow)])
@pytest.mark.parametrize("of", ["counts", "log1p", pytest.param("cp10k", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "by",
    [
        (),
        ("perturbation",),
        ("cell_type", "perturbation"),
        ("perturbation", "cell_type", "batch"),
        ("donor",),
        ("plate", "cell_type"),
    ],
    ids="-".join,
)
def test_every_group_equals_brute_force(stores, name, of, by):
    ds, adata = lp.open(stores[name]), read_store(stores[name])
    found = ds.pert.aggregate(by=by, stats=ALL, of=of)
    assert found["var"].chunks is not None
    found = found.compute()
    assert found["mean"].dims == (*by, "gene")
    assert found.gene.values.tolist() == list(adata.var_names)
    n_cells = 0
    for labels, expected in brute_force(adata, by, of):
        one = found.sel(dict(zip(by, labels, strict=True)))
        for stat, values in expected.items():
            np.testing.assert_allclose(one[stat], values, rtol=1e-9, atol=1e-12, err_msg=f"{labels} {stat}")
        n_cells += expected["n"]
    assert int(found.n.sum()) == n_cells
    empty = found.n.values == 0
    assert np.isnan(found["mean"].values[empty]).all()
    assert (found["sum"].values[empty] == 0).all()


def test_groups_without_cells_and_of_one_cell(stores):
    found = lp.open(stores["grouped"]).pert.aggregate(stats=ALL, of="counts").compute()
    once = found.sel(perturbation="only once")
    assert once.n.sum() == 1
    of_one = once.isel(cell_type=int(once.n.argmax()))
    assert np.isnan(of_one["var"]).all()
    assert not np.isnan(of_one["mean"]).any()
    none = once.isel(cell_type=int(once.n.argmin()))
    assert np.isnan(none["mean"]).all()
    assert np.isnan(none["fraction"]).all()
    assert (none["n_nonzero"] == 0).all()


@pytest.mark.parametrize("name", ["grouped", "source"])
def test_selections_of_cells_and_genes(stores, name):
    ds, adata = lp.open(stores[name]), read_store(stores[name])
    rows = np.random.default_rng(0).permutation(150)[:70]
    found = ds.isel(cell=rows).pert.aggregate(by="cell_type", of="log1p", genes=["gene9", "gene2"]).compute()
    assert found.gene.values.tolist() == ["gene9", "gene2"]
    for (label,), expected in brute_force(adata[np.sort(rows)].copy(), ("cell_type",), "log1p"):
        one = found.sel(cell_type=label)
        np.testing.assert_allclose(one["mean"], expected["mean"][[9, 2]], rtol=1e-9)
        np.testing.assert_allclose(one["var"], expected["var"][[9, 2]], rtol=1e-9)


def test_genes_of_the_dataset(stores):
    ds = lp.open(stores["grouped"])
    whole = ds.pert.aggregate(of="cp10k").compute()
    for genes in ([9, 2], slice(3, 8), 5):
        part = ds.isel(gene=genes).pert.aggregate(of="cp10k").compute()
        expected = whole.isel(gene=[genes] if isinstance(genes, int) else genes)
        xr.testing.assert_identical(part, expected)
    assert ds.isel(gene=[1]).pert.aggregate(by=(), genes="gene3").gene.values.tolist() == ["gene3"]


@pytest.mark.parametrize("order", ["grouped", "source"])
def test_as_many_runs_as_cells(tmp_path, order):
    """Codes of runs and of rows have the same length then."""
    adata = screen(40, lean=True)
    adata.obs["perturbation"] = [f"p{i * 7 % 40:02}" for i in range(40)]
    adata.obs["donor"] = [f"d{i % 3}" for i in range(40)]
    options = {**ROLES, "control_pert": "p00", "order": order}
    ds = lp.open(lp.convert(write(adata, tmp_path / "a.h5ad"), tmp_path / "a.zarr", **options))
    found = ds.pert.aggregate(by=("perturbation", "donor"), stats="sum", of="counts").compute()
    for i in range(40):
        one = found["sum"].sel(perturbation=f"p{i * 7 % 40:02}", donor=f"d{i % 3}")
        np.testing.assert_array_equal(one, adata.X[i].toarray()[0])


def test_columns_named_like_parts_of_the_result(tmp_path):
    adata = screen(30, lean=True)
    adata.obs["gene"], adata.obs["mean"] = adata.obs["batch"].astype(str), "same"
    ds = lp.open(lp.convert(write(adata, tmp_path / "a.h5ad"), tmp_path / "a.zarr", **ROLES))
    found = ds.pert.aggregate(by=("gene", "mean"), stats=("n", "mean"), of="counts").compute()
    assert found["mean"].dims == ("obs_gene", "obs_mean", "gene")
    expected = ds.pert.aggregate(by="batch", stats=("n", "mean"), of="counts").compute()
    np.testing.assert_array_equal(found["mean"].values[:, 0], expected["mean"])


def test_nothing_to_aggregate(stores, tmp_path):
    ds = lp.open(stores["grouped"])
    none = ds.isel(cell=[]).pert.aggregate(stats=ALL).compute()
    assert (none.n == 0).all()
    assert np.isnan(none["mean"]).all()
    assert ds.pert.aggregate(by="cell_type", genes=[]).compute()["mean"].shape == (
        ds.pert.groups.labels["cell_type"].size,
        0,
    )
    adata = screen(20, lean=True)
    adata.obs["donor"] = pd.Categorical([None] * 20, categories=["a"])
    unlabelled = lp.open(lp.convert(write(adata, tmp_path / "a.h5ad"), tmp_path / "a.zarr", **ROLES))
    assert unlabelled.pert.aggregate(by=("donor", "batch")).compute()["var"].shape == (0, 3, 17)


def test_too_many_combinations_are_an_error(tmp_path):
    adata = screen(3_200, lean=True)
    adata.obs["barcode"] = [f"b{i}" for i in range(3_200)]
    adata.obs["well"] = [f"w{i}" for i in range(3_200)]
    ds = lp.open(lp.convert(write(adata, tmp_path / "a.h5ad"), tmp_path / "a.zarr", **ROLES))
    with pytest.raises(ConfigError, match=r"3,200 x 3,200 combinations of labels, expected at most 10,000,000\. Group"):
        ds.pert.aggregate(by=("barcode", "well"))


def test_layers_are_taken_as_they_are(stores):
    ds, adata = lp.open(stores["grouped"]), read_store(stores["grouped"])
    found = ds.pert.aggregate(by=(), stats="mean", of="stored", layer="lognorm").compute()
    np.testing.assert_allclose(found["mean"], adata.layers["lognorm"].toarray().mean(axis=0), rtol=1e-12)
    assert found.attrs == {"statistics": "aggregate", "of": "stored", "layer": "lognorm"}
    with pytest.raises(NotCountsError, match="of: got 'log1p', but layers/lognorm holds values that are not counts"):
        ds.pert.aggregate(layer="lognorm")


def bits(found):
    return {name: np.asarray(array).tobytes() for name, array in found.variables.items() if array.dtype.kind in "if"}


@pytest.mark.parametrize("name", ["grouped", "source", "compact"])
def test_results_have_the_same_bits_in_any_way(stores, name, monkeypatch):
    def found(**options):
        ds = lp.open(stores[name])
        return ds.pert.aggregate(by=("perturbation", "cell_type"), stats=ALL, of="log1p", **options)

    expected = bits(found().compute(scheduler="synchronous"))
    assert bits(found().compute(scheduler="threads", num_workers=7)) == expected
    assert bits(pickle.loads(pickle.dumps(found())).compute()) == expected
    for block_bytes in (1, 10**9):
        with monkeypatch.context() as patch:
            patch.setattr(moments, "_BLOCK_BYTES", block_bytes)
            patch.setattr(moments, "_BLOCK_BYTES_OF_RUNS", block_bytes)
            assert bits(found().compute()) == expected
    for few_tiles, many_blocks in ((0, 10**9), (10**9, 1)):  # a task for each tile, or for each block
        with monkeypatch.context() as patch:
            patch.setattr(moments, "_FEW_TILES", few_tiles)
            patch.setattr(moments, "_MANY_BLOCKS", many_blocks)
            assert bits(found().compute()) == expected
    for size in (1, 128):
        with monkeypatch.context() as patch:
            patch.setattr(ShardedArray, "MAX_OPEN_FILES", size)
            assert bits(found().compute()) == expected
    with monkeypatch.context() as patch:
        hide_native_functions(patch)
        assert bits(found().compute(scheduler="synchronous")) == expected
    one = lp.open(stores[name]).pert.select(perturbation="KRAS").pert.aggregate(stats=ALL, of="log1p").compute()
    whole = found().compute().transpose("cell_type", "perturbation", "gene")
    np.testing.assert_array_equal(one["var"].sel(perturbation="KRAS"), whole["var"].sel(perturbation="KRAS"))


@pytest.mark.slow
def test_processes_give_the_same_bits(stores):
    lazy = lp.open(stores["grouped"]).pert.aggregate(stats=ALL)
    assert bits(lazy.compute(scheduler="processes", num_workers=2)) == bits(lazy.compute())


def test_results_are_written_to_zarr_block_by_block(stores, tmp_path):
    lazy = lp.open(stores["grouped"]).pert.aggregate()
    lazy.to_zarr(tmp_path / "means.zarr", zarr_format=3, consolidated=False)
    read = xr.open_zarr(tmp_path / "means.zarr", consolidated=False)
    np.testing.assert_array_equal(read["var"], lazy["var"].compute())
    assert read["perturbation"].values.tolist() == lazy.perturbation.values.tolist()


def test_damage_is_an_error(stores, tmp_path):
    for array in ("indices", "data"):
        broken = copied(stores["grouped"], tmp_path / f"{array}.zarr")
        flip(broken / f"X/{array}/c/0", 8 * 30)
        with pytest.raises(StoreDamagedError, match=f"X/{array}/c/0: the checksum of chunk"):
            lp.open(broken).pert.aggregate().compute()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stats": "median"}, ConfigError, "stats: got 'median', expected one of 'n', 'sum'"),
        ({"stats": ()}, ConfigError, r"stats: got \[\], expected at least one"),
        ({"of": "tpm"}, ConfigError, "of: got 'tpm', expected one of"),
        ({"by": "guide"}, ColumnNotFoundError, "'guide'"),
        ({"by": ("batch", "batch")}, ConfigError, "names 'batch' a second time"),
        ({"by": {"batch"}}, ConfigError, "by: got {'batch'}, expected a list of names"),
        ({"genes": ["gene1", "gene99"]}, ColumnNotFoundError, "genes: got 'gene99'"),
        ({"genes": ["gene1", "gene1"]}, ConfigError, "'gene1', which occurs more than once"),
        ({"layer": "missing"}, ColumnNotFoundError, "layer"),
        ({"groups": "batch"}, ConfigError, "unknown option"),
    ],
)
def test_wrong_options_are_errors(stores, options, error, message):
    with pytest.raises(error, match=message):
        lp.open(stores["grouped"]).pert.aggregate(**options)


def test_labels_that_were_assigned_to_the_dataset_are_an_error(stores):
    """The store has others under the same name."""
    ds = lp.open(stores["grouped"])
    for column in ("donor", "perturbation"):
        changed = ds.assign_coords({column: ("cell", np.array(["x"] * 150, object))})
        with pytest.raises(ConfigError, match=f"got '{column}' assigned to the Dataset"):
            changed.pert.aggregate(by=column)


def test_repeated_cells_are_an_error(stores):
    with pytest.raises(ConfigError, match="occur more than once"):
        lp.open(stores["grouped"]).isel(cell=[1, 2, 2]).pert.aggregate()


def test_genes_of_the_same_name_cannot_be_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = anndata.AnnData(np.ones((6, 3), "f4"), var=pd.DataFrame(index=["a", "b", "a"]))
        adata.obs["perturbation"] = ["x", "y", "control"] * 2
        path = write(adata, tmp_path / "a.h5ad")
    store = lp.convert(path, tmp_path / "a.zarr", pert_col="perturbation", control_pert="control")
    ds = lp.open(store)
    assert ds.pert.aggregate(by="perturbation", stats="sum", of="counts")["sum"].values.tolist() == [[2, 2, 2]] * 3
    with pytest.raises(ConfigError, match="'a', which occurs more than once"):
        ds.pert.aggregate(genes="a")


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((), 5, ()),
        ((4,), 3, ((3, 1),)),
        ((2, 3), 3, ((1, 1), (3,))),
        ((2, 3), 2, ((1, 1), (2, 1))),
        ((4, 3), 6, ((2, 2), (3,))),
        ((2, 0), 6, ((1, 1), ())),
        ((3,), 0, ((1, 1, 1),)),
    ],
)
def test_blocks_cover_all_groups_once(shape, size, expected):
    chunks = moments.block_chunks(shape, size)
    assert chunks == expected
    blocks = list(moments.block_groups(shape, chunks))
    numbers = [number for block, _ in blocks for number in block.tolist()]
    assert sorted(numbers) == list(range(int(np.prod(shape, dtype=int))))
    assert all(len(block) == int(np.prod(part, dtype=int)) <= max(1, size) for block, part in blocks)
