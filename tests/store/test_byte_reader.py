"""Files and objects return the same bytes, and report missing ones in the same way."""

import pickle

import pytest
from zarr.storage import LocalStore, MemoryStore

from lazypert.store.byte_reader import LocalReader, RemoteReader

CONTENT = {"a": bytes(range(256)), "deep/b": b"0123456789"}


@pytest.fixture(params=["files", "objects of a folder", "objects in memory"])
def reader(request, tmp_path):
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    if request.param == "objects in memory":
        store = MemoryStore()
        for key, content in CONTENT.items():
            sync(store.set(key, default_buffer_prototype().buffer.from_bytes(content)))
        return RemoteReader(store)
    for key, content in CONTENT.items():
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).write_bytes(content)
    return LocalReader(tmp_path) if request.param == "files" else RemoteReader(LocalStore(tmp_path))


def test_sizes(reader):
    assert [reader.size(key) for key in ("a", "deep/b", "c")] == [256, 10, None]


def test_parts_of_objects(reader):
    assert reader.read("a", 10, 5) == bytes(range(10, 15))
    assert reader.read("deep/b", 8, 5) == b"89"
    assert reader.read("c", 0, 5) == b""


def test_ranges_are_read_one_after_another_and_counted(reader):
    out = bytearray(20)
    assert reader.read_ranges([("a", 1, 4), ("deep/b", 2, 6), ("a", 250, 10)], memoryview(out)) == [4, 6, 6]
    assert out == bytes([1, 2, 3, 4]) + b"234567" + bytes(range(250, 256)) + bytes(4)
    assert reader.read_ranges([("c", 0, 3), ("a", 0, 2)], memoryview(out)) == [0, 2]
    assert reader.read_ranges([], memoryview(out)) == []


def test_readers_are_picklable(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    for one in (LocalReader(tmp_path), RemoteReader(LocalStore(tmp_path))):
        assert pickle.loads(pickle.dumps(one)).read("a", 1, 2) == b"bc"


def test_missing_files_are_named_and_no_file_stays_open(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    with pytest.raises(FileNotFoundError) as caught:
        LocalReader(tmp_path).open_files(["a", "a", "b"])
    assert caught.value.filename == "b"
    assert LocalReader(tmp_path).has_files
    assert not RemoteReader(MemoryStore()).has_files
