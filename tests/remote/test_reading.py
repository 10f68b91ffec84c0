"""Stores behind a server: few requests, results as of the local store, and errors that say what to do."""

import collections
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import xarray as xr

import lazypert as lp
from benchmarks.range_server import RangeServer
from lazypert.errors import (
    AccessDeniedError,
    ConfigError,
    MachineError,
    StorageError,
    StoreChangedError,
    StoreDamagedError,
    StoreNotFoundError,
)
from lazypert.simulate import reference_screen
from lazypert.store.disk_cache import DiskCache
from lazypert.store.remote_reader import RemoteReader
from lazypert.store.store import Store
from tests.support.loaders import FIELDS, loader_of
from tests.support.stores import ROLES, small_grids

FAST = {"max_retries": 2, "request_timeout": 5}


@pytest.fixture
def server(reference):
    server = RangeServer(reference.store)
    yield server
    server.stop()


def source_of(where, **options):
    return lp.PerturbationAnnDataSource(lp.PerturbationSourceConfig(file_path=where, **options))


def epoch(source, **options):
    return [fields_of(batch) for batch in loader_of(source, **options)]


def fields_of(batch):
    return {name: np.asarray(getattr(batch, name)) for name in FIELDS}


def assert_equal_epochs(first, second):
    assert len(first) == len(second) > 3
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_opening_and_tables_take_few_requests(server, reference):
    local = lp.open(reference.store)
    with server.recording() as opening:
        ds = lp.open(server.url)
    assert len(opening) <= 8
    assert sum(request.n_bytes for request in opening) < 200_000
    with server.recording() as first:
        table = ds.pert.table()
    assert len(first) <= 16
    xr.testing.assert_equal(xr.Dataset.from_dataframe(table), xr.Dataset.from_dataframe(local.pert.table()))
    with server.recording() as later:
        for name in ("TP53", "KRAS"):
            ours, theirs = (one.pert.select(perturbation=name) for one in (ds, local))
            assert ours.pert.table().equals(theirs.pert.table())
    assert later == []


def test_matrix_reads_take_one_request_per_array(server, reference):
    ds, local = lp.open(server.url), lp.open(reference.store)
    with server.recording() as requests:
        mean = ds.X.mean("cell").compute()
    keys = collections.Counter(request.key for request in requests if request.method == "GET")
    assert keys == {"X/indptr/c/0": 1, "X/indices/c/0": 1, "X/data/c/0": 1}
    np.testing.assert_array_equal(mean, local.X.mean("cell").compute())
    with server.recording() as again:
        ds.X.mean("cell").compute()
    assert again == []


def test_epochs_equal_the_local_ones_also_from_the_cache(server, reference, tmp_path):
    expected = epoch(reference.source)
    assert_equal_epochs(epoch(source_of(server.url)), expected)
    with server.recording() as cold:
        assert_equal_epochs(epoch(source_of(server.url, cache_dir=tmp_path / "cache")), expected)
    with server.recording() as warm:
        assert_equal_epochs(epoch(source_of(server.url, cache_dir=tmp_path / "cache")), expected)
    assert sum(request.n_bytes for request in cold) > 100_000
    # The root metadata are read once, and asked for without their body.
    assert [request.key for request in warm if request.method == "GET"] == ["zarr.json"]
    assert {request.key for request in warm} == {"zarr.json"}


def test_failing_answers_change_nothing(server, reference):
    server.failure_rate = 0.05
    expected = epoch(reference.source)
    for _ in range(3):
        assert_equal_epochs(epoch(source_of(server.url, storage_options={"max_retries": 8})), expected)
    assert lp.verify(server.url, storage_options={"max_retries": 8}) == lp.verify(reference.store)
    assert any(request.status in (0, 503) for request in server.requests)


