"""On a cluster of processes everything gives the bytes that threads give, and what goes wrong is named."""

import os
import pickle
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import lazypert as lp
from lazypert._internal.cluster import Needs, check_workers
from lazypert._internal.tasks import run
from lazypert.errors import ClusterError, StoreNotFoundError
from tests.support.clusters import blind_worker, kill_a_worker, local_cluster
from tests.support.stores import ROLES, files, leftovers, screen, small_blocks, small_grids, write

pytestmark = pytest.mark.slow
pytest.importorskip("distributed")

QC = {"residual_expression": 0.9, "cell_residual_expression": 0.9, "min_cells": 1}
TARGETS = {"BRCA1": "gene1", "TP53": "gene2", "KRAS": "gene3"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A screen, and its store as threads make it, in several shards; conversion reads several blocks."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        small_grids(patch, 256, 1024)
        small_blocks(patch, 16_000)
        source = write(screen(1_500), folder / "screen.h5ad")
        store = lp.convert(source, folder / "threads.zarr", compression="compact", progress=False, **ROLES)
        yield source, store


@pytest.fixture(scope="module")
def client():
    with local_cluster() as client:
        yield client


def convert(made, target, progress=False, **options):
    return lp.convert(made[0], target, compression="compact", progress=progress, **(ROLES | options))


def knockdown(store, layer=None):
    return lp.open(store).pert.knockdown(**QC, targets=TARGETS, layer=layer).table


# The same bytes.


def test_conversion_equals_that_of_threads(made, client, tmp_path):
    seen = []
    store = convert(made, tmp_path / "s.zarr", progress=seen.append)
    assert files(store) == files(made[1])
    assert leftovers(tmp_path, "s.zarr") == []
    phases = Counter(event.phase for event in seen)
    assert phases["X: reading and sorting"] > 2
    # One task per shard, and one event before the first.
    assert phases["X: writing shards"] == 1 + lp.open(store).pert.store.matrix().data.grid.n_shards > 5


@pytest.mark.parametrize("layer", [None, "lognorm"], ids=["recorded", "streamed"])
def test_quality_control_equals_that_of_threads(made, client, layer):
    found = knockdown(made[1], layer)
    with dask.config.set(scheduler="threads"):
        pd.testing.assert_frame_equal(found, knockdown(made[1], layer))


REDUCTIONS = {
    "sum": lambda ds: ds.X.sum("gene"),
    "mean": lambda ds: ds.X.mean("cell"),
    "selected": lambda ds: ds.pert.select(perturbation="TP53").X.sum(),
    "layer": lambda ds: np.expm1(ds.lognorm).sum("cell"),
    "embedding": lambda ds: ds.X_pca.max("cell"),
    "groups": lambda ds: ds.X.groupby(ds.perturbation.compute()).mean(),
    "aggregate": lambda ds: ds.pert.aggregate(stats="var")["var"],
    "aggregate of all cells": lambda ds: ds.pert.aggregate(by=(), stats="mean")["mean"],
}


@pytest.fixture
def _small_tiles(monkeypatch):
    monkeypatch.setattr("lazypert.analysis.moments._TILE_VALUES", 2_000)


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_equal_those_of_threads(made, client, reduction):
    lazy = REDUCTIONS[reduction](lp.open(made[1]))
    found = lazy.compute()
    with dask.config.set(scheduler="threads"):
        np.testing.assert_array_equal(found.values, lazy.compute().values)


def test_loaders_work_beside_a_client(made, client):
    options = {"split_mode": "random", "mapping_strategy": "random", "enable_knockdown_filter": False}
    batches = []
    for scheduler in ({}, {"scheduler": "threads"}):
        with dask.config.set(**scheduler):
            result = lp.PerturbationPipeline(lp.PerturbationPipelineConfig(**options)).setup([made[1]])
            loader = result.loader("train", sentence_size=8, sentences_per_batch=4, to="numpy")
            batches.append([batch.counts for batch in loader])
    assert len(batches[0]) > 3
    for ours, theirs in zip(*batches, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# Lost workers and interruptions.


@pytest.mark.parametrize("phase", ["X: reading and sorting", "X: writing shards"])
def test_a_killed_worker_changes_nothing_in_a_conversion(made, tmp_path, phase):
    with local_cluster() as client:
        killed = []

        def kill_one(progress):
            if progress.phase == phase and progress.done == 2 and not killed:
                killed.append(kill_a_worker(client))

        store = convert(made, tmp_path / "s.zarr", progress=kill_one)
        assert len(killed) == 1
    assert files(store) == files(made[1])
    assert leftovers(tmp_path, "s.zarr") == []


def test_a_killed_worker_changes_nothing_in_quality_control(made, tmp_path):
    expected = knockdown(made[1], "lognorm")
    with local_cluster() as client:
        pids = set(client.run(os.getpid).values())
        timer = threading.Timer(0.3, os.kill, (min(pids), signal.SIGKILL))
        timer.start()
        while timer.is_alive() or set(client.run(os.getpid, on_error="ignore").values()) == pids:
            pd.testing.assert_frame_equal(knockdown(made[1], "lognorm"), expected)
        pd.testing.assert_frame_equal(knockdown(made[1], "lognorm"), expected)


def test_a_killed_worker_changes_nothing_in_an_aggregate(made, monkeypatch):
    monkeypatch.setattr("lazypert.analysis.moments._TILE_VALUES", 50)  # some hundred tasks
    expected = lp.open(made[1]).pert.aggregate().compute(scheduler="threads")
    with local_cluster() as client:
        future = client.compute(lp.open(made[1]).pert.aggregate())
        kill_a_worker(client)
        assert not future.done()
        xr.testing.assert_identical(future.result(), expected)


def test_an_interrupted_conversion_cancels_its_tasks_and_resumes(made, client, tmp_path):
    def interrupt(progress):
        if progress.phase == "X: writing shards" and progress.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(made, tmp_path / "s.zarr", progress=interrupt)
    deadline = time.monotonic() + 30
    while any(client.processing().values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(client.processing().values())
    assert not client.futures
    (partial,) = leftovers(tmp_path, "s.zarr.partial.lock")
    assert files(convert(made, tmp_path / "s.zarr")) == files(made[1])
    assert not (tmp_path / partial).exists()


def test_a_lost_cluster_is_named_and_the_conversion_resumes(made, tmp_path):
    with local_cluster() as client:

        def lose(progress):
            if progress.phase == "X: writing shards" and progress.done == 1:
                client.cluster.close()

        with pytest.raises(ClusterError, match=r"The Dask cluster was lost .* run the same call again"):
            convert(made, tmp_path / "s.zarr", progress=lose)
    assert len(leftovers(tmp_path, "s.zarr.partial.lock")) == 1
    assert files(convert(made, tmp_path / "s.zarr")) == files(made[1])


# Workers that lack something.


def test_a_worker_without_the_folder_is_named_before_work_begins(made, client, tmp_path):
    before = sorted(path.name for path in made[0].parent.iterdir())
    with blind_worker(client, made[0].parent) as address:
        seen = []
        with pytest.raises(ClusterError, match=rf"'{address}' cannot see '{made[0]}'.* Nothing was written"):
            convert(made, tmp_path / "s.zarr", progress=seen.append)
        assert seen == []
        assert list(tmp_path.iterdir()) == []
    assert sorted(path.name for path in made[0].parent.iterdir()) == before


def test_a_worker_without_the_target_is_named_before_work_begins(made, client, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    with blind_worker(client, target) as address:
        with pytest.raises(ClusterError, match=rf"'{address}' cannot see '{target}/.*where the client writes"):
            convert(made, target / "s.zarr")
        assert list(target.iterdir()) == []


def test_a_worker_without_the_store_is_named(made, client):
    ds = lp.open(made[1])
    with blind_worker(client, made[1].parent) as address:
        with pytest.raises(ClusterError, match=rf"'{address}' cannot read the store: .*does not see it"):
            knockdown(made[1], "lognorm")
        with (
            dask.annotate(workers=[address]),
            pytest.raises(StoreNotFoundError, match=rf"'{address}' \(name 'blind'\) sees no store at .*not damaged"),
        ):
            ds.X.sum().compute(optimize_graph=False)


def test_a_worker_that_joins_later_is_named_by_its_first_task(made, client, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    entered = []

    def join(progress):
        if progress.phase == "X: writing shards" and progress.done == 0 and not entered:
            context = blind_worker(client, target)
            entered.append((context, context.__enter__()))
            for pid_of in client.run(os.getpid).items():
                if pid_of[0] != entered[0][1]:
                    client.retire_workers([pid_of[0]])  # so that all tasks go to the new one

    with local_cluster() as client:
        try:
            with pytest.raises(ClusterError, match=r"\(name 'blind'\) cannot see .*What is finished is kept"):
                convert(made, target / "s.zarr", progress=join)
        finally:
            for context, _ in entered:
                context.__exit__(None, None, None)
    assert len(leftovers(target, "s.zarr.partial.lock")) == 1
    assert files(convert(made, target / "s.zarr")) == files(made[1])


def test_a_worker_with_another_version_is_named(client):
    needs = Needs((), "Install it.", "0.0.1")
    with pytest.raises(ClusterError, match=r"has lazypert \S+, and the client 0\.0\.1.* So do 1 of the 1 other"):
        check_workers(needs)


def test_a_closed_cluster_is_named():
    with local_cluster() as client:
        client.cluster.close()
        deadline = time.monotonic() + 30
        while client.status == "running" and time.monotonic() < deadline:
            time.sleep(0.1)
        with pytest.raises(ClusterError, match=r"The active Dask client is '\w+', expected 'running'"):
            run(abs, [(1,)], workers=1, phase="p", size=lambda _: 0, report=None)


# What travels.


@dataclass
class Table:
    """A table that writes down where it was unpickled, other than by the client and the scheduler."""

    notes: Path
    values: bytes

    def __setstate__(self, state):
        self.__dict__.update(state)
        with self.notes.open("a") as file:
            file.write(f"{os.getpid()}\n")


def _use(number, table):
    time.sleep(0.02)
    return number + len(table.values)


def test_shared_tables_travel_to_each_worker_once(client, tmp_path):
    notes = tmp_path / "notes"
    table = Table(notes, bytes(100_000))
    results = run(_use, [(n, table) for n in range(40)], workers=2, phase="p", size=lambda _: 0, report=None)
    assert results == [n + 100_000 for n in range(40)]
    workers = set(client.run(os.getpid).values())
    times = Counter(int(line) for line in notes.read_text().split())
    assert all(n <= 2 for pid, n in times.items() if pid in workers), times  # once more if it is fetched from a peer


def test_graphs_grow_with_shards_and_not_with_cells(tmp_path):
    """Four times the cells in the same number of shards make no larger graph, and no larger tasks."""
    sizes, counts, aggregates = [], [], []
    for n_obs in (500, 2_000):
        source = write(screen(n_obs, lean=True), tmp_path / f"{n_obs}.h5ad")
        store = lp.convert(source, tmp_path / f"{n_obs}.zarr", progress=False, **ROLES)
        x = lp.open(store).X
        counts.append(len(dict(x.sum("cell").data.__dask_graph__())))
        sizes.append(len(pickle.dumps(dict(x.data.__dask_graph__()))))
        aggregates.append(len(dict(lp.open(store).pert.aggregate().__dask_graph__())))
    assert counts[0] == counts[1]
    assert aggregates[0] == aggregates[1]
    assert sizes[1] < sizes[0] + 500
