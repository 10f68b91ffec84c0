"""Appending cells: readers that are open, what is written, what is refused, and processes that are killed."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert.errors import ConfigError, MachineError, StoreChangedError
from lazypert.store.format import TABLES
from lazypert.store.store import Store
from lazypert.updates.store_update import StoreUpdate
from tests.support.appended import files_of
from tests.support.loaders import same_batch, whole_loader
from tests.support.stores import ROLES, files, leftovers, read_store, screen, small_grids, write

pytestmark = pytest.mark.filterwarnings("ignore::lazypert.errors.NotCopiedWarning")


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
import shutil, sys
from pathlib import Path
import lazypert as lp
import lazypert_converters.h5ad, lazypert.updates.append
from tests.support.add_killer import count_operations, kill
from lazypert.screen.cell_order import name_hashes
from tests.support.killer import in_child, wait

def append(store, more, stop_at):
    seen = count_operations(store.parent, stop_at, kill)
    lp.append(store, more, progress=False)
    (store.parent / "count.txt").write_text(str(len(seen)))
    return True

# Forks for every run, so that packages are imported only once; this process never starts a thread.
name_hashes(["a"])  # loads a kernel once, not in every child
store, more, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
for stop_at in sys.argv[4:]:
    target = shutil.copytree(store, out / stop_at / "s.zarr")
    print(stop_at, wait(in_child(append, target, more, int(stop_at))))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_killed_process_leaves_the_old_or_the_new_version(parts, tmp_path):
    original, two = parts
    out = tmp_path / "killed"

    def run(*stops):
        command = [sys.executable, "-c", KILLED, str(original), str(two), str(out), *map(str, stops)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
        assert done.returncode == 0, done.stderr
        return dict(tuple(map(int, line.split())) for line in done.stdout.splitlines())

    assert run(-1) == {-1: 0}
    n_operations = int((out / "-1" / "count.txt").read_text())
    sizes = []
    for stop_at, status in run(*np.linspace(2, n_operations, 8).astype(int).tolist()).items():
        assert status in (-signal.SIGKILL, 0)  # the number of operations differs a little between runs
        lp.verify(out / str(stop_at) / "s.zarr")
        sizes.append(Store(out / str(stop_at) / "s.zarr").n_obs)
    assert len(sizes) == 8
    assert set(sizes) <= {90, 160}  # how many operations follow the swap depends on the file system
    assert sizes == sorted(sizes)
    killed = max(path.parent for path in out.glob("*/s.zarr.partial-*")) / "s.zarr"
    lp.append(killed, two, progress=False)  # deletes what the killed process left
    assert not [path for path in killed.parent.iterdir() if "partial-" in path.name]


def test_an_error_or_no_cells_change_nothing(parts, tmp_path):
    store, two = parts
    before = files(store)
    with pytest.raises(lp.LazypertError, match="layers/lognorm"):
        lp.append(store, screen(5, seed=3, lean=True), progress=False)
    with pytest.raises(ConfigError, match="dataset: got 3"):
        lp.append(store, two, dataset=3)
    with pytest.raises(ConfigError, match=r"work_dir: got .* for the local store"):
        lp.append(store, two, work_dir=tmp_path)
    with StoreUpdate(store), pytest.raises(MachineError, match=r"another process is writing .* Nothing was changed"):
        lp.append(store, two)  # while another append goes on
    assert files(store) == before
    assert leftovers(tmp_path, "s.zarr", "one.h5ad", "two.h5ad", "s.zarr.partial.lock") == []
