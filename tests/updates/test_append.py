"""Appending cells: the result is a store converted from all files at once, but for the order of its rows."""

import pickle
import shutil
import signal
import subprocess
import sys

import anndata
import numpy as np
import pandas as pd
import pytest

import xarray as xr
import zarr

import lazypert as lp
from lazypert.errors import ConfigError, MachineError, StoreChangedError, StoreDamagedError
from lazypert.store.format import TABLES
from lazypert.store.store import Store
from lazypert.updates.store_update import StoreUpdate
from tests.fuzz.lying_stores import seal
from tests.support.loaders import same_batch, whole_loader
from tests.support.spec_store import SpecStore
from tests.support.stores import ROLES, copied, dense, files, leftovers, read_store, screen, small_grids, write

pytestmark = pytest.mark.filterwarnings("ignore::lazypert.errors.NotCopiedWarning")


def files_of(folder, **options):
    """Two screens with partly the same labels, and a store of the first and of both."""
    first, second = screen(90, seed=0, **options), screen(70, seed=1, **options)
    labels = np.where(np.arange(70) % 7 == 0, "gene3", second.obs["perturbation"].astype(str))
    second.obs["perturbation"] = pd.Categorical(labels)
    second.obs["batch"] = pd.Categorical(np.where(second.obs["batch"] == "b1", "a0", second.obs["batch"].astype(str)))
    for name, adata in (("one", first), ("two", second)):
        write(adata, folder / f"{name}.h5ad")
    return folder / "one.h5ad", folder / "two.h5ad"


RICH = {"covariates": ["dose"], "separator": "+", "compression": "compact"}


def enrich(path, seed):
    """Give a screen combinations, doses, raw, and a table of cells in obsm."""
    adata, rng = anndata.read_h5ad(path), np.random.default_rng(seed)
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    labels[::5] = "KRAS+TP53" if seed else "BRCA1+TP53"
    adata.obs["perturbation"] = pd.Categorical(labels)
    adata.obs["dose"] = pd.Categorical(rng.choice(["1 nM", "5 nM"] if seed else ["0.1 nM", "1 nM"], adata.n_obs))
    adata.raw = adata[:, ::-1].copy()
    table = {"x": rng.random(adata.n_obs), "who": pd.Categorical(rng.choice(["p", f"q{seed}"], adata.n_obs))}
    adata.obsm["table"] = pd.DataFrame(table, index=adata.obs_names)
    write(adata, path)


@pytest.fixture(scope="module", params=["plain", "rich"])
def stores(tmp_path_factory, request):
    folder, options = tmp_path_factory.mktemp("append"), {**ROLES, "progress": False}
    one, two = paths = files_of(folder)
    if request.param == "rich":
        options |= RICH
        for seed, path in enumerate(paths):
            enrich(path, seed)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "rich":
            small_grids(patch)
        lp.convert(one, folder / "appended.zarr", **options)
        lp.append(folder / "appended.zarr", two, progress=False)
    lp.convert([one, two], folder / "joint.zarr", **options)
    return folder


def by_name(adata):
    keys = adata.obs["dataset"].astype(str).str.cat(adata.obs_names, sep="/").to_numpy()
    return np.argsort(keys)


def test_every_value_is_that_of_a_store_of_all_files(stores):
    found, expected = (anndata.read_zarr(stores / f"{name}.zarr") for name in ("appended", "joint"))
    lp.verify(stores / "appended.zarr")
    found, expected = found[by_name(found)], expected[by_name(expected)]
    assert (found.obs_names == expected.obs_names).all()
    assert list(found.var_names) == list(expected.var_names)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    for name in expected.layers:
        np.testing.assert_array_equal(found.layers[name].toarray(), expected.layers[name].toarray())
    assert set(found.obsm) == set(expected.obsm)
    for name, values in expected.obsm.items():
        if isinstance(values, pd.DataFrame):
            pd.testing.assert_frame_equal(found.obsm[name].astype(object), values.astype(object))
        else:
            dense = [
                one.toarray() if hasattr(one, "toarray") else np.asarray(one) for one in (found.obsm[name], values)
            ]
            np.testing.assert_array_equal(*dense)
    assert (found.raw is None) == (expected.raw is None)
    if expected.raw is not None:
        np.testing.assert_array_equal(found.raw.X.toarray(), expected.raw.X.toarray())
        assert list(found.raw.var_names) == list(expected.raw.var_names)
    assert set(found.obs.columns) == set(expected.obs.columns)
    for name in expected.obs:
        left, right = found.obs[name], expected.obs[name]
        assert (left.dtype.kind, type(left.dtype)) == (right.dtype.kind, type(right.dtype)), name
        pd.testing.assert_series_equal(left.astype(object), right.astype(object), check_names=False)