def test_requests_are_made_at_a_time(tmp_path, monkeypatch):
    """Many shards of many chunks, of which scattered rows need a few each."""
    small_grids(monkeypatch, 64, 1024)
    monkeypatch.setattr("lazypert.store.sharded_chunks._SMALL", 0)
    monkeypatch.setattr(RemoteReader, "coalescing_gap", 64)
    path = lp.convert(reference_screen(tmp_path / "screen.h5ad"), tmp_path / "screen.zarr", **ROLES)
    expected, rows = Store(path).matrix().read_rows(np.arange(0, 900, 9)), np.arange(0, 900, 9)
    server = RangeServer(path, latency=0.05)
    try:
        matrix = Store(server.url).matrix()
        matrix.row_lengths(rows)
        with server.recording() as requests:
            found = matrix.read_rows(rows)
        assert len(requests) > 50
        assert server.most_active > 20
        np.testing.assert_array_equal(found.data, expected.data)
        np.testing.assert_array_equal(found.indices, expected.indices)
    finally:
        server.stop()


# The cache.


def cached_files(folder, kind):
    return sorted(folder.glob(f"*/*.{kind}"))


def test_a_damaged_cache_is_read_again(server, reference, tmp_path):
    expected = Store(reference.store).matrix().read(0, 900)
    Store(server.url, cache_dir=tmp_path).matrix().read(0, 900)
    blocks = cached_files(tmp_path, "blocks")
    assert len(blocks) == 3
    for path in [*blocks, *cached_files(tmp_path, "whole")]:
        content = bytearray(path.read_bytes())
        content[-len(content) // 4] ^= 1
        path.write_bytes(content)
    with server.recording() as requests:
        found = Store(server.url, cache_dir=tmp_path).matrix().read(0, 900)
    np.testing.assert_array_equal(found.data, expected.data)
    assert sum(request.key.startswith("X/") for request in requests) >= 3
    with server.recording() as requests:
        Store(server.url, cache_dir=tmp_path).matrix().read(0, 900)
    assert not any(request.key.startswith("X/") for request in requests)


def test_the_cache_keeps_its_limit_and_what_was_used_last(tmp_path):
    rng, limit = np.random.default_rng(0), 4 * 1024**2
    cache = DiskCache(tmp_path, limit, "one")
    other = DiskCache(tmp_path, limit, "another")
    bodies = {f"key{i}": rng.bytes(300_000) for i in range(40)}
    for key, body in bodies.items():
        (cache if rng.random() < 0.5 else other).save(key, body)
    total = sum(path.stat().st_blocks * 512 for path in tmp_path.glob("*/*"))
    assert total < limit * 1.1
    assert (cache.load("key39") or other.load("key39")) == bodies["key39"]
    assert cache.load("key0") is other.load("key0") is None


def test_a_cache_folder_that_cannot_be_written_to(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cache_dir: .*Choose another folder"):
        lp.open(server.url, cache_dir=tmp_path / "file")
    with pytest.raises(ConfigError, match="cache_size: got 'much'"):
        lp.open(server.url, cache_dir=tmp_path, cache_size="much")


# Stores that are replaced.


def test_a_replaced_store_is_noticed(tmp_path, reference):
    folder = tmp_path / "served.zarr"
    shutil.copytree(reference.store, folder)
    server = RangeServer(folder)
    try:
        source = source_of(server.url, cache_dir=tmp_path / "cache")
        ds = lp.open(server.url)
        shutil.rmtree(folder)
        lp.convert(reference_screen(tmp_path / "other.h5ad", seed=2), folder, **ROLES)
        with pytest.raises(StoreChangedError, match="was replaced"):
            epoch(source)
        with pytest.raises(StoreChangedError, match="was replaced"):
            ds.X.sum().compute()
        fresh = lp.open(server.url, cache_dir=tmp_path / "cache")
        np.testing.assert_array_equal(fresh.X.sum("gene").compute(), lp.open(folder).X.sum("gene").compute())
        (folder / "zarr.json").unlink()  # as while it is overwritten
        with pytest.raises(StoreChangedError, match="was replaced"):
            fresh["total_counts"].to_numpy()
    finally:
        server.stop()


def test_the_cache_never_keeps_indexes_of_another_version(tmp_path, reference):
    """They are not asked for again, so those of a new store would fit its chunks, and not the old tables."""
    folder, cache = tmp_path / "served.zarr", tmp_path / "cache"
    shutil.copytree(reference.store, folder)
    server = RangeServer(folder)
    try:
        store = Store(server.url, cache_dir=cache)
        shutil.rmtree(folder)
        lp.convert(reference_screen(tmp_path / "other.h5ad", seed=2), folder, **ROLES)
        for _ in range(2):
            with pytest.raises(StoreChangedError, match="was replaced"):
                store.matrix().read(0, 900)
        shutil.rmtree(folder)
        shutil.copytree(reference.store, folder)
        found = Store(server.url, cache_dir=cache).matrix().read(0, 900)
        np.testing.assert_array_equal(found.data, Store(reference.store).matrix().read(0, 900).data)
    finally:
        server.stop()


def test_damage_is_told_from_trouble(tmp_path, reference):
    folder = tmp_path / "served.zarr"
    shutil.copytree(reference.store, folder)
    server = RangeServer(folder)
    try:
        (folder / "X/data/c/0").write_bytes((folder / "X/data/c/0").read_bytes()[:-100])
        with pytest.raises(StoreDamagedError, match="X/data/c/0"):
            lp.open(server.url).X.sum().compute()
        with pytest.raises(StoreDamagedError, match="X/data/c/0: got"):
            lp.verify(server.url)
        (folder / "X/data/c/0").unlink()
        with pytest.raises(StoreDamagedError, match="the file is missing"):
            lp.open(server.url).X.sum().compute()
        with pytest.raises(StoreDamagedError, match="X/data/c/0: missing"):
            lp.verify(server.url)
    finally:
        server.stop()


# Errors.


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (403, AccessDeniedError, "access is denied"),
        (401, AccessDeniedError, "access is denied"),
        (404, StoreNotFoundError, "no zarr.json"),
        (500, StorageError, "does not mean that it is damaged"),
        (503, StorageError, "does not mean that it is damaged"),
    ],
)
def test_answers_of_the_server(server, status, error, words):
    server.status = status
    with pytest.raises(error, match=words) as caught:
        lp.open(server.url, storage_options={"max_retries": 1})
    assert "convert" not in str(caught.value) or status == 404
    assert len(str(caught.value)) < 1_000


