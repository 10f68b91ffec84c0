"""Updates at a URL that did not finish: what says so is checked, and nobody mixes the two versions."""

import json

import fsspec
import pandas as pd
import pytest

import lazypert as lp
from lazypert.errors import MachineError, StoreChangedError, StoreDamagedError
from lazypert.store.format import MARKER
from lazypert.store.manifest import root_digest
from lazypert.store.object_folder import ObjectFolder
from lazypert.store.remote_reader import RemoteReader
from lazypert.store.store import Store
from lazypert.store.unfinished import CLAIM
from lazypert.store.updating import UPDATING
from tests.support.killer import files

URL, FOLDER, CODES = "memory://bucket/s.zarr", "update.partial-0123456789ab", "obs/guide/codes/c/0"


@pytest.fixture
def bucket(made, tmp_path, monkeypatch):
    """A function that puts objects at the URL, which at first are those of a store with the column guide."""
    monkeypatch.setattr("lazypert.conversion.remote_staging.default_work_dir", lambda: tmp_path / "work")
    storage = fsspec.filesystem("memory")

    def put(content):
        if storage.exists("/bucket"):
            storage.rm("/bucket", recursive=True)
        for key, data in content.items():
            storage.pipe_file(f"/bucket/s.zarr/{key}", data)
        storage.pipe_file("/bucket/other/precious", b"mine")

    put(files(made))
    add("a", "b")
    return put


def objects():
    folder = ObjectFolder(URL)
    return {key: folder.get(key) for key in folder.list()}


def add(*labels, **options):
    names = lp.open(URL).cell_name.to_numpy()
    guide = [labels[i % len(labels)] for i in range(len(names))]
    lp.add_obs(URL, pd.DataFrame({"guide": guide}, index=names), overwrite="guide" in Store(URL).obs_columns, **options)


def guides(store):
    return [str(label) for label in store.read_column("obs/guide")[:3]]


def stop_before_the_end(monkeypatch, act, update):
    """Call `act` when an update has replaced all objects but the root metadata, which then fail."""
    put, roots = ObjectFolder.put, []

    def stopping(self, key, *args, **options):
        roots.extend([key] if key == "zarr.json" else [])
        if len(roots) == 2:
            act()
            raise MachineError("the storage is gone")
        return put(self, key, *args, **options)

    with monkeypatch.context() as patch, pytest.raises(MachineError, match="storage is gone"):  # noqa: PT012
        patch.setattr(ObjectFolder, "put", stopping)
        update()


def with_root(content, **attrs):
    """Objects of a store whose root metadata are sealed with other attributes."""
    root = json.loads(content["zarr.json"])
    root["attributes"][MARKER].update(attrs)
    root["attributes"][MARKER]["root_digest"] = root_digest(root)
    return content | {"zarr.json": json.dumps(root, indent=1).encode()}


LIES = {
    "text": "x",
    "a list": [FOLDER],
    "no fields": {},
    "no folder": {"objects": [CODES], "replaced": []},
    "no objects": {"folder": FOLDER, "replaced": []},
    "no elements": {"folder": FOLDER, "objects": [CODES]},
    "another folder": {"folder": "../other", "objects": ["precious"], "replaced": []},
    "a folder in a folder": {"folder": f"{FOLDER}/../../other", "objects": ["precious"], "replaced": []},
    "a number as the folder": {"folder": 7, "objects": [], "replaced": []},
    "keys outside": {"folder": FOLDER, "objects": ["../../other/precious"], "replaced": []},
    "an absolute key": {"folder": FOLDER, "objects": ["/bucket/other/precious"], "replaced": []},
    "keys that are numbers": {"folder": FOLDER, "objects": [1], "replaced": []},
    "keys that are lists": {"folder": FOLDER, "objects": [[CODES]], "replaced": []},
    "a text of keys": {"folder": FOLDER, "objects": CODES, "replaced": []},
    "the root": {"folder": FOLDER, "objects": ["zarr.json"], "replaced": []},
    "the claim": {"folder": FOLDER, "objects": [CLAIM], "replaced": []},
    "elements that are numbers": {"folder": FOLDER, "objects": [], "replaced": [1]},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_root_metadata_that_lie_of_an_update_are_damage_and_nothing_is_touched(bucket, lie):
    opened, storage = Store(URL), fsspec.filesystem("memory")
    bucket(with_root(objects(), **{UPDATING: lie}) | {f"{FOLDER}/plan.json": b"[]"})
    before = {path: storage.cat_file(path) for path in storage.find("/bucket")}
    rows = pd.DataFrame({"more": [1.0]}, index=["a"])
    for attempt in (
        lambda: Store(URL),
        lambda: lp.verify(URL),
        lambda: lp.add_obs(URL, rows),
        lambda: opened.read_column("obs/guide"),
    ):
        with pytest.raises(StoreDamagedError, match="updating: got"):
            attempt()
    assert {path: storage.cat_file(path) for path in storage.find("/bucket")} == before


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["{", "7", "null", "[[1]]", '["../other/precious"]'])
def test_a_plan_that_makes_no_sense_deletes_nothing(bucket, plan):
    before = objects()
    bucket(before | {f"{FOLDER}/plan.json": plan.encode(), "update.partial-mine/notes.txt": b"mine"})
    add("c")
    assert objects().keys() == before.keys() | {"update.partial-mine/notes.txt"}
    assert fsspec.filesystem("memory").cat_file("/bucket/other/precious") == b"mine"
    lp.verify(URL)


