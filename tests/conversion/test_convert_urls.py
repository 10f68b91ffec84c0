"""Conversion to and from URLs that fsspec serves, in the memory of the process."""

import json

import fsspec
import pytest

import lazypert as lp
from lazypert.conversion import target_claim
from lazypert.errors import MachineError, StoreExistsError, StoreNotFoundError
from lazypert.store.object_folder import ObjectFolder
from lazypert.store.range_cache import BLOCK_BYTES, RANGE_BYTES, RangeCache
from lazypert.store.unfinished import CLAIM
from tests.support.stores import ROLES, screen

URL = "memory://bucket/s.zarr"


@pytest.fixture
def source(tmp_path):
    storage = fsspec.filesystem("memory")
    if storage.exists("/bucket"):
        storage.rm("/bucket", recursive=True)
    path = tmp_path / "s.h5ad"
    screen(300, 40).write_h5ad(path)
    return path


@pytest.fixture
def convert(tmp_path):
    return lambda source, target=URL, **options: lp.convert(
        source, target, **ROLES, **{"compression": "fast", "work_dir": tmp_path / "work", "progress": False} | options
    )


def objects():
    folder = ObjectFolder(URL)
    return {key: folder.get(key) for key in folder.list()}


def local(source, target):
    store = lp.convert(source, target, **ROLES, progress=False)
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_stores_are_those_of_a_local_conversion_and_can_be_replaced(source, convert, tmp_path):
    assert convert(source) == URL
    expected = local(source, tmp_path / "a.zarr")
    assert objects() == expected
    with pytest.raises(StoreExistsError, match="overwrite=True"):
        convert(source)
    assert convert(source, overwrite=True) == URL
    assert objects() == expected
    assert list(fsspec.filesystem("memory").ls("/bucket", detail=False)) == ["/bucket/s.zarr"]
    assert list((tmp_path / "work").iterdir()) == []
    again = lp.convert(URL, tmp_path / "b.zarr", **ROLES, progress=False)
    assert (lp.open(again).X.values == lp.open(URL).X.values).all()


@pytest.mark.parametrize("last", ["layers/lognorm/data/c/0", "obsm/X_pca/c/0/0", "var/zarr.json", "zarr.json"])
def test_a_failure_in_the_middle_leaves_no_store_and_resumes(last, source, convert, tmp_path, monkeypatch):
    put = ObjectFolder.put

    def fail(self, key, data, *, only_new=False):
        if key == last:
            raise MachineError("the network is down")
        return put(self, key, data, only_new=only_new)

    monkeypatch.setattr(ObjectFolder, "put", fail)
    with pytest.raises(MachineError, match="network is down"):
        convert(source)
    with pytest.raises(StoreNotFoundError, match="unfinished"):
        lp.open(URL)
    with pytest.raises(StoreExistsError, match="another process is writing"):
        convert(source, work_dir=tmp_path / "another machine")
    sent = []
    monkeypatch.setattr(ObjectFolder, "put", lambda self, key, *a, **k: (sent.append(key), put(self, key, *a, **k))[1])
    convert(source)
    assert "X/data/c/0" not in sent
    assert objects() == local(source, tmp_path / "a.zarr")


def test_other_options_start_over_and_an_expired_claim_is_taken_over(source, convert, tmp_path, monkeypatch):
    folder = ObjectFolder(URL)
    for record in ({"claim": "a" * 12, "is_replacing": False, "renewed": "2020-01-01T00:00:00+00:00"},):
        folder.put(CLAIM, json.dumps(record).encode())
        folder.put("X/data/c/99", b"left by a conversion that was killed")
    monkeypatch.setattr(target_claim, "EXPIRY", 0.0)
    convert(source)
    assert objects() == local(source, tmp_path / "a.zarr")


def test_objects_that_are_not_a_store_stay(source, convert):
    ObjectFolder(URL).put("notes.txt", b"mine")
    for overwrite in (False, True):
        with pytest.raises(StoreExistsError, match="not a Zarr store"):
            convert(source, overwrite=overwrite)
    assert objects() == {"notes.txt": b"mine"}


def test_a_claim_that_is_lost_stops_the_conversion(source, convert, monkeypatch):
    check = target_claim.TargetClaim.check

    def lose(self):
        self.objects.put(CLAIM, json.dumps({"claim": "b" * 12, "is_replacing": False, "renewed": ""}).encode())
        check(self)

    monkeypatch.setattr(target_claim.TargetClaim, "check", lose)
    with pytest.raises(MachineError, match="another process has begun"):
        convert(source)
    assert "zarr.json" not in objects()


def test_a_range_is_fetched_once_and_sequences_read_ahead():
    content, asked = bytes(range(256)) * 40_000, []

    def fetch(start, stop):
        asked.append((start, stop))
        return content[start:stop]

    cache = RangeCache(fetch, len(content))
    assert cache.read(100, 200) == content[100:200]
    assert cache.read(0, BLOCK_BYTES) == content[:BLOCK_BYTES]
    assert asked == [(0, BLOCK_BYTES)]
    for start in range(0, len(content), 30_000):
        assert cache.read(start, start + 30_000) == content[start : start + 30_000]
    assert cache.read(len(content) - 5, len(content) + 5) == content[-5:]
    assert cache.read(len(content), len(content) + 5) == b""
    assert sum(stop - start for start, stop in asked) == len(content)
    assert len(asked) < 15
    assert max(stop - start for start, stop in asked) <= RANGE_BYTES