def test_a_server_that_is_down_or_slow(server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(StorageError, match="cannot be reached"):
        lp.open(f"http://127.0.0.1:{port}", storage_options={"max_retries": 1})
    server.hangs = True
    try:
        with pytest.raises(StorageError, match=r"did not answer in time.*request_timeout"):
            lp.open(server.url, storage_options={"request_timeout": 0.2})
    finally:
        server.hangs = False


def test_an_epoch_goes_on_after_the_server_came_back(server, reference, monkeypatch):
    monkeypatch.setattr("lazypert.store.sharded_chunks._SMALL", 0)  # so small a store would be in memory
    expected = epoch(reference.source, shuffle_size=28)
    source = source_of(server.url, storage_options={"max_retries": 0})
    found, batches = [], iter(loader_of(source, shuffle_size=28, prefetch=1, threads=1))
    found.append(next(batches))
    server.status = 503
    with pytest.raises(StorageError, match="does not mean that it is damaged"):
        found.extend(batches)
    server.status = None
    assert 1 <= len(found) < len(expected)
    found.extend(batches)  # from where it stopped
    assert_equal_epochs([fields_of(batch) for batch in found], expected)


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("s3://bucket/x", {"kee": "1"}, "got the option 'kee'.*Did you mean 'key'"),
        ("s3://bucket/x", {"key": 1}, "type int for 'access_key_id'"),
        ("s3://bucket/x", {"endpoint_url": "localhost:9000"}, "got a text that is not the URL of a server"),
        ("s3://bucket/x", {"endpoint_url": "http://me:pass/word@localhost"}, "got a text that is not the URL"),
        ("memory://x", {"kee": "1"}, "got the option 'kee'"),
        ("nosuch://x", {}, "protocol 'nosuch' is unknown"),
        ("http://127.0.0.1:1/x", {"request_timeout": "soon"}, "request_timeout: got 'soon'"),
        ("http://127.0.0.1:1/x", {"max_retries": -1}, "max_retries: got -1"),
        ("gs://bucket/x", {"project": "p"}, "pip install gcsfs"),
    ],
)
def test_options_that_cannot_be_used(url, options, words):
    with pytest.raises(ConfigError, match=words):
        lp.open(url, storage_options=options)