def test_groups_are_those_of_a_store_of_all_files_cell_by_cell(stores):
    found, expected = (Store(stores / f"{name}.zarr") for name in ("appended", "joint"))
    ours, theirs = found.groups, expected.groups
    for axis, labels in theirs.labels.items():
        assert ours.labels[axis].tolist() == labels.tolist()
    for name in ("start", "stop"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    for axis, codes in theirs.codes.items():
        np.testing.assert_array_equal(ours.codes[axis], codes)
    assert len(ours.conditions) == len(theirs.conditions)
    np.testing.assert_array_equal(ours.condition, theirs.condition)
    names = [store.read_strings("obs/_index") for store in (found, expected)]
    assert names[0][ours.row_order].tolist() == names[1].tolist()  # the same cell at every position
    np.testing.assert_array_equal(ours.batch_of(ours.row_order), theirs.batch_of(np.arange(theirs.n_obs)))
    for name in ("run", "batch", "n_cells"):
        np.testing.assert_array_equal(getattr(ours.batch_counts, name), getattr(theirs.batch_counts, name))
    for key in ("summary", "roles", "n_obs"):
        assert found.attrs[key] == expected.attrs[key], key
    for name, summary in expected.attrs["matrices"].items():
        assert found.attrs["matrices"][name] == pytest.approx(summary), name


def test_cell_statistics_are_those_of_a_store_of_all_files(stores):
    found, expected = (Store(stores / f"{name}.zarr") for name in ("appended", "joint"))
    ours, theirs, order = found.cell_stats, expected.cell_stats, found.groups.row_order
    for name in ("total", "n_genes", "own_target"):
        values = [getattr(one, name).read(0, found.n_obs) for one in (ours, theirs)]
        np.testing.assert_array_equal(values[0][order], values[1])
    np.testing.assert_array_equal(ours.target, theirs.target)
    np.testing.assert_array_equal(ours.control_sum, theirs.control_sum)


def test_splits_are_those_of_a_store_of_all_files(stores):
    sets = []
    for name in ("appended", "joint"):
        source = lp.PerturbationAnnDataSource(lp.PerturbationSourceConfig(file_path=stores / f"{name}.zarr"))
        split = lp.RandomSplitter(lp.RandomSplitterConfig(seed=5)).split(source)
        names = Store(stores / f"{name}.zarr").read_strings("obs/_index")
        sets.append({part: sorted(names[np.asarray(split[part])]) for part in ("train", "valid", "test")})
    assert sets[0] == sets[1]
    assert all(sets[0].values())


def test_every_sentence_and_control_is_that_of_a_store_of_all_files(stores):
    """So sampling is as fair as in that store, whose groups are in the order of a hash."""
    epochs = []
    for name in ("appended", "joint"):
        names = Store(stores / f"{name}.zarr").read_strings("obs/_index")
        batches = list(whole_loader(stores / f"{name}.zarr")())
        epochs.append([(names[np.asarray(b.row)].tolist(), names[np.asarray(b.control_row)].tolist()) for b in batches])
        counts = [np.asarray(b.counts) for b in batches]
        epochs[-1] += [counts]
    *ours, our_counts = epochs[0]
    *theirs, their_counts = epochs[1]
    assert ours == theirs
    for left, right in zip(our_counts, their_counts, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.fixture(scope="module")
def knockdown_stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("knockdown")
    genes = ["TP53", "BRCA1", "KRAS", "gene3", *(f"other{i}" for i in range(9))]
    one, two = files_of(folder, genes=genes)
    lp.convert(one, folder / "appended.zarr", progress=False, **ROLES)
    lp.append(folder / "appended.zarr", two, progress=False)
    lp.convert([one, two], folder / "joint.zarr", progress=False, **ROLES)
    return folder


@pytest.mark.parametrize("layer", [None, "lognorm"])
def test_knockdown_is_that_of_a_store_of_all_files(knockdown_stores, layer):
    """By the stored statistics, and by values of a layer, which has none."""
    results, passing = [], []
    for name in ("appended", "joint"):
        store = Store(knockdown_stores / f"{name}.zarr")
        assert store.cell_stats is not None
        results.append(lp.open(knockdown_stores / f"{name}.zarr").pert.knockdown(layer=layer))
        passing.append(sorted(store.read_strings("obs/_index")[results[-1].mask]))
    pd.testing.assert_frame_equal(*(result.table for result in results))
    assert set(results[1].table["perturbation"]) == {"TP53", "BRCA1", "KRAS", "gene3"}
    assert passing[0] == passing[1]
    assert results[0].units == results[1].units


def test_a_reader_written_from_the_format_page_reads_it(stores):
    store, expected = SpecStore(stores / "appended.zarr"), read_store(stores / "appended.zarr")
    np.testing.assert_array_equal(store.matrix("X"), expected.X.toarray())
    np.testing.assert_array_equal(store.matrix("obsm/guides"), dense(expected.obsm["guides"]))
    np.testing.assert_array_equal(store.dense("obsm/X_pca"), expected.obsm["X_pca"])
    for name, column in expected.obs.items():
        found = [None if pd.isna(value) else value for value in store.column(f"obs/{name}")]
        assert found == [None if pd.isna(value) else value for value in column], name
    order, labels = store.array(f"{store.groups}/order"), expected.obs
    for start, stop, (cell_type, perturbation, dataset) in store.runs():
        run = labels.iloc[order[start:stop]]
        assert {*run["cell_type"]} == {cell_type}
        assert {*run["perturbation"]} == {perturbation}
        assert {*run["dataset"]} == {dataset}
    assert store.manifest() == [[e.key, e.size, e.crc32] for e in Store(stores / "appended.zarr").read_manifest()]


def test_scanpy_and_xarray_read_it(stores):
    scanpy = pytest.importorskip("scanpy")
    adata = anndata.read_zarr(stores / "appended.zarr")
    scanpy.pp.filter_cells(adata, min_counts=1)
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    scanpy.pp.log1p(adata)
    lazy = xr.open_dataset(stores / "appended.zarr", engine="lazypert")
    expected = anndata.read_zarr(stores / "appended.zarr")
    np.testing.assert_array_equal(np.asarray(lazy.X.data.compute()), expected.X.toarray())
    assert lazy.dataset.to_series().astype(str).tolist() == expected.obs["dataset"].astype(str).tolist()
    second = lazy.pert.select(dataset="two")
    assert sorted(second.cell_name.values) == sorted(expected.obs_names[expected.obs["dataset"] == "two"])


LIES = {
    "a row occurs twice": ("order", 5, 0),
    "a row beyond the cells": ("order", 5, 10**6),
    "a run begins before the one before": ("runs/start", 3, 0),
    "a code beyond the labels": ("runs/perturbation", 1, 99),
    "numbers of cells do not add up": ("subgroups/n_cells", 2, 77),
    "a batch beyond the labels": ("batch", 5, 9),
    "a target beyond the genes": ("facts/target", 0, 10**6),
    "a control beyond the cells": ("facts/control_row", 0, 10**6),
}


@pytest.mark.parametrize("lie", LIES)
def test_tables_of_all_cells_that_cannot_be_right_are_refused(stores, tmp_path, lie):
    store, (table, index, value) = copied(stores / "appended.zarr", tmp_path / "s.zarr"), LIES[lie]
    path = f"{TABLES}/appended_1/{table}"
    array = zarr.open_group(store, mode="r+", use_consolidated=False)[path]
    values = array[:]
    values[index] = value
    array[:] = values
    seal(store)
    with pytest.raises(StoreDamagedError, match=f"{TABLES}/appended_1/{table.split('/')[0]}"):
        opened = Store(store)
        opened.groups.batch_of(np.arange(3))
        _ = opened.cell_stats


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_other_lengths_of_the_tables_of_all_cells_are_refused(stores, tmp_path):
    for table in ("order", "batch"):
        store = copied(stores / "appended.zarr", tmp_path / f"{table}.zarr")
        zarr.open_group(store, mode="r+", use_consolidated=False)[f"{TABLES}/appended_1/{table}"].resize((159,))
        zarr.consolidate_metadata(store)
        seal(store)
        with pytest.raises(StoreDamagedError, match=f"appended_1/{table}: got 159"):
            Store(store).groups.batch_of(np.arange(3))


@pytest.fixture
def parts(tmp_path):
    one, two = files_of(tmp_path)
    lp.convert(one, tmp_path / "s.zarr", progress=False, **ROLES)
    return tmp_path / "s.zarr", two


def test_old_readers_go_on_with_the_version_that_they_opened(parts):
    """Some tables were not read before, and shards are read with an index of the old or the new file."""
    store, two = parts
    expected = read_store(store)
    columns = {name: pd.Series(Store(store).read_column(f"obs/{name}")) for name in expected.obs}
    make, fresh, lazy = whole_loader(store), Store(store), lp.open(store)
    digest = Store(store).content_digest
    before = list(make())
    running = iter(make())
    first = next(running)
    lp.append(store, two, progress=False)
    lp.append(store, two, progress=False)
    for one, other in zip([first, *running], before, strict=True):
        assert same_batch(one, other)
    assert fresh.content_digest == digest != Store(store).content_digest
    assert fresh.groups.n_obs == len(expected)
    assert fresh.groups.stop[-1] == len(expected)
    assert fresh.cell_stats.control_sum.shape[1] == len(fresh.groups.labels["perturbation"])
    np.testing.assert_array_equal(fresh.matrix().read(0, fresh.n_obs).to_dense(), expected.X.toarray())
    assert fresh.read_strings("obs/_index").tolist() == expected.obs_names.tolist()
    for name, column in columns.items():
        pd.testing.assert_series_equal(pd.Series(fresh.read_column(f"obs/{name}")), column)
    np.testing.assert_array_equal(fresh.obsm["X_pca"][:], expected.obsm["X_pca"])
    assert lazy.sizes["cell"] == len(expected)
    np.testing.assert_array_equal(np.asarray(lazy.X.data.compute()), expected.X.toarray())


def test_a_pickle_of_an_old_version_says_that_the_store_has_changed(parts):
    store, two = parts
    pickled = pickle.dumps(Store(store))
    lp.append(store, two, progress=False)
    with pytest.raises(StoreChangedError, match="Open it again"):
        pickle.loads(pickled)


@pytest.mark.parametrize("compression", ["fast", "compact"])
def test_appending_in_many_small_shards(tmp_path, monkeypatch, compression):
    """Arrays of several shards, whose last chunk and shard are partly filled, appended to three times."""
    small_grids(monkeypatch)
    screens = [screen(n, seed=seed) for seed, n in enumerate((90, 3, 70, 40))]
    paths = [write(adata, tmp_path / f"p{i}.h5ad") for i, adata in enumerate(screens)]
    lp.convert(paths[0], tmp_path / "s.zarr", compression=compression, progress=False, **ROLES)
    for path in paths[1:]:
        old = Store(tmp_path / "s.zarr")
        values = read_store(tmp_path / "s.zarr").X.toarray()
        lp.append(tmp_path / "s.zarr", path, progress=False)
        np.testing.assert_array_equal(old.matrix().read(0, old.n_obs).to_dense(), values)
        lp.verify(tmp_path / "s.zarr")
    lp.convert(paths, tmp_path / "joint.zarr", progress=False, **ROLES)
    found, expected = (read_store(tmp_path / f"{name}.zarr") for name in ("s", "joint"))
    order = Store(tmp_path / "s.zarr").groups.row_order
    assert found.obs_names[order].tolist() == expected.obs_names.tolist()
    np.testing.assert_array_equal(found.X.toarray()[order], expected.X.toarray())
    source_rows = Store(tmp_path / "s.zarr").read_array(f"{TABLES}/source_row")
    assert found.obs_names.tolist() == np.concatenate([s.obs_names for s in screens])[source_rows].tolist()
    assert [record["first_row"] for record in Store(tmp_path / "s.zarr").appended] == [90, 93, 163]


def test_a_dataset_of_the_store_gets_more_cells_in_its_own_runs(tmp_path):
    """With the name of the store's file, the groups are those of one file that holds all cells."""
    one, two = screen(90, lean=True), screen(70, seed=1, lean=True)
    write(one, tmp_path / "one.h5ad")
    write(two, tmp_path / "two.h5ad")
    write(anndata.concat([one, two], merge="same"), tmp_path / "all.h5ad")
    lp.convert(tmp_path / "one.h5ad", tmp_path / "s.zarr", progress=False, **ROLES)
    lp.append(tmp_path / "s.zarr", tmp_path / "two.h5ad", dataset="one", progress=False)
    lp.convert(tmp_path / "all.h5ad", tmp_path / "all.zarr", progress=False, **ROLES)
    found, expected = Store(tmp_path / "s.zarr"), Store(tmp_path / "all.zarr")
    np.testing.assert_array_equal(found.groups.start, expected.groups.start)
    names = found.read_strings("obs/_index")[found.groups.row_order]
    assert names.tolist() == expected.read_strings("obs/_index").tolist()
    with pytest.raises(ConfigError, match="They are in it already"):
        lp.append(tmp_path / "s.zarr", tmp_path / "two.h5ad", dataset="one", progress=False)
    assert Store(tmp_path / "s.zarr").n_obs == 160
    assert leftovers(tmp_path, "s.zarr") != []
    assert not [path for path in tmp_path.iterdir() if "partial-" in path.name]


@pytest.mark.parametrize("order", ["grouped", "source"])
def test_other_genes_and_wider_counts(tmp_path, order):
    one, two = screen(40, lean=True), screen(30, 19, seed=1, lean=True)
    two = two[:, ::-1][:, 1:].copy()  # gene0 to gene17: another order and one more
    values = two.X.tolil()
    values[0, 0], values[1, two.var_names.get_loc("gene3")] = 7, 70_000
    two.X = values.tocsr()
    write(one, tmp_path / "one.h5ad")
    write(two, tmp_path / "two.h5ad")
    lp.convert(tmp_path / "one.h5ad", tmp_path / "s.zarr", order=order, progress=False, **ROLES)
    old = Store(tmp_path / "s.zarr")
    with pytest.raises(ConfigError, match=r"gene17.*genes='store'"):
        lp.append(tmp_path / "s.zarr", tmp_path / "two.h5ad", progress=False)
    lp.append(tmp_path / "s.zarr", tmp_path / "two.h5ad", genes="store", progress=False)
    lp.verify(tmp_path / "s.zarr")
    found = read_store(tmp_path / "s.zarr")
    assert list(found.var_names) == list(one.var_names)
    expected = two[found.obs_names[40:], one.var_names].X.toarray()
    np.testing.assert_array_equal(found.X.toarray()[40:], expected)
    store = Store(tmp_path / "s.zarr")
    assert store.appended[0]["rewritten"] == ["X/data"]
    assert store.attrs["matrices"]["X"]["maximum"] == 70_000
    np.testing.assert_array_equal(store.cell_stats.total.read(40, 70), expected.sum(axis=1))
    with pytest.raises(StoreChangedError):  # the dtype of its values is another now
        old.matrix().read(0, 4)
    assert store.attrs["order"] == {"grouped": "appended", "source": "source"}[order]


def test_more_categories_than_the_codes_hold(tmp_path):
    one, two = screen(60, lean=True), screen(200, seed=1, lean=True)
    for name, adata in (("one", one), ("two", two)):
        adata.obs["well"] = pd.Categorical([f"{name}{i % 90}" for i in range(adata.n_obs)])
        write(adata, tmp_path / f"{name}.h5ad")
    lp.convert(tmp_path / "one.h5ad", tmp_path / "s.zarr", progress=False, **ROLES)
    old = Store(tmp_path / "s.zarr")
    lp.append(tmp_path / "s.zarr", tmp_path / "two.h5ad", progress=False)
    found = read_store(tmp_path / "s.zarr").obs["well"]
    assert sorted(found.astype(str)) == sorted([*one.obs["well"].astype(str), *two.obs["well"].astype(str)])
    assert old.read_column("obs/batch").categories.tolist() == ["b1", "b2", "b3"]
    with pytest.raises(StoreChangedError, match="obs/well"):
        old.read_column("obs/well")


def test_columns_that_were_added_and_columns_of_the_new_cells(parts):
    store, two = parts
    names = Store(store).read_strings("obs/_index")
    lp.add_obs(store, pd.DataFrame({"score": np.arange(len(names))}, index=names))
    old = Store(store)
    lp.append(store, two, progress=False)
    found = read_store(store).obs["score"]
    assert found.isna().sum() == 70
    assert found[names].tolist() == list(range(90))
    assert Store(store).added == {}
    assert old.matrix().read(0, 90).shape == (90, 17)
    lp.add_obs(store, pd.DataFrame({"late": 1}, index=read_store(store).obs_names))
    lp.verify(store)


def test_only_new_data_are_written(tmp_path, monkeypatch):
    """Full shards of matrices stay links to the files of the version before; only the last one is written again."""
    small_grids(monkeypatch, 256, 4096)
    one, two = screen(4000, 40, lean=True), screen(50, 40, seed=1, lean=True)
    write(one, tmp_path / "one.h5ad")
    write(two, tmp_path / "two.h5ad")
    lp.convert(tmp_path / "one.h5ad", tmp_path / "s.zarr", progress=False, **ROLES)
    shards = {path: path.stat() for path in (tmp_path / "s.zarr/X").rglob("c/*")}
    lp.append(tmp_path / "s.zarr", tmp_path / "two.h5ad", progress=False)
    now = {path: path.stat() for path in (tmp_path / "s.zarr/X").rglob("c/*")}
    written = [path for path, stat in now.items() if path not in shards or stat.st_ino != shards[path].st_ino]
    assert len(shards) > 20
    assert len(written) <= 6
    largest = max(stat.st_size for stat in shards.values())
    assert sum(now[path].st_size for path in written) < 6 * largest
    for path in set(written) & set(shards):
        assert now[path].st_size > shards[path].st_size  # the old bytes are still there


KILLED = """
import sys
from pathlib import Path
import lazypert as lp
from tests.support.add_killer import count_operations, kill
store, more, stop_at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
seen = count_operations(store.parent, stop_at, kill)
lp.append(store, more, progress=False)
print(len(seen))
"""


@pytest.mark.slow
def test_a_killed_process_leaves_the_old_or_the_new_version(parts):
    store, two = parts

    def run(stop_at):
        command = [sys.executable, "-c", KILLED, str(store), str(two), str(stop_at)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    original = shutil.copytree(store, store.with_name("original.zarr"))
    n_operations = int(run(-1).stdout)
    sizes = []
    for stop_at in np.linspace(2, n_operations, 8).astype(int).tolist():
        shutil.rmtree(store)
        shutil.copytree(original, store)
        assert run(stop_at).returncode == -signal.SIGKILL
        lp.verify(store)
        sizes.append(Store(store).n_obs)
    assert set(sizes) == {90, 160}
    lp.append(store, two, progress=False)
    assert not [path for path in store.parent.iterdir() if "partial-" in path.name]


def test_an_error_or_no_cells_change_nothing(parts, tmp_path):
    store, two = parts
    before = files(store)
    with pytest.raises(lp.LazypertError, match="layers/lognorm"):
        lp.append(store, screen(5, seed=3, lean=True), progress=False)
    with pytest.raises(ConfigError, match="dataset: got 3"):
        lp.append(store, two, dataset=3)
    with pytest.raises(ConfigError, match=r"store: got the URL .* append to a local copy, then upload it again"):
        lp.append("s3://bucket/s.zarr", two)
    with StoreUpdate(store), pytest.raises(MachineError, match="another process is writing .* Nothing was changed"):
        lp.append(store, two)  # while another append goes on
    assert files(store) == before
    assert leftovers(tmp_path, "s.zarr", "one.h5ad", "two.h5ad", "s.zarr.partial.lock") == []
