"""Conversions that are killed, run out of disk, and race, for real: a store that verifies, or no store."""

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

import anndata
import h5py
import numpy as np
import pytest

import lazypert as lp
import tests.support
from lazypert.conversion import matrices
from lazypert.conversion.planner import make_plan
from lazypert.conversion.store_writer import StoreWriter
from lazypert.conversion.table_writer import write_tables
from lazypert.errors import DiskFullError, SourceFormatError, StoreDamagedError, StoreExistsError
from lazypert.simulate import SimulationConfig, simulate_screen
from lazypert.store.format import TABLES
from lazypert.store.store import Store
from tests.support.stores import ROLES, assert_same, copied, files, flip, leftovers, read_store, screen, write

pytestmark = pytest.mark.slow
KILLER = Path(tests.support.__file__).parent / "killer.py"


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A screen that takes about a second to convert, and its store."""
    folder = tmp_path_factory.mktemp("faults")
    path = folder / "screen.h5ad"
    simulate_screen(path, SimulationConfig(n_cells=1500, n_genes=400, nnz_per_cell=100))
    return path, lp.convert(path, folder / "screen.zarr", **ROLES)


def test_kills_at_100_random_moments_never_leave_a_wrong_store(big, tmp_path):
    done = subprocess.run(
        [sys.executable, str(KILLER), str(big[0]), str(tmp_path), "100", "7"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    print(counts)
    assert counts["wrong"] == 0, done.stderr
    assert counts["killed"] == 100
    assert counts["finished_after_kills"] >= 10
    assert counts["phases"].get("reduce", 0) >= 5, "some runs must be killed after they have written shards"
    assert counts["left"] == ["s.zarr"]


def command(*args, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "lazypert", "convert", *map(str, args), "--pert-col", "perturbation",
         "--control-pert", "non-targeting", "--cell-type-col", "cell_type", "--batch-col", "batch"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def test_ctrl_c_keeps_finished_work_and_the_next_run_resumes(tmp_path):
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
    (staging,) = tmp_path.glob("s.zarr.partial*")
    assert staging.name in err
    again = command(path, tmp_path / "s.zarr")
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert "resuming an interrupted conversion" in err
    lp.verify(tmp_path / "s.zarr")
    assert leftovers(tmp_path, "screen.h5ad", "s.zarr") == []


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that mounts a tmpfs of a given size, or resizes it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size):
        again = ["-o", f"remount,size={size}"] if os.path.ismount(folder) else ["-o", f"size={size}"]
        done = subprocess.run(["mount", "-t", "tmpfs", *again, "tmpfs", str(folder)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting a tmpfs is not allowed here: {done.stderr.decode().strip()}")
        return folder

    yield mount
    # Other processes may look into any mount for a moment; if one goes on doing so, the kernel unmounts it later.
    for attempt in (*[["umount"]] * 20, ["umount", "--lazy"]):
        if not os.path.ismount(folder) or not subprocess.run([*attempt, str(folder)], check=False).returncode:
            break
        time.sleep(0.1)
    assert not os.path.ismount(folder)


def full_disk(path, target):
    """Return the error message about a full disk, or None if the conversion succeeds."""
    try:
        lp.convert(path, target, **ROLES)
    except DiskFullError as error:
        return str(error)
    return None


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("mount") is None, reason="needs mount")
def test_a_full_disk_is_an_error_and_the_next_run_resumes(big, small_disk):
    path, reference = big
    need = sum(file.stat().st_size for file in reference.rglob("*") if file.is_file())
    n_refused = n_kept = 0
    for size in range(need // 4, 12 * need, need // 4):  # a tmpfs counts whole pages
        folder = small_disk(size)
        message = full_disk(path, folder / "s.zarr")
        if message is None:
            break
        assert str(folder) in message
        assert not (folder / "s.zarr").exists()
        n_refused += "Nothing was written" in message
        n_kept += "kept in" in message
    lp.verify(folder / "s.zarr")
    assert files(folder / "s.zarr") == files(reference)
    assert [p.name for p in folder.iterdir()] == ["s.zarr"]
    assert n_refused, "a disk that is certainly too small is refused before anything is written"
    assert n_kept, "a disk that fills up later is an error that says what to do"


def read_everything(path):
    """Read every value of a store, in every way that lazypert reads it."""
    store = Store(path)
    for name in store.matrices:
        matrix = store.open_matrix(name)
        matrix.read(0, matrix.shape[0])
        matrix.indptr.read(0, len(matrix.indptr))
    for name in ("_index", *store.obs_columns):
        store.read_column(f"obs/{name}")
    stats = store.cell_stats
    for array in (stats.total, stats.n_genes, stats.own_target, store.open_array(f"{TABLES}/source_row")):
        array.read(0, len(array))
    groups = store.groups
    return groups.cells.batch_codes(), groups.cells.hashes(np.arange(store.n_obs)), store.var


def test_60_flipped_bits_are_all_detected(big, tmp_path):
    rng = np.random.default_rng(0)
    store = copied(big[1], tmp_path / "s.zarr")
    shards = sorted(path for path in store.rglob("c/*") if path.is_file() and "manifest" not in path.parts)
    sizes = np.array([path.stat().st_size for path in shards], dtype=float)
    n_found_reading = n_found_verifying = 0
    for _ in range(60):
        path = shards[rng.choice(len(shards), p=sizes / sizes.sum())]
        bit = int(rng.integers(8 * path.stat().st_size))
        flip(path, bit)
        with contextlib.suppress(StoreDamagedError):
            read_everything(store)
            raise AssertionError(f"bit {bit} of {path} was read without an error")
        n_found_reading += 1
        with pytest.raises(StoreDamagedError, match=path.relative_to(store).as_posix()):
            lp.verify(store)
        n_found_verifying += 1
        flip(path, bit)
    lp.verify(store)
    assert n_found_reading == n_found_verifying == 60


@pytest.mark.parametrize("damage", ["deleted", "truncated"])
@pytest.mark.parametrize("array", ["X/data", "X/indices", "obs/_index", "obs/__lazypert__/facts/total"])
def test_a_missing_or_truncated_shard_is_detected(big, tmp_path, array, damage):
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


def test_the_second_of_two_processes_fails_with_an_error(big, tmp_path):
    for _ in range(3):
        both = [command(big[0], tmp_path / "s.zarr") for _ in range(2)]
        messages = [process.communicate(timeout=120)[1] for process in both]
        codes = sorted(process.returncode for process in both)
        assert codes == [0, 1], messages
        (message,) = [text for process, text in zip(both, messages, strict=True) if process.returncode == 1]
        assert "another process is writing" in message or "exists already" in message
        assert "Traceback" not in message
        lp.verify(tmp_path / "s.zarr")
        assert leftovers(tmp_path, "s.zarr") == []
        shutil.rmtree(tmp_path / "s.zarr")


def test_a_store_exists_at_every_moment_of_overwriting(big, tmp_path):
    """A thread that keeps opening the target always finds a complete store."""
    target = copied(big[1], tmp_path / "s.zarr")
    stop, opened = threading.Event(), []

    def keep_opening():
        while not stop.is_set():
            opened.append(Store(target).n_obs)

    thread = threading.Thread(target=keep_opening)
    thread.start()
    try:
        for order in ("source", "grouped"):
            lp.convert(big[0], target, overwrite=True, order=order, **ROLES)
    finally:
        stop.set()
        thread.join()
    assert len(opened) > 10
    assert set(opened) == {1500}
    assert leftovers(tmp_path, "s.zarr") == []


def interrupt(path, target, monkeypatch, error=KeyboardInterrupt, **options):
    """Interrupt a conversion after its matrix; return the staging directory."""

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("lazypert.conversion.convert.write_tables", fail)
        with pytest.raises(error):
            lp.convert(path, target, **(ROLES | options))
    (staging,) = target.parent.glob(f"{target.name}.partial-*")
    return staging


@pytest.mark.parametrize("change", ["order", "source", "memory_limit"])
def test_a_changed_source_or_option_starts_over_with_a_warning(tmp_path, monkeypatch, caplog, change):
    path = write(screen(), tmp_path / "a.h5ad")
    staging, options = interrupt(path, tmp_path / "s.zarr", monkeypatch), dict(ROLES)
    if change == "source":
        with h5py.File(path, "r+") as file:
            file["X/data"][0] += 1
    else:
        options |= {"order": "source"} if change == "order" else {"memory_limit": "65MiB"}
    with caplog.at_level(logging.INFO, "lazypert"):
        store = lp.convert(path, tmp_path / "s.zarr", **options)
    assert "starting over" in caplog.text
    assert not staging.exists()
    lp.verify(store)
    fresh = lp.convert(path, tmp_path / "fresh.zarr", **options)
    assert files(store) == files(fresh)


@pytest.mark.parametrize(
    "damage", ["truncated shard", "flipped bit", "truncated statistics", "truncated checkpoints", "none"]
)
def test_only_work_that_verifies_is_reused(tmp_path, monkeypatch, caplog, damage):
    """A power cut may lose bytes of files that have been renamed already."""
    path = write(screen(), tmp_path / "a.h5ad")
    staging = interrupt(path, tmp_path / "s.zarr", monkeypatch)
    shard = staging / "store/X/data/c/0"
    if damage == "truncated shard":
        shard.write_bytes(shard.read_bytes()[:-40])
    elif damage == "flipped bit":
        flip(shard, 99)
    elif damage == "truncated statistics":
        stats = staging / "work/0/rows-000000-000000.npz"
        stats.write_bytes(stats.read_bytes()[:-40])
    elif damage == "truncated checkpoints":
        (staging / "work/0/done.json").write_text('{"summary": {"n_co')
        (staging / "work/0/shard-000000.json").write_text("")
    phases, run = [], matrices.run

    def record_phase(*args, **options):
        phases.append(options["phase"])
        return run(*args, **options)

    monkeypatch.setattr(matrices, "run", record_phase)
    with caplog.at_level(logging.INFO, "lazypert"):
        store = lp.convert(path, tmp_path / "s.zarr", **ROLES)
    assert "resuming" in caplog.text
    assert_same(store, anndata.read_h5ad(path))
    lp.verify(store)
    assert ("X: writing shards" in phases) == (damage != "none")
    assert files(store) == files(lp.convert(path, tmp_path / "fresh.zarr", **ROLES))


def test_a_source_that_changes_during_the_conversion_is_an_error(tmp_path, monkeypatch):
    path = write(screen(), tmp_path / "a.h5ad")

    def touch_source_and_write(*args):
        os.utime(path, ns=(1, 1))
        write_tables(*args)

    monkeypatch.setattr("lazypert.conversion.convert.write_tables", touch_source_and_write)
    with pytest.raises(SourceFormatError, match="changed while it was being converted"):
        lp.convert(path, tmp_path / "s.zarr", **ROLES)
    assert leftovers(tmp_path, "a.h5ad") == []


def test_a_source_that_changes_while_the_conversion_is_planned_is_an_error(tmp_path, monkeypatch):
    path = write(screen(), tmp_path / "a.h5ad")

    def plan_and_touch_source(*args):
        plan = make_plan(*args)
        os.utime(path, ns=(1, 1))
        return plan

    monkeypatch.setattr("lazypert.conversion.convert.make_plan", plan_and_touch_source)
    with pytest.raises(SourceFormatError, match="changed while it was being converted"):
        lp.convert(path, tmp_path / "s.zarr", **ROLES)
    assert leftovers(tmp_path, "a.h5ad") == []


def test_an_error_in_a_task_leaves_nothing_while_other_tasks_run(tmp_path, big):
    path = shutil.copy(big[0], tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        file["X/indices"][-1] = 10**6
    for _ in range(5):
        with pytest.raises(SourceFormatError, match="X/indices"):
            lp.convert(path, tmp_path / "s.zarr", **ROLES)
        assert leftovers(tmp_path, "a.h5ad") == []


def test_tasks_of_a_lost_worker_are_repeated(big, tmp_path, monkeypatch):
    """A worker of a real cluster is killed, and its tasks run again on another worker."""
    distributed = pytest.importorskip("distributed")
    path, expected = big[0], files(big[1])
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        victims = list(client.run(os.getpid).values())
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


def test_a_target_in_use_fails_at_once(big, tmp_path):
    with StoreWriter(tmp_path / "s.zarr"), pytest.raises(StoreExistsError, match="another process"):
        lp.convert(big[0], tmp_path / "s.zarr", **ROLES)
    lp.convert(big[0], tmp_path / "s.zarr", **ROLES)
