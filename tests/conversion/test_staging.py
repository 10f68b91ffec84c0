"""A staging directory has one owner, is resumed by the same conversion, and leaves other folders alone."""

import errno
import os
import subprocess
import sys
import threading

import pytest

from lazypert.conversion.staging import StagingDirectory
from lazypert.errors import StoreExistsError
from tests.support.stores import leftovers

ONE, OTHER = "a" * 12, "b" * 12


def test_a_target_has_one_owner_at_a_time(tmp_path):
    first = StagingDirectory(tmp_path / "s.zarr", ONE)
    with pytest.raises(StoreExistsError, match=r"another process.*s\.zarr\.partial\.lock"):
        StagingDirectory(tmp_path / "s.zarr", OTHER)
    StagingDirectory(tmp_path / "t.zarr", ONE).release(keep=False)
    first.release(keep=False)
    StagingDirectory(tmp_path / "s.zarr", OTHER).release(keep=False)
    assert leftovers(tmp_path) == []


def test_a_killed_owner_leaves_no_lock_behind(tmp_path):
    script = "import os, sys; from pathlib import Path; from lazypert.conversion.staging import StagingDirectory; "
    script += "staging = StagingDirectory(Path(sys.argv[1]), 'a' * 12); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "s.zarr")], check=False)
    assert done.returncode == -9
    assert leftovers(tmp_path) == [f"s.zarr.partial-{ONE}", "s.zarr.partial.lock"]
    again = StagingDirectory(tmp_path / "s.zarr", ONE)
    assert again.is_resumed
    assert not again.is_restarted
    again.release(keep=False)
    assert leftovers(tmp_path) == []


def test_work_with_the_same_fingerprint_is_resumed_and_other_work_is_deleted(tmp_path):
    first = StagingDirectory(tmp_path / "s.zarr", ONE)
    (first.work / "spill").write_text("x")
    first.release(keep=True)
    same = StagingDirectory(tmp_path / "s.zarr", ONE)
    assert (same.work / "spill").read_text() == "x"
    assert same.is_resumed
    same.release(keep=True)
    other = StagingDirectory(tmp_path / "s.zarr", OTHER)
    assert not other.is_resumed
    assert other.is_restarted
    assert leftovers(tmp_path) == [f"s.zarr.partial-{OTHER}", "s.zarr.partial.lock"]
    other.release(keep=False)


def test_work_without_a_fingerprint_is_never_resumed(tmp_path):
    first = StagingDirectory(tmp_path / "s.zarr")
    assert not first.is_resumed
    first.release(keep=False)
    assert leftovers(tmp_path) == []


def test_folders_of_others_are_not_touched(tmp_path):
    foreign = [
        "s.zarr.old-20251105",
        "s.zarr.partial-backup",
        f"s.zarr.partial-{ONE}-copy",
        f"other.s.zarr.partial-{ONE}",
        f"s.zarr.partial-{'c' * 12}",  # named like a staging directory, but with other content
        "s[1].zarr",
    ]
    for name in foreign:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    replaced = tmp_path / f"s.zarr.partial-old-{ONE}"
    replaced.mkdir()
    (replaced / "zarr.json").write_text("{}")
    StagingDirectory(tmp_path / "s.zarr", ONE).release(keep=False)
    assert leftovers(tmp_path) == sorted(foreign)


@pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
def test_a_lock_on_a_deleted_file_is_not_a_lock(tmp_path, monkeypatch):
    """The previous owner deletes the lock file after we have opened it: a lock on that file would protect nothing."""
    import fcntl

    lock_path, flock, descriptors = tmp_path / "s.zarr.partial.lock", fcntl.flock, []

    def delete_and_lock(fd, operation):
        if not descriptors:
            lock_path.unlink()  # as `release` does
        flock(fd, operation)
        descriptors.append(fd)

    monkeypatch.setattr(fcntl, "flock", delete_and_lock)
    staging = StagingDirectory(tmp_path / "s.zarr", ONE)
    assert len(descriptors) == 2
    assert lock_path.exists()
    with pytest.raises(StoreExistsError):
        StagingDirectory(tmp_path / "s.zarr", OTHER)
    staging.release(keep=False)
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_used_without_a_lock(tmp_path, monkeypatch, code):
    import fcntl

    def fail(fd, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    staging = StagingDirectory(tmp_path / "s.zarr", ONE)
    assert leftovers(tmp_path) == [f"s.zarr.partial-{ONE}"]
    staging.release(keep=False)
    assert leftovers(tmp_path) == []


def test_the_lock_may_be_released_by_another_thread(tmp_path):
    staging = StagingDirectory(tmp_path / "s.zarr", ONE)
    thread = threading.Thread(target=staging.release, kwargs={"keep": False})
    thread.start()
    thread.join()
    StagingDirectory(tmp_path / "s.zarr", OTHER).release(keep=False)
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_only_one_of_many_processes_holds_the_target_at_a_time(tmp_path):
    """Owners delete the lock file again and again, and still never share the target."""
    script = """
import os, sys, time
from pathlib import Path
from lazypert.conversion.staging import StagingDirectory
from lazypert.errors import StoreExistsError
from tests.support.stores import leftovers

target, owned = Path(sys.argv[1]), 0
print("ready", flush=True)
sys.stdin.readline()
deadline = time.monotonic() + 2
while time.monotonic() < deadline:
    try:
        staging = StagingDirectory(target, "a" * 12)
    except StoreExistsError:
        continue
    os.close(os.open(target.with_name("owner"), os.O_CREAT | os.O_EXCL))
    time.sleep(0.002)
    target.with_name("owner").unlink()
    staging.release(keep=True)
    owned += 1
print(owned)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "s.zarr")]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    owned = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum(owned) > 20
    assert leftovers(tmp_path) == [f"s.zarr.partial-{ONE}"]
