"""Stores in S3: opened, verified and loaded; each mistake has an error of its own."""

import numpy as np
import pytest

import lazypert as lp
from benchmarks.range_server import RangeServer
from lazypert.errors import AccessDeniedError, ConfigError, StorageError, StoreNotFoundError
from tests.remote.test_reading import assert_equal_epochs, epoch, source_of

pytest.importorskip("moto")
pytest.importorskip("obstore")
S3Server = pytest.importorskip("tests.support.s3_server").S3Server

URL = "s3://bucket/screen.zarr"


@pytest.fixture(scope="module")
def server(reference):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = S3Server()
        for path in reference.store.rglob("*"):
            if path.is_file():
                server.upload(path, f"screen.zarr/{path.relative_to(reference.store).as_posix()}")
        yield server
        server.stop()


@pytest.mark.parametrize("package", ["obstore", "s3fs"])
def test_open_verify_and_two_epochs(server, reference, package, monkeypatch):
    options = server.options | ({"use_ssl": False} if package == "s3fs" else {})  # an option that only s3fs has
    ds, local = lp.open(URL, storage_options=options), lp.open(reference.store)
    np.testing.assert_array_equal(ds.X.sum("gene").compute(), local.X.sum("gene").compute())
    assert lp.verify(URL, storage_options=options) == lp.verify(reference.store)
    source = source_of(URL, storage_options=options)
    expected = epoch(reference.source)
    for _ in range(2):
        assert_equal_epochs(epoch(source), expected)


@pytest.mark.parametrize(
    ("url", "options", "error", "words"),
    [
        ("s3://nosuchbucket/screen.zarr", {}, StorageError, "no such bucket"),
        ("s3://bucket/other.zarr", {}, StoreNotFoundError, "no zarr.json"),
        (URL, {"secrett": "x"}, ConfigError, "Did you mean 'secret'"),
        (URL, {"requester_pays": "certainly"}, ConfigError, "storage_options"),
    ],
    ids=["bucket", "key", "option", "value"],
)
def test_mistakes(server, url, options, error, words):
    with pytest.raises(error, match=words) as caught:
        lp.open(url, storage_options=server.options | options)
    assert "damaged, " not in str(caught.value)
    assert "very-secret" not in str(caught.value)


def test_refused_credentials(server):
    forbidding = RangeServer("/nonexistent")
    forbidding.status = 403
    try:
        with pytest.raises(AccessDeniedError, match=r"access is denied.*credentials") as caught:
            lp.open(URL, storage_options=server.options | {"endpoint_url": forbidding.url})
        assert "very-secret" not in str(caught.value)
    finally:
        forbidding.stop()


def test_the_server_is_gone_and_comes_back(server, reference, monkeypatch):
    monkeypatch.setattr("lazypert.store.sharded_chunks._SMALL", 0)
    source = source_of(URL, storage_options=server.options | {"max_retries": 0})
    expected = epoch(reference.source)
    server.stop()
    try:
        with pytest.raises(StorageError, match=r"cannot be reached|does not mean that it is damaged"):
            epoch(source)
    finally:
        server.start()
    assert_equal_epochs(epoch(source), expected)


def test_a_missing_package_is_named(monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "obstore" else found(name, *a))

    def missing(*_):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    with pytest.raises(ConfigError, match="pip install obstore"):
        lp.open(URL, storage_options={"anon": True})


def test_anonymous_and_requester_pays_requests(reference):
    """What is sent: no signature, or the header that says that the reader pays."""
    from lazypert.store.storage_options import for_obstore

    assert for_obstore("s3", {"anon": True}).config == {"skip_signature": True}
    assert for_obstore("s3", {"requester_pays": True}).config == {"request_payer": True}
    assert for_obstore("s3", {"profile": "lab"}) is None
    assert for_obstore("s3", {"client_kwargs": {"region_name": "eu-west-1"}}).config == {"region": "eu-west-1"}