@pytest.mark.parametrize("is_intact", [True, False])
def test_lost_copies_are_damage_unless_the_objects_are_those_of_the_old_version(bucket, is_intact):
    before = objects()
    changed = before if is_intact else before | {CODES: before[CODES][::-1]}
    bucket(with_root(changed, **{UPDATING: {"folder": FOLDER, "objects": [CODES], "replaced": ["obs/guide"]}}))
    if is_intact:
        add("c")
        assert UPDATING not in Store(URL).attrs
        assert lp.verify(URL)
        assert guides(Store(URL)) == ["c"] * 3
    else:
        with pytest.raises(StoreDamagedError, match=f"{CODES}: an update was interrupted, and the copy in"):
            add("c")


def test_a_manifest_that_cannot_be_read_is_damage(bucket):
    bucket(with_root(objects(), manifest_files=[[1]]))
    with pytest.raises(StoreDamagedError, match="manifest cannot be read"):
        add("c")


def test_a_local_copy_of_an_unfinished_update_is_refused(bucket, monkeypatch, tmp_path):
    """Its files are those of both versions; the copies within the store are only read at a URL."""

    def download():
        for key, data in objects().items():
            (tmp_path / "s.zarr" / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "s.zarr" / key).write_bytes(data)

    stop_before_the_end(monkeypatch, download, lambda: add("c", "d"))
    for attempt in (lp.open, lp.verify, lambda path: lp.add_obs(path, pd.DataFrame({"more": [1.0]}, index=["a"]))):
        with pytest.raises(StoreDamagedError, match="copy of a store in object storage that was made during an update"):
            attempt(tmp_path / "s.zarr")


@pytest.mark.slow
def test_a_cache_does_not_take_what_it_read_of_another_version(bucket, monkeypatch, tmp_path):
    """A column of text gets other values, and then those that it had before: the root metadata say the same again."""
    a, b = ([f"{letter}{i}" for i in range(1000)] for letter in "ab")
    add(*a)
    opened, first = Store(URL, cache_dir=tmp_path / "cache"), objects()["zarr.json"]

    def look():
        with pytest.raises(StoreChangedError, match="the column was replaced"):
            opened.read_column("obs/guide")

    stop_before_the_end(monkeypatch, look, lambda: add(*b))
    add(*b)
    add(*a)
    assert guides(Store(URL, cache_dir=tmp_path / "cache")) == a[:3]
    assert objects()["zarr.json"].rstrip() == first.rstrip()
    assert objects()["zarr.json"] != first


@pytest.mark.slow
@pytest.mark.parametrize("method", ["read_root", "hold"])
def test_what_is_read_while_an_update_is_undone_is_read_again(bucket, monkeypatch, method):
    """The update is at its end when a reader has read the root, or reads an object; it is undone right after that."""
    before, during = objects(), []
    stop_before_the_end(monkeypatch, lambda: during.append(objects()), lambda: add("d", "c"))
    undone, original, calls = objects(), getattr(RemoteReader, method), []
    bucket(before)
    opened = Store(URL)

    def meanwhile(self, *args):
        calls.append(args)
        if method == "hold" and len(calls) == 1:
            bucket(during[0])
        found = original(self, *args)
        if len(calls) == 1:
            bucket(during[0] if method == "read_root" else undone)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(RemoteReader, method, meanwhile)
        if method == "read_root":
            opened = Store(URL)
        codes = opened.read_array("obs/guide/codes")
    bucket(undone)
    assert len(calls) > 1
    assert codes[:3].tolist() == [0, 1, 0]
    assert guides(opened) == ["a", "b", "a"]
