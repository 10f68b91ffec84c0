"""Updates of a store in S3: an error for each thing that is wrong, processes that are killed, secrets."""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import traceback
import urllib.request

import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert._cli import main
from lazypert.errors import AccessDeniedError, ConfigError, MachineError, StorageError, StoreNotFoundError
from lazypert.store import instance_credentials, object_clients
from lazypert.store.object_folder import ObjectFolder
from lazypert.store.store import Store
from tests.support.appended import files_of
from tests.support.killer import files
from tests.support.stores import ROLES

pytestmark = pytest.mark.slow
URL = "s3://bucket/s.zarr"
SECRET = "MARKER-SECRET-123"


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("moto.server")
    pytest.importorskip("obstore")
    from tests.support.s3_server import S3Server

    running = S3Server()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A local store, and a file to append to it."""
    folder = tmp_path_factory.mktemp("made")
    one, two = files_of(folder, lean=True)
    return lp.convert(one, folder / "s.zarr", progress=False, **ROLES), two


@pytest.fixture
def options(server, made):
    """Put the store into the bucket, and return the options for it."""
    server.clear()
    for key, data in files(made[0]).items():
        server.client.put_object(Bucket="bucket", Key=f"s.zarr/{key}", Body=data)
    server.requests.clear()
    return server.impatient


def table(options):
    names = lp.open(URL, storage_options=options).cell_name.to_numpy()
    return pd.DataFrame({"guide": [f"g{i % 3}" for i in range(len(names))]}, index=names)


@pytest.mark.parametrize("package", ["obstore", "s3fs"])
def test_each_package_gives_the_bytes_of_a_local_update(options, made, tmp_path, server, package):
    pytest.importorskip(package)
    options |= {"use_ssl": False} if package == "s3fs" else {}  # an option that only s3fs has
    local, rows = shutil.copytree(made[0], tmp_path / "s.zarr"), table(options)
    lp.add_obs(local, rows)
    server.requests.clear()
    lp.add_obs(URL, rows, storage_options=options, work_dir=tmp_path / "work")
    assert server.objects("s.zarr/") == files(local)
    assert not [path for method, path, _ in server.requests if method == "PUT" and "/X/" in path]
    lp.append(URL, made[1], storage_options=options, work_dir=tmp_path / "work", progress=False)
    lp.append(local, made[1], progress=False)
    sent, expected = server.objects("s.zarr/"), files(local)
    assert sent.keys() == expected.keys()
    assert {key for key in sent if sent[key] != expected[key]} <= {"zarr.json"}, "the root says when it was"
    assert lp.verify(URL, storage_options=options) == lp.verify(local)
    assert list((tmp_path / "work").iterdir()) == []


def test_wrong_options_are_an_error_each_and_change_nothing(options, made, server, tmp_path):
    rows, before = table(options), server.objects("")
    cases = [
        ("s3://nowhere/s.zarr", {}, StorageError, "no such bucket"),
        ("s3://bucket/t.zarr", {}, StoreNotFoundError, r"no zarr\.json"),
        (URL, {"nonsense": "1"}, ConfigError, "nonsense"),
        (URL, {"endpoint_url": "http://127.0.0.1:9"}, StorageError, "cannot be reached"),
        (URL, {"max_retries": -1}, ConfigError, "max_retries"),
        ("s3://bucket", {}, ConfigError, "s3://bucket"),
    ]
    for url, given, kind, says in cases:
        with pytest.raises(kind, match=says) as caught:
            lp.add_obs(url, rows, storage_options=options | given, work_dir=tmp_path)
        assert "very-secret" not in str(caught.value)
    for source in ("s3://bucket/none.h5ad", "s3://nowhere/none.h5ad"):
        with pytest.raises(lp.LazypertError, match=r"none\.h5ad"):
            lp.append(URL, source, storage_options=options, work_dir=tmp_path, progress=False)
    assert server.objects("") == before


def test_refused_credentials_change_nothing(options, server, tmp_path):
    rows, address = table(options), server.options["endpoint_url"]

    def require_credentials(n_free):
        body, kind = str(n_free).encode(), {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{address}/moto-api/reset-auth", body, kind)).close()

    require_credentials(0)
    try:
        with pytest.raises(AccessDeniedError, match="access is denied") as caught:
            lp.add_obs(URL, rows, storage_options=options, work_dir=tmp_path)
        assert "very-secret" not in str(caught.value)
    finally:
        require_credentials(10**9)
    lp.add_obs(URL, rows, storage_options=options, work_dir=tmp_path)


@pytest.mark.parametrize("last", ["/update.partial-", "obs/guide/codes/c/0", "/s.zarr/zarr.json"])
def test_a_server_that_goes_away_leaves_the_store_and_the_update_can_be_repeated(options, server, tmp_path, last):
    rows, gone = table(options), []

    def fail(method, path):
        gone.extend([path] if method == "PUT" and last in path else [])
        return bool(gone)

    with server.answering(fail), pytest.raises(MachineError, match="cannot be"):
        lp.add_obs(URL, rows, storage_options=options, work_dir=tmp_path)
    lp.verify(URL, storage_options=options)
    assert "guide" not in Store(URL, options).obs_columns
    lp.add_obs(URL, rows, storage_options=options, work_dir=tmp_path)
    lp.verify(URL, storage_options=options)
    assert "guide" in Store(URL, options).obs_columns
    assert not [key for key in server.objects("") if "partial" in key]


@pytest.mark.parametrize("number", [1, 2])
def test_root_metadata_that_something_else_replaced_stay(options, server, tmp_path, number):
    """Between the check and the request that replaces them, which says what it replaces."""
    pytest.importorskip("obstore")
    rows, before, roots = table(options), server.objects("s.zarr/"), []
    other = before["zarr.json"] + b"\n\n"

    def replace(method, path):
        if (method, path) == ("PUT", "/bucket/s.zarr/zarr.json"):
            roots.append(path)
            if len(roots) == number:
                server.client.put_object(Bucket="bucket", Key="s.zarr/zarr.json", Body=other)

    with (
        server.answering(replace),
        pytest.raises(MachineError, match="something else has replaced or deleted the root"),
    ):
        lp.add_obs(URL, rows, storage_options=options, work_dir=tmp_path)
    found = server.objects("s.zarr/")
    assert found.pop("zarr.json") == other
    if number == 1:
        assert found == {key: data for key, data in before.items() if key != "zarr.json"}
    else:  # what the other root metadata expect may only be among the copies, which therefore stay
        kept = {key.partition("/")[2]: data for key, data in found.items() if key.startswith("update.partial-")}
        assert {"obs/zarr.json"} < kept.keys()
        assert {key: before.get(key) for key in kept.keys() - {"plan.json"}} == {
            key: data for key, data in kept.items() if key != "plan.json"
        }


def test_an_answer_that_is_lost_is_no_conflict(options, monkeypatch, tmp_path):
    """The request is repeated, and then the root metadata are not those that it expects to replace."""
    pytest.importorskip("obstore")
    rows, put, lost = table(options), object_clients._Obstore.put, []

    def lose(self, path, data, only_new, etag):
        found = put(self, path, data, only_new, etag)
        if path == "s.zarr/zarr.json" and data not in lost:
            lost.append(data)
            raise ConnectionError("reset by peer")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(object_clients._Obstore, "put", lose)
        lp.add_obs(URL, rows, storage_options=options, work_dir=tmp_path)
    assert len(lost) == 2
    assert "guide" in Store(URL, options).obs_columns
    lp.verify(URL, storage_options=options)


def test_a_server_that_does_not_know_conditions_is_asked_without(options, monkeypatch):
    pytest.importorskip("obstore")
    import obstore

    put, modes, folder = obstore.put, [], ObjectFolder(URL, options)

    def refuse(store, path, data, *, mode, **given):
        modes.append(mode)
        if isinstance(mode, dict):
            raise obstore.exceptions.GenericError("501 Not Implemented: <Code>NotImplemented</Code>")
        return put(store, path, data, mode=mode, **given)

    etag = folder.put("x", b"1")
    monkeypatch.setattr(obstore, "put", refuse)
    folder.put("x", b"2", etag=etag)
    assert modes == [{"e_tag": etag}, "overwrite"]
    assert folder.get("x") == b"2"


SCRIPT = """
import sys, json, lazypert as lp
lp.append(sys.argv[1], sys.argv[2], storage_options=json.loads(sys.argv[3]), work_dir=sys.argv[4], progress=False)
"""


@pytest.mark.parametrize(("last", "number"), [("/c/", 1), ("/s.zarr/zarr.json", 1), ("/s.zarr/zarr.json", 2)])
def test_a_killed_process_leaves_the_old_store(options, made, server, tmp_path, last, number):
    arguments = [URL, str(made[1]), json.dumps(options), str(tmp_path)]
    child = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stderr=subprocess.DEVNULL)
    seen = []

    def kill(method, path):
        if len(seen) < number and method == "PUT" and last in path and "update.partial" not in path:
            seen.append(path)
            if len(seen) == number:
                os.kill(child.pid, signal.SIGKILL)
        return len(seen) == number

    with server.answering(kill):
        child.wait()
    assert len(seen) == number
    lp.verify(URL, storage_options=options)
    assert Store(URL, options).n_obs == 90
    with pytest.raises(MachineError, match="another process is writing"):
        lp.append(URL, made[1], storage_options=options, work_dir=tmp_path / "another machine", progress=False)
    lp.append(URL, made[1], storage_options=options, work_dir=tmp_path, progress=False)
    assert Store(URL, options).n_obs == 160
    lp.verify(URL, storage_options=options)
    assert not [key for key in server.objects("") if "partial" in key]


def test_the_command_line_updates_a_url(options, made, tmp_path, capsys):
    table(options).rename_axis("cell").to_csv(tmp_path / "guides.csv")
    given = [f"--storage-option={key}={options[key]}" for key in ("key", "secret", "endpoint_url")]
    work = f"--work-dir={tmp_path}"
    assert main(["add-obs", URL, str(tmp_path / "guides.csv"), *given, work]) == 0
    assert main(["append", URL, str(made[1]), *given, work]) == 0
    assert main(["verify", URL, *given]) == 0
    assert main(["info", URL, *given]) == 0
    shown = capsys.readouterr()
    assert "160" in shown.out
    assert "guide" in shown.out
    assert "very-secret" not in shown.out + shown.err


def test_without_credentials_a_metadata_service_that_hangs_is_not_waited_for(monkeypatch, made, tmp_path):
    """A server that accepts connections and never answers, as the service of EC2 does in a container."""
    pytest.importorskip("obstore")
    for name in instance_credentials._SOURCES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(instance_credentials, "_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:  # the system accepts for it
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        for attempt in (
            lambda: lp.open(URL),
            lambda: lp.append(URL, made[1]),
            lambda: lp.convert("s3://bucket/a.h5ad", tmp_path / "a.zarr", **ROLES),
            lambda: lp.convert(made[1], URL, **ROLES, work_dir=tmp_path),
        ):
            with pytest.raises(AccessDeniedError, match=r"no credentials were found\. Pass storage_options="):
                attempt()


def shown_of(error):
    """What an error shows: its texts, those of its causes, and its traceback."""
    texts, cause = [], error
    while cause is not None:
        texts += [str(cause), repr(cause)]
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\n".join([*texts, *traceback.format_exception(error)])


@pytest.mark.parametrize("name", ["secret", "token", "nonsense", "headers"])
def test_no_error_and_no_log_shows_a_secret(options, made, server, tmp_path, caplog, name):
    caplog.set_level(logging.DEBUG)
    wrong = options | {name: {"Authorization": SECRET} if name == "headers" else SECRET, "max_retries": 0}
    rows, two, work = table(options), made[1], tmp_path / "work"
    for attempt in (
        lambda: lp.open(URL, storage_options=wrong),
        lambda: lp.verify(URL, storage_options=wrong),
        lambda: lp.append(URL, two, storage_options=wrong, work_dir=work, progress=False),
        lambda: lp.append(made[0], "s3://bucket/x.h5ad", source_storage_options=wrong, progress=False),
        lambda: lp.add_obs(URL, rows, storage_options=wrong, work_dir=work),
        lambda: lp.convert(two, "s3://bucket/n.zarr", **ROLES, storage_options=wrong, work_dir=work),
        lambda: lp.convert("s3://bucket/x.h5ad", tmp_path / "x.zarr", **ROLES, source_storage_options=wrong),
        lambda: lp.PerturbationAnnDataSource(lp.PerturbationSourceConfig(file_path=URL, storage_options=wrong)),
    ):
        with server.answering(lambda *_: True), pytest.raises(lp.LazypertError) as caught:
            attempt()
        assert SECRET not in shown_of(caught.value)
    assert SECRET not in caplog.text


def test_nothing_that_is_written_or_shown_holds_a_secret(server, made, options, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    given, out = options | {"token": SECRET}, tmp_path / "run.json"
    server.clear()
    source = server.upload(made[1], "two.h5ad")
    work = {"storage_options": given, "work_dir": tmp_path / "work"}
    url = lp.convert(source, URL, **ROLES, source_storage_options=given, progress=False, **work)
    lp.add_obsm(url, "ones", np.ones((70, 1)), **work)
    ds, store = lp.open(url, storage_options=given, cache_dir=tmp_path / "cache"), Store(url, given)
    config = lp.PerturbationSourceConfig(file_path=url, storage_options=given, cache_dir=tmp_path / "cache")
    of_pipeline = lp.PerturbationPipelineConfig(storage_options=given, **{"train_frac": 0.5, "valid_frac": 0.25})
    result = lp.PerturbationPipeline(of_pipeline).setup([url])
    for value in (ds, ds.X, ds.attrs, store, store.reader, store.attrs, ObjectFolder(url, given), config, of_pipeline):
        assert SECRET not in repr(value) + str(value)
    loader = result.loader(sentence_size=4, sentences_per_batch=2)
    next(iter(loader))
    lp.save_run(out, result, loader)
    result.splits.save(tmp_path / "split.csv")
    for value in (result, loader, loader.state_dict(), result.splits, lp.PerturbationAnnDataSource(config)):
        assert SECRET not in repr(value)
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert out in paths
    assert not [path for path in paths if SECRET.encode() in path.read_bytes()]
    assert not [key for key, data in server.objects("").items() if SECRET.encode() in data]
    assert SECRET not in caplog.text
