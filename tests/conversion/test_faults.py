"""Conversions that are killed, starved and raced, for real: a finished store that verifies, or no store."""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import lazypert as lp
import tests.support
from lazypert.errors import DiskFullError, SourceFormatError, StoreDamagedError, StoreExistsError
from lazypert.simulate import SimulationConfig, simulate_screen
from lazypert.store.format import TABLES
from lazypert.store.store import Store
from tests.support.stores import ROLES, assert_same, copied, files, flip, leftovers, read_store, screen, write

pytestmark = pytest.mark.slow
KILLER = Path(tests.support.__file__).parent / "killer.py"


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A screen that takes about a second, and its store."""
    folder = tmp_path_factory.mktemp("faults")
    path = folder / "screen.h5ad"
    simulate_screen(path, SimulationConfig(n_cells=1500, n_genes=400, nnz_per_cell=100))
    return path, lp.convert(path, folder / "screen.zarr", **ROLES)


def test_killed_at_100_random_moments(big, tmp_path):
    done = subprocess.run(
        [sys.executable, str(KILLER), str(big[0]), str(tmp_path), "100", "7"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    print(seen)
    assert seen["wrong"] == 0, done.stderr
    assert seen["killed"] == 100
    assert seen["finished_after_kills"] >= 10
    assert seen["phases"].get("reduce", 0) >= 5, "some must die with shards written"
    assert seen["left"] == ["s.zarr"]


def command(*args, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "lazypert", "convert", *map(str, args), "--pert-col", "perturbation",
         "--control-pert", "non-targeting", "--cell-type-col", "cell_type", "--batch-col", "batch"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def test_ctrl_c_keeps_what_is_done_and_the_next_run_goes_on(tmp_path):
    path = tmp_path / "screen.h5ad"
    simulate_screen(path, SimulationConfig(n_cells=40_000, n_genes=2_000, nnz_per_cell=600))
    running = command(path, tmp_path / "s.zarr")
    while not list(tmp_path.glob("s.zarr.partial-*/work/0/*.json")):
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not (tmp_path / "s.zarr").exists()
    (kept,) = tmp_path.glob("s.zarr.partial*")
    assert kept.name in err
    again = command(path, tmp_path / "s.zarr")
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert "going on from what an earlier run has done" in err
    lp.verify(tmp_path / "s.zarr")
    assert leftovers(tmp_path, "screen.h5ad", "s.zarr") == []


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a tmpfs of some size, or changes its size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size):
        again = ["-o", f"remount,size={size}"] if os.path.ismount(folder) else ["-o", f"size={size}"]
        done = subprocess.run(["mount", "-t", "tmpfs", *again, "tmpfs", str(folder)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting a tmpfs is not allowed here: {done.stderr.decode().strip()}")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


def full_disk(path, target):
    """What a conversion says of the disk; None when it finds room."""
    try:
        lp.convert(path, target, **ROLES)
    except DiskFullError as error:
        return str(error)
    return None


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("mount") is None, reason="needs mount")
def test_a_full_disk(big, small_disk):
    path, whole = big
    need = sum(file.stat().st_size for file in whole.rglob("*") if file.is_file())
    refused = kept = 0
    for size in range(need // 4, 12 * need, need // 4):  # a tmpfs counts whole pages
        folder = small_disk(size)
        said = full_disk(path, folder / "s.zarr")
        if said is None:
            break
        assert str(folder) in said
        assert not (folder / "s.zarr").exists()
        refused += "Nothing was written" in said
        kept += "kept in" in said
    lp.verify(folder / "s.zarr")
    assert files(folder / "s.zarr") == files(whole)
    assert [p.name for p in folder.iterdir()] == ["s.zarr"]
    assert refused, "a disk too small for certain is refused before anything is written"
    assert kept, "a disk that fills up half way is an error that says what to do"


def read_everything(path):
    """Every value of a store, through every way that lazypert reads it."""
    store = Store(path)
    for name in store.matrices:
        matrix = store.sparse(name)
        matrix.read(0, matrix.shape[0])
        matrix.indptr.read(0, len(matrix.indptr))
    for name in ("_index", *store.obs_columns):
        store.column(f"obs/{name}")
    facts = store.cell_stats
    for array in (facts.total, facts.n_genes, facts.own_target, store.sharded(f"{TABLES}/source_row")):
        array.read(0, len(array))
    return store.groups, store.var


def test_60_flipped_bits(big, tmp_path):
    rng = np.random.default_rng(0)
    store = copied(big[1], tmp_path / "s.zarr")
    shards = sorted(path for path in store.rglob("c/*") if path.is_file() and "manifest" not in path.parts)
    sizes = np.array([path.stat().st_size for path in shards], dtype=float)
    found_reading = found_verifying = 0
    for _ in range(60):
        path = shards[rng.choice(len(shards), p=sizes / sizes.sum())]
        bit = int(rng.integers(8 * path.stat().st_size))
        flip(path, bit)
        with contextlib.suppress(StoreDamagedError):
            read_everything(store)
            raise AssertionError(f"bit {bit} of {path} was read as if nothing were")
        found_reading += 1
        with pytest.raises(StoreDamagedError, match=path.relative_to(store).as_posix()):
            lp.verify(store)
        found_verifying += 1
        flip(path, bit)
    lp.verify(store)
    assert found_reading == found_verifying == 60


@pytest.mark.parametrize("damage", ["deleted", "truncated"])
@pytest.mark.parametrize("array", ["X/data", "X/indices", "obs/_index", "obs/__lazypert__/facts/total"])
def test_a_shard_that_is_gone_or_cut_short(big, tmp_path, array, damage):
    store = copied(big[1], tmp_path / "s.zarr")
    path = store / array / "c/0"
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(StoreDamagedError, match=f"{array}/c/0"):
        lp.verify(store)
    with pytest.raises(StoreDamagedError):
        read_everything(store)


def test_two_processes_to_one_target(big, tmp_path):
    for _ in range(3):
        both = [command(big[0], tmp_path / "s.zarr") for _ in range(2)]
        said = [one.communicate(timeout=120)[1] for one in both]
        codes = sorted(one.returncode for one in both)
        assert codes == [0, 1], said
        (loser,) = [text for one, text in zip(both, said, strict=True) if one.returncode == 1]
        assert "Another process is writing" in loser or "exists already" in loser
        assert "Traceback" not in loser
        lp.verify(tmp_path / "s.zarr")
        assert leftovers(tmp_path, "s.zarr") == []
        shutil.rmtree(tmp_path / "s.zarr")


def test_overwriting_is_never_without_a_store(big, tmp_path):
    """Another process that opens the target all the while always finds a whole store."""
    target = copied(big[1], tmp_path / "s.zarr")
    stop, opened = threading.Event(), []

    def look():
        while not stop.is_set():
            opened.append(Store(target).n_obs)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for seed in (1, 2):
            lp.convert(big[0], target, overwrite=True, seed=seed, **ROLES)
    finally:
        stop.set()
        looking.join()
    assert len(opened) > 10
    assert set(opened) == {1500}
    assert leftovers(tmp_path, "s.zarr") == []


def interrupted(path, target, monkeypatch, error=KeyboardInterrupt, **options):
    """A conversion that is cut off after the matrix; returns what it left behind."""

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("lazypert.conversion.convert.write_tables", fail)
        with pytest.raises(error):
            lp.convert(path, target, **(ROLES | options))
    (kept,) = target.parent.glob(f"{target.name}.partial-*")
    return kept


@pytest.mark.parametrize("change", ["seed", "source", "memory_limit"])
def test_a_changed_source_or_option_starts_over_and_says_so(tmp_path, monkeypatch, caplog, change):
    path = write(screen(), tmp_path / "a.h5ad")
    kept, options = interrupted(path, tmp_path / "s.zarr", monkeypatch), dict(ROLES)
    if change == "source":
        with h5py.File(path, "r+") as file:
            file["X/data"][0] += 1
    else:
        options |= {"seed": 3} if change == "seed" else {"memory_limit": "65MiB"}
    with caplog.at_level(logging.INFO, "lazypert"):
        store = lp.convert(path, tmp_path / "s.zarr", **options)
    assert "starting over" in caplog.text
    assert not kept.exists()
    lp.verify(store)
    fresh = lp.convert(path, tmp_path / "fresh.zarr", **options)
    assert files(store) == files(fresh)


@pytest.mark.parametrize(
    "damage", ["a shard cut short", "a shard flipped", "notes cut short", "a record torn", "nothing"]
)
def test_only_what_verifies_is_gone_on_from(tmp_path, monkeypatch, caplog, damage):
    """A power cut may lose bytes of files that have their names already."""
    import anndata

    path = write(screen(), tmp_path / "a.h5ad")
    kept = interrupted(path, tmp_path / "s.zarr", monkeypatch)
    shard = kept / "store/X/data/c/0"
    if damage == "a shard cut short":
        shard.write_bytes(shard.read_bytes()[:-40])
    elif damage == "a shard flipped":
        flip(shard, 99)
    elif damage == "notes cut short":
        notes = kept / "work/0/rows-000000.npz"
        notes.write_bytes(notes.read_bytes()[:-40])
    elif damage == "a record torn":
        (kept / "work/0/done.json").write_text('{"summary": {"n_co')
        (kept / "work/0/shard-000000.json").write_text("")
    done = []
    import lazypert.conversion.convert as ingest

    real = ingest.run

    def noting(*args, **options):
        done.append(options["phase"])
        return real(*args, **options)

    monkeypatch.setattr(ingest, "run", noting)
    with caplog.at_level(logging.INFO, "lazypert"):
        store = lp.convert(path, tmp_path / "s.zarr", **ROLES)
    assert "going on" in caplog.text
    assert_same(store, anndata.read_h5ad(path))
    lp.verify(store)
    assert ("X: writing shards" in done) == (damage != "nothing")
    assert files(store) == files(lp.convert(path, tmp_path / "fresh.zarr", **ROLES))


def test_a_source_that_changes_meanwhile_is_an_error(tmp_path, monkeypatch):
    path = write(screen(), tmp_path / "a.h5ad")
    import lazypert.conversion.convert as ingest

    real = ingest.write_tables
    monkeypatch.setattr(ingest, "write_tables", lambda *args: [os.utime(path, ns=(1, 1)), real(*args)][1])
    with pytest.raises(SourceFormatError, match="changed while it was converted"):
        lp.convert(path, tmp_path / "s.zarr", **ROLES)
    assert leftovers(tmp_path, "a.h5ad") == []


def test_an_error_in_a_task_leaves_nothing_even_with_others_under_way(tmp_path, big):
    path = shutil.copy(big[0], tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        file["X/indices"][-1] = 10**6
    for _ in range(5):
        with pytest.raises(SourceFormatError, match="X/indices"):
            lp.convert(path, tmp_path / "s.zarr", **ROLES)
        assert leftovers(tmp_path, "a.h5ad") == []


def test_a_lost_worker(big, tmp_path, monkeypatch):
    """A worker of a real cluster is killed half way; its tasks are done again elsewhere."""
    distributed = pytest.importorskip("distributed")
    path, expected = big[0], files(big[1])
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        victims = [worker["pid"] for worker in _pids(client)]
        assert len(victims) == 2

        def kill_one(progress):
            if progress.phase == "X: writing shards" and victims and progress.done == 0:
                os.kill(victims.pop(), signal.SIGKILL)

        store = lp.convert(path, tmp_path / "s.zarr", progress=kill_one, **ROLES)
        assert len(victims) == 1
    lp.verify(store)
    assert files(store) == expected
    assert leftovers(tmp_path, "s.zarr") == []
    assert read_store(store).n_obs == 1500


def _pids(client):
    return [{"pid": pid} for pid in client.run(os.getpid).values()]


def test_a_writer_that_waits_is_told_at_once(big, tmp_path):
    with lp.ingest.StoreWriter(tmp_path / "s.zarr"), pytest.raises(StoreExistsError, match="Another process"):
        lp.convert(big[0], tmp_path / "s.zarr", **ROLES)
    lp.convert(big[0], tmp_path / "s.zarr", **ROLES)