def test_messages_show_no_credentials(server):
    secret = "wJalrXUtnFEMI-bPxRfiCY"
    options = {"key": "AKIAEXAMPLE", "secret": secret, "endpoint_url": server.url, "max_retries": 0}
    server.status = 403
    with pytest.raises(AccessDeniedError) as caught:
        lp.open("s3://bucket/x", storage_options=options)
    shown = f"{caught.value} {caught.value.__cause__} {caught.getrepr(style='short')}"
    assert secret not in str(caught.value)
    assert secret not in shown.partition("options = ")[0]
    assert caught.value.__cause__ is None
    assert isinstance(caught.value, MachineError | PermissionError)


# Ctrl-C.

_HANGING = """
    import socket, sys, threading
    import lazypert as lp
    from benchmarks.range_server import RangeServer

    server = RangeServer(sys.argv[1])
    if sys.argv[2] == "open":
        server.hangs = True
        work = lambda: lp.open(server.url)
    elif sys.argv[2] == "verify":
        lp.open(server.url)
        def work():
            threading.Timer(0.3, lambda: setattr(server, "hangs", True)).start()
            while True:
                lp.verify(server.url)
    elif sys.argv[2] == "mean":
        ds = lp.open(server.url)
        server.hangs = True
        work = lambda: ds.X.mean("cell").compute()
    else:
        from tests.support.loaders import loader_of
        source = lp.PerturbationAnnDataSource(lp.PerturbationSourceConfig(file_path=server.url))
        loader = loader_of(source)
        server.hangs = True
        work = lambda: list(loader)
    print("ready", flush=True)
    try:
        work()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["open", "verify", "mean", "loader"])
def test_one_interruption_ends_the_wait_for_a_hanging_server(reference, operation):
    command = [sys.executable, "-c", textwrap.dedent(_HANGING), str(reference.store), operation]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=15)
        assert out == "interrupted\n", errors
    finally:
        process.kill()


# Zarr stores.


def test_zarr_stores_are_opened(reference, tmp_path):
    from obstore.store import LocalStore as ObstoreFolder
    from zarr.storage import LocalStore, MemoryStore, ObjectStore, ZipStore

    local = lp.open(reference.store).X.sum("gene").compute()
    memory = MemoryStore({path.relative_to(reference.store).as_posix(): _buffer(path) for path in _files(reference)})
    archive = shutil.make_archive(str(tmp_path / "screen"), "zip", reference.store)
    stores = [
        LocalStore(reference.store),
        ObjectStore(ObstoreFolder(reference.store)),
        memory,
        ZipStore(archive, mode="r"),
    ]
    for store in stores:
        ds = lp.open(store)
        np.testing.assert_array_equal(ds.X.sum("gene").compute(), local)
        assert ds.pert.table().equals(lp.open(reference.store).pert.table())
        assert lp.verify(store) == lp.verify(reference.store)
    expected = epoch(reference.source)
    for store in stores[1:3]:
        assert_equal_epochs(epoch(source_of(store)), expected)
    again = pickle.loads(pickle.dumps(lp.open(stores[1])))
    np.testing.assert_array_equal(again.X.sum("gene").compute(), local)


def test_a_session_of_icechunk_is_opened(reference):
    icechunk = pytest.importorskip("icechunk")
    from zarr.core.sync import sync

    repository = icechunk.Repository.create(icechunk.in_memory_storage())
    session = repository.writable_session("main")
    for path in sorted(_files(reference), key=lambda path: (path.name != "zarr.json", path)):
        sync(session.store.set(path.relative_to(reference.store).as_posix(), _buffer(path)))
    session.commit("a screen")
    ds = lp.open(repository.readonly_session("main").store)
    np.testing.assert_array_equal(ds.X.sum("gene").compute(), lp.open(reference.store).X.sum("gene").compute())


def _files(reference):
    return [path for path in reference.store.rglob("*") if path.is_file()]


def _buffer(path):
    from zarr.core.buffer import default_buffer_prototype

    return default_buffer_prototype().buffer.from_bytes(path.read_bytes())
