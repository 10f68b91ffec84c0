"""Files and objects return the same bytes, and report missing ones in the same way."""

import asyncio
import errno
import pickle
from pathlib import Path

import pytest
from zarr.storage import LocalStore, MemoryStore

from lazypert.errors import MachineError, StoreDamagedError
from lazypert.store.byte_reader import LocalReader
from lazypert.store.remote_reader import RemoteReader

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


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs /proc/self/mem")
def test_a_failing_disk_is_the_machine(tmp_path):
    (tmp_path / "a").symlink_to("/proc/self/mem")  # its first bytes give EIO
    with pytest.raises(MachineError, match=r"'a' cannot be read now .*Input/output error.*disk or the network failed"):
        LocalReader(tmp_path).read("a", 0, 8)


def test_a_folder_in_place_of_a_file_is_damage(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").touch()
    with pytest.raises(StoreDamagedError, match="a: expected a file"):
        LocalReader(tmp_path).read("a", 0, 8)
    with pytest.raises(StoreDamagedError, match="b/c: expected a file"):
        LocalReader(tmp_path).size("b/c")


def test_objects_that_cannot_be_read_are_the_machine():
    class Failing(MemoryStore):
        async def get(self, *_args, **_options):
            raise PermissionError(errno.EACCES, "Forbidden")

        async def getsize(self, key):
            raise ConnectionResetError(errno.ECONNRESET, "reset by peer")

    class Disconnected(MemoryStore):
        async def get(self, *_args, **_options):
            raise asyncio.IncompleteReadError(b"", 8)  # no OSError

    with pytest.raises(MachineError, match=r"'a' cannot be read now .*0 bytes read"):
        RemoteReader(Disconnected()).read("a", 0, 8)
    reader = RemoteReader(Failing())
    with pytest.raises(MachineError, match=r"'a' cannot be read now .*Forbidden.*Check its permissions"):
        reader.read("a", 0, 8)
    with pytest.raises(MachineError, match=r"'a' cannot be read now .*reset by peer"):
        reader.size("a")


def test_errors_of_remote_libraries_are_the_machine():
    class Refusing(MemoryStore):
        async def get(self, *_args, **_options):
            raise RuntimeError("no credentials")

        async def getsize(self, key):
            raise RuntimeError("no credentials")

    reader = RemoteReader(Refusing())
    for call in (lambda: reader.read("a", 0, 8), lambda: reader.size("a")):
        with pytest.raises(MachineError, match=r"'a' cannot be read now .*no credentials"):
            call()


def test_missing_files_are_named_and_no_file_stays_open(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    with pytest.raises(FileNotFoundError) as caught:
        LocalReader(tmp_path).open_files(["a", "a", "b"])
    assert caught.value.filename == "b"
    assert LocalReader(tmp_path).has_files
    assert not RemoteReader(MemoryStore()).has_files
