import contextlib
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import lazypert as lp
from lazypert._internal.files import (
    crc32,
    crc32_of,
    directory_size,
    read_exact,
    remove_folder,
    swap,
    sync,
    write_atomic,
)
from lazypert.store.store import Store
from tests.support.stores import ROLES, screen, write


def test_write_atomic_writes_the_complete_file_or_nothing(tmp_path):
    def failing_buffers():
        yield b"12345"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_atomic(tmp_path / "a", failing_buffers())
    assert not (tmp_path / "a").exists()
    size, crc = write_atomic(tmp_path / "a", [b"1234", np.frombuffer(b"56789", "u1"), b""], sync=True)
    assert (tmp_path / "a").read_bytes() == b"123456789"
    assert (size, crc) == (9, 0xCBF43926)  # the check value of CRC-32
    assert crc32(b"56789", crc32(b"1234")) == crc
    assert crc32_of(tmp_path / "a") == (size, crc)
    assert crc32_of(tmp_path / "b") is None


def test_sync_flushes_files_and_folders(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: [flushed.append(os.fstat(fd).st_ino), fsync(fd)])
    (tmp_path / "a").write_bytes(b"1")
    paths = [tmp_path / "a", tmp_path]
    for path in paths:
        sync(path)
    assert flushed == [path.stat().st_ino for path in paths]


def test_concurrent_writers_of_one_file_do_not_mix(tmp_path):
    def write(letter):
        write_atomic(tmp_path / "a", [letter] * 1000)

    threads = [threading.Thread(target=write, args=(bytes([65 + i]),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set((tmp_path / "a").read_bytes())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_reading_past_the_end_is_an_error(tmp_path):
    (tmp_path / "a").write_bytes(np.arange(5, dtype="i4").tobytes())
    with (tmp_path / "a").open("rb") as file:
        assert read_exact(file.fileno(), "i4", 3, 8).tolist() == [2, 3, 4]
        with pytest.raises(OSError, match="ends at byte 20"):
            read_exact(file.fileno(), "i4", 3, 12)


@pytest.mark.parametrize("atomic", [True, False])
def test_swap_exchanges_the_names_of_two_directories(tmp_path, monkeypatch, atomic):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    if not atomic:
        monkeypatch.setattr("lazypert._internal.files.ctypes.CDLL", lambda *_, **__: object())
    swap(tmp_path / "a", tmp_path / "b")
    assert [(tmp_path / name / "file").read_text() for name in ("a", "b")] == ["b", "a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_directory_size_adds_up_all_files(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "file").write_bytes(bytes(10))
    (tmp_path / "a" / "b" / "file").write_bytes(bytes(5))
    assert directory_size(tmp_path) == 15


def test_a_failed_write_leaves_nothing(tmp_path):
    def buffers():
        yield b"half of it"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", buffers())
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
del os.preadv, os.pread
import warnings
warnings.simplefilter("ignore")
import numpy as np
import lazypert as lp
from lazypert.store import native
from lazypert.store.store import Store
path, store = sys.argv[1:]
assert not native.are_available()
made = lp.convert(path, store, pert_col="perturbation", control_pert="non-targeting", cell_type_col="cell_type",
                  batch_col="batch", progress=False)
assert lp.verify(made) > 0
matrix = Store(made).matrix()
rows = np.arange(matrix.shape[0])
expected = matrix.read_rows(rows).to_dense()
with ThreadPoolExecutor(4) as pool:
    for part in pool.map(lambda i: (i, matrix.read_rows(rows[i::8]).to_dense()), range(8)):
        assert (part[1] == expected[part[0]::8]).all()
print(Store(made).content_digest)
"""


@pytest.mark.slow
def test_systems_without_reads_at_an_offset_read_the_same(tmp_path):
    path = write(screen(), tmp_path / "s.h5ad")
    store = lp.convert(path, tmp_path / "s.zarr", progress=False, **ROLES)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), str(tmp_path / "t.zarr")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == Store(store).content_digest


def test_a_folder_is_removed_although_files_are_written_late(tmp_path):
    folder = tmp_path / "store"
    (folder / "obs").mkdir(parents=True)
    (folder / "obs" / "zarr.json").write_text("{}")

    def write_late():
        for i in range(5):  # as the threads of Zarr, each file with its folder
            with contextlib.suppress(FileNotFoundError):  # deleted between the two
                (folder / "var").mkdir(parents=True, exist_ok=True)
                (folder / "var" / f"{i}").write_text("late")
            time.sleep(0.005)

    writer = threading.Thread(target=write_late)
    writer.start()
    remove_folder(folder, after_error=True)
    writer.join()
    assert list(tmp_path.iterdir()) == []
    remove_folder(folder)  # there is none
