"""Conversion from and to an S3 server: the same bytes as local ones, one clear error for each thing that is wrong."""

import json
import os
import pickle
import signal
import subprocess
import sys
import urllib.request

import h5py
import numpy as np
import pytest

import lazypert as lp
from lazypert.conversion import target_claim
from lazypert.errors import (
    ConfigError,
    MachineError,
    SourceFormatError,
    SourceMissingError,
    StoreExistsError,
    StoreNotFoundError,
)
from lazypert.simulate import SimulationConfig, simulate_screen
from lazypert.store.remote_file import RemoteFile
from lazypert.store.unfinished import CLAIM
from tests.support.stores import ROLES, screen

pytestmark = pytest.mark.slow
URL = "s3://bucket/screen.zarr"


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("moto.server")
    pytest.importorskip("obstore")
    from tests.support.s3_server import S3Server

    running = S3Server()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def _empty(request):
    """Empty the bucket, and forget the requests."""
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").clear()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A screen in an .h5ad file, and its local store."""
    folder = tmp_path_factory.mktemp("s3")
    path = folder / "screen.h5ad"
    simulate_screen(path, SimulationConfig(n_cells=1500, n_genes=300, nnz_per_cell=100))
    return path, lp.convert(path, folder / "screen.zarr", **ROLES)


@pytest.fixture
def to_s3(server, tmp_path):
    """Convert to the bucket with temporary files in a folder of the test."""

    def convert(source, url=URL, **options):
        options = {
            "storage_options": server.options,
            "source_storage_options": {},
            "work_dir": tmp_path / "work",
            "compression": "fast",  # as local stores have it
        } | options
        return lp.convert(source, url, **ROLES, **options)

    return convert


def files(store):
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def without_sources(found):
    """Files of a store, and its root metadata without what tells when the source was written, and digests of it."""
    root = json.loads(found["zarr.json"])
    attrs = root["attributes"]["lazypert"]
    for source in attrs["sources"]:
        del source["mtime_ns"]
    del attrs["root_digest"]
    return {key: data for key, data in found.items() if key != "zarr.json"}, root


def partial(server):
    return [key for key in server.objects("") if "partial" in key]


def test_every_object_has_the_bytes_of_the_local_file(server, made, to_s3, tmp_path):
    source, local = made
    server.requests.clear()
    assert to_s3(source) == URL
    assert server.objects("screen.zarr/") == files(local)
    assert list((tmp_path / "work").iterdir()) == []
    assert partial(server) == []
    puts = [path for method, path, _ in server.requests if method == "PUT" and not path.endswith(CLAIM)]
    assert len(puts) == len(set(puts)) == len(files(local)), "each object is sent once"
    assert puts[-1] == "/bucket/screen.zarr/zarr.json"
    assert lp.verify(URL, storage_options=server.options) == lp.verify(local)
    np.testing.assert_array_equal(lp.open(URL, storage_options=server.options).X.values, lp.open(local).X.values)


def test_a_file_is_read_once_in_large_ranges(server, made, tmp_path):
    source, local = made
    url, size = server.upload(source, "in/screen.h5ad"), source.stat().st_size
    server.requests.clear()
    store = lp.convert(url, tmp_path / "s.zarr", **ROLES, storage_options=server.options)
    assert without_sources(files(store)) == without_sources(files(local))
    assert server.bytes_read("screen.h5ad", size) <= 1.2 * size
    assert len(server.requests) <= 20


@pytest.mark.parametrize("layout", ["plain", "gzip", "csc", "dense"])
def test_every_layout_is_read_by_ranges(layout, server, tmp_path):
    adata = screen(800, 60)
    if layout == "csc":
        adata.X = adata.X.tocsc()
    if layout == "dense":
        adata.X = adata.X.toarray()
    path = tmp_path / "a.h5ad"
    adata.write_h5ad(path, compression="gzip" if layout == "gzip" else None)
    local = lp.convert(path, tmp_path / "local.zarr", **ROLES)
    remote = lp.convert(server.upload(path, "a.h5ad"), tmp_path / "r.zarr", **ROLES, storage_options=server.options)
    assert without_sources(files(remote)) == without_sources(files(local))


def test_stores_and_anndata_zarr_are_sources_too(server, made, to_s3, tmp_path):
    source, local = made
    to_s3(source)
    again = lp.convert(URL, tmp_path / "again.zarr", **ROLES, storage_options=server.options)
    np.testing.assert_array_equal(lp.open(again).X.values, lp.open(local).X.values)
    both = lp.convert([URL, source], tmp_path / "both.zarr", **ROLES, storage_options=server.options)
    assert lp.open(both).sizes["cell"] == 2 * lp.open(local).sizes["cell"]


