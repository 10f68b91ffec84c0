"""The folder of a store to be: one owner, found again by its own kind, and nobody else's folder touched."""

import subprocess
import sys

import pytest

from lazypert.conversion.checkpoints import load_checkpoint, save_checkpoint
from lazypert.conversion.staging import StagingDirectory
from lazypert.errors import StoreExistsError

ONE, OTHER = "a" * 12, "b" * 12


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_one_owner_at_a_time(tmp_path):
    first = StagingDirectory(tmp_path / "s.zarr", ONE)
    with pytest.raises(StoreExistsError, match=r"Another process.*s\.zarr\.partial\.lock"):
        StagingDirectory(tmp_path / "s.zarr", OTHER)
    StagingDirectory(tmp_path / "t.zarr", ONE).release(keep=False)
    first.release(keep=False)
    StagingDirectory(tmp_path / "s.zarr", OTHER).release(keep=False)
    assert names(tmp_path) == []


def test_a_dead_owner_locks_nobody_out(tmp_path):
    script = "import os, sys; from pathlib import Path; from lazypert.conversion.staging import StagingDirectory; "
    script += "StagingDirectory(Path(sys.argv[1]), 'a' * 12); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "s.zarr")], check=False)
    assert done.returncode == -9
    assert names(tmp_path) == [f"s.zarr.partial-{ONE}", "s.zarr.partial.lock"]
    again = StagingDirectory(tmp_path / "s.zarr", ONE)
    assert again.is_resumed
    assert not again.is_restarted
    again.release(keep=False)
    assert names(tmp_path) == []


def test_work_of_the_same_fingerprint_is_found_and_other_work_removed(tmp_path):
    first = StagingDirectory(tmp_path / "s.zarr", ONE)
    (first.work / "note").write_text("x")
    first.release(keep=True)
    same = StagingDirectory(tmp_path / "s.zarr", ONE)
    assert (same.work / "note").read_text() == "x"
    assert same.is_resumed
    same.release(keep=True)
    other = StagingDirectory(tmp_path / "s.zarr", OTHER)
    assert not other.is_resumed
    assert other.is_restarted
    assert names(tmp_path) == [f"s.zarr.partial-{OTHER}", "s.zarr.partial.lock"]
    other.release(keep=False)


def test_work_without_a_fingerprint_is_its_own(tmp_path):
    first = StagingDirectory(tmp_path / "s.zarr")
    assert not first.is_resumed
    first.release(keep=False)
    assert names(tmp_path) == []


def test_nobody_elses_folder_is_touched(tmp_path):
    mine = [
        "s.zarr.old-20251105",
        "s.zarr.partial-backup",
        f"s.zarr.partial-{ONE}-copy",
        f"other.s.zarr.partial-{ONE}",
        f"s.zarr.partial-{'c' * 12}",  # named as ours, with something else in it
        "s[1].zarr",
    ]
    for name in mine:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    replaced = tmp_path / f"s.zarr.partial-old-{ONE}"
    replaced.mkdir()
    (replaced / "zarr.json").write_text("{}")
    StagingDirectory(tmp_path / "s.zarr", ONE).release(keep=False)
    assert names(tmp_path) == sorted(mine)


def test_a_record_is_whole_or_absent(tmp_path):
    path = tmp_path / "a.json"
    assert load_checkpoint(path) is None
    save_checkpoint(path, {"n": 1})
    save_checkpoint(path, {"n": 2})
    assert load_checkpoint(path) == {"n": 2}
    for torn in ("", '{"n": ', "[1]", "\x00" * 8):
        path.write_text(torn)
        assert load_checkpoint(path) is None
    assert names(tmp_path) == ["a.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs file locks")
def test_a_lock_that_was_unlinked_meanwhile_is_not_taken_for_one(tmp_path, monkeypatch):
    """The owner before us unlinks the lock file after we have opened it: it would lock nobody out."""
    import fcntl

    lock, real, seen = tmp_path / "s.zarr.partial.lock", fcntl.flock, []

    def flock(fd, how):
        real(fd, how)
        if not seen:
            lock.unlink()  # as the one before does when it lets go
        seen.append(fd)

    monkeypatch.setattr(fcntl, "flock", flock)
    partial = StagingDirectory(tmp_path / "s.zarr", ONE)
    assert len(seen) == 2
    assert lock.exists()
    partial.release(keep=False)