def test_wrong_options_are_an_error_each_and_leave_nothing(server, made, to_s3, tmp_path):
    source = made[0]
    good = server.impatient
    cases = [
        ("s3://nowhere/s.zarr", good, MachineError, "no such bucket"),
        ("s3://bucket/s.zarr", {**good, "nonsense": "1"}, ConfigError, "nonsense"),
        ("s3://bucket/s.zarr", {**good, "endpoint_url": "http://127.0.0.1:9"}, MachineError, "cannot be reached"),
        ("zz://bucket/s.zarr", {}, ConfigError, "zz"),
        ("https://example.com/s.zarr", {}, ConfigError, "cannot be written over HTTP"),
        ("s3://bucket", good, ConfigError, "s3://bucket/screen.zarr"),
    ]
    for url, options, kind, says in cases:
        with pytest.raises(kind, match=says) as caught:
            to_s3(source, url, storage_options=options)
        assert "very-secret" not in str(caught.value)
    for url in ("s3://bucket/none.h5ad", "s3://nowhere/none.h5ad"):
        with pytest.raises((SourceMissingError, MachineError)):
            lp.convert(url, tmp_path / "s.zarr", **ROLES, storage_options=good)
    assert server.objects("") == {}


def test_wrong_credentials_are_an_error(server, made, to_s3):
    address = server.options["endpoint_url"]

    def require_credentials(n_free):
        body, kind = str(n_free).encode(), {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{address}/moto-api/reset-auth", body, kind)).close()

    require_credentials(0)
    try:
        with pytest.raises(PermissionError, match="access is denied") as caught:
            to_s3(made[0])
        assert "very-secret" not in str(caught.value)
    finally:
        require_credentials(10**9)
    to_s3(made[0])


def test_a_server_that_goes_away_leaves_no_store_and_the_same_call_resumes(server, made, to_s3):
    source, local = made
    n_put = []

    def fail_after_some(method, path):
        n_put.extend([path] if method == "PUT" and "/c/" in path else [])
        return len(n_put) > 6

    with server.answering(fail_after_some), pytest.raises(MachineError, match="cannot be written"):
        to_s3(source, storage_options=server.impatient)
    with pytest.raises(StoreNotFoundError, match="unfinished"):
        lp.open(URL, storage_options=server.options)
    server.requests.clear()
    to_s3(source)
    assert server.objects("screen.zarr/") == files(local)
    assert partial(server) == []


def test_answers_that_fail_now_and_then_change_nothing(server, made, to_s3):
    count = iter(range(10**9))
    with server.answering(lambda *_: next(count) % 7 == 3):
        to_s3(made[0], storage_options={**server.options, "max_retries": 5})
    assert server.objects("screen.zarr/") == files(made[1])


SCRIPT = """
import sys, json, lazypert as lp
options = json.loads(sys.argv[1])
lp.convert(sys.argv[2], sys.argv[3], **json.loads(sys.argv[4]), storage_options=options, source_storage_options={},
           work_dir=sys.argv[5], overwrite=len(sys.argv) > 6, progress=False, compression="fast")
"""


def run_killed(server, source, work, kill_when, *more):
    """Convert in another process, and kill it as soon as a request fulfils a condition."""
    arguments = [json.dumps(server.impatient), str(source), URL, json.dumps(ROLES), str(work), *more]
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stderr=subprocess.DEVNULL)
    killed = []

    def kill(method, path):
        if not killed and kill_when(method, path):
            killed.append(path)
            os.kill(child.pid, signal.SIGKILL)
        return bool(killed)

    with server.answering(kill):
        child.wait()
    assert killed


@pytest.mark.parametrize("last", ["X/data/c/0", "X/indices/c/0", "obs/zarr.json", "/screen.zarr/zarr.json"])
def test_a_killed_conversion_resumes_at_once_on_the_same_machine(last, server, made, to_s3, tmp_path):
    source, local = made
    run_killed(server, source, tmp_path / "work", lambda method, path: method == "PUT" and path.endswith(last))
    with pytest.raises(StoreNotFoundError):
        lp.open(URL, storage_options=server.options)
    with pytest.raises(StoreExistsError, match="another process"):
        to_s3(source, work_dir=tmp_path / "another machine")
    to_s3(source)
    assert server.objects("screen.zarr/") == files(local)
    assert partial(server) == []


def test_a_claim_that_has_expired_is_taken_over(server, made, to_s3, tmp_path, monkeypatch):
    run_killed(server, made[0], tmp_path / "work", lambda method, path: path.endswith("obs/zarr.json"))
    server.client.put_object(Bucket="bucket", Key="screen.zarr/X/data/c/77", Body=b"left")
    monkeypatch.setattr(target_claim, "EXPIRY", 0.0)
    to_s3(made[0], work_dir=tmp_path / "another machine")
    assert server.objects("screen.zarr/") == files(made[1])


def test_an_existing_store_stays_until_the_new_one_is_complete(server, made, to_s3, tmp_path):
    source = made[0]
    to_s3(source)
    before = server.objects("screen.zarr/")
    other = tmp_path / "screen.h5ad"
    simulate_screen(other, SimulationConfig(n_cells=1000, n_genes=100, nnz_per_cell=20, seed=5))
    with pytest.raises(StoreExistsError, match="overwrite=True"):
        to_s3(other)
    fail = lambda method, path: method == "PUT" and path.endswith("var/zarr.json")  # noqa: E731
    with server.answering(fail), pytest.raises(MachineError):
        to_s3(other, overwrite=True, storage_options=server.impatient)
    assert {key: data for key, data in server.objects("screen.zarr/").items() if key != CLAIM} == before
    assert lp.verify(URL, storage_options=server.options)
    to_s3(other, overwrite=True)
    assert server.objects("screen.zarr/") == files(lp.convert(other, tmp_path / "other.zarr", **ROLES))
    assert partial(server) == []


def test_a_replacement_that_is_killed_halfway_is_no_store_and_is_completed(server, made, to_s3, tmp_path):
    source, local = made
    other = tmp_path / "screen.h5ad"
    simulate_screen(other, SimulationConfig(n_cells=1000, n_genes=100, nnz_per_cell=20, seed=5))
    to_s3(other)
    is_copy = lambda method, path: method == "PUT" and path.endswith("/screen.zarr/X/indices/c/0")  # noqa: E731
    run_killed(server, source, tmp_path / "work", is_copy, "overwrite")
    with pytest.raises(StoreNotFoundError, match="unfinished"):
        lp.open(URL, storage_options=server.options)
    to_s3(source)
    assert server.objects("screen.zarr/") == files(local)
    assert partial(server) == []


def test_other_objects_are_never_deleted(server, made, to_s3):
    server.client.put_object(Bucket="bucket", Key="screen.zarr/notes.txt", Body=b"mine")
    for overwrite in (False, True):
        with pytest.raises(StoreExistsError, match="not a Zarr store"):
            to_s3(made[0], overwrite=overwrite)
    assert server.objects("") == {"screen.zarr/notes.txt": b"mine"}


def test_an_error_of_the_source_leaves_no_object(server, to_s3, tmp_path):
    path = tmp_path / "bad.h5ad"
    screen(200, 30).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        file["X/indices"][7] = 10_000
    with pytest.raises(SourceFormatError, match="10000"):
        to_s3(path)
    assert server.objects("") == {}


def test_a_file_that_changes_is_refused(server, made, tmp_path):
    source = made[0]
    url = server.upload(source, "in/screen.h5ad")

    def change(method, path):
        if method == "GET" and not server.client.head_object(Bucket="bucket", Key="in/screen.h5ad")["Metadata"]:
            server.on_request = None
            server.client.put_object(Bucket="bucket", Key="in/screen.h5ad", Body=source.read_bytes()[::-1])

    with server.answering(change), pytest.raises(SourceFormatError, match="changed"):
        lp.convert(url, tmp_path / "s.zarr", **ROLES, storage_options=server.options)
    assert list(tmp_path.iterdir()) == []


def test_a_remote_file_pickles_and_keeps_its_version(server, made):
    file = RemoteFile(server.upload(made[0], "in/screen.h5ad"), server.options)
    again = pickle.loads(pickle.dumps(file))
    assert again.version == file.version
    assert again.read(0, 8) == b"\x89HDF\r\n\x1a\n"
    assert "very-secret" not in repr(again) + str(again)


def test_workers_of_a_cluster_read_and_send_by_themselves(server, made, to_s3, tmp_path):
    from distributed import Client, LocalCluster

    url = server.upload(made[0], "screen.h5ad")
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "local_directory": str(tmp_path)}
    with LocalCluster(**settings) as cluster, Client(cluster):
        to_s3(url, source_storage_options=server.options, progress=False)
    assert without_sources(server.objects("screen.zarr/")) == without_sources(files(made[1]))
