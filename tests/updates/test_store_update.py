"""A store is as before an update or as after it, whenever the update stops, and whoever reads it."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert.conversion.target_lock import TargetLock
from lazypert.errors import ConfigError, DiskFullError, MachineError, StoreDamagedError, StoreNotFoundError
from lazypert.store.store import Store
from lazypert.updates import store_folder
from lazypert.updates.store_update import StoreUpdate
from tests.support.killer import files
from tests.support.stores import ROLES, converted, read_store


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def table(store, **columns):
    names = lp.open(store).cell_name.to_numpy()
    columns = columns or {"new": np.arange(len(names))}
    return pd.DataFrame(columns, index=names)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A store with every kind of column."""
    return converted(tmp_path_factory.mktemp("full"))[1]


def stop_repeatedly(made, tmp_path, mode, action, n_stops):
    """Stop updates before evenly spaced changes of files, including the first and the last one."""
    folder = tmp_path / "stores"
    folder.mkdir()
    shutil.copytree(made, folder / "s.zarr")
    command = [sys.executable, "-m", "tests.support.add_killer", str(folder / "s.zarr"), mode, action, str(n_stops)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["wrong"] == 0, done.stderr
    return counts


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_stopped_update_leaves_the_old_store_or_the_new_one(made, tmp_path):
    counts = stop_repeatedly(made, tmp_path, "overwrite", "kill", 8)
    assert counts["old"] + counts["new"] == 8
    assert counts["old"] >= 3
    assert counts["new"] > 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("action", ["kill", "full"])
@pytest.mark.parametrize("mode", ["add", "overwrite"])
def test_an_update_stopped_at_many_changes_leaves_the_old_store_or_the_new_one(full, tmp_path, mode, action):
    counts = stop_repeatedly(full, tmp_path, mode, action, 16)
    assert counts["old"] + counts["new"] == 16


def test_an_exception_leaves_the_store_as_it_was(store):
    before = files(store)
    with pytest.raises(KeyboardInterrupt), StoreUpdate(store) as update:  # noqa: PT012
        update.start().array("obs/new", np.zeros(Store(store).n_obs))
        raise KeyboardInterrupt
    assert files(store) == before
    assert names(store.parent) == [store.name]


def test_files_are_linked_not_copied(store):
    inode = (store / "X/data/c/0").stat().st_ino
    lp.add_obs(store, table(store))
    assert (store / "X/data/c/0").stat().st_ino == inode
    assert (store / "X/data/c/0").stat().st_nlink == 1


def test_a_disk_without_hard_links_gets_copies(store, monkeypatch):
    before = files(store)

    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    lp.add_obs(store, table(store))
    lp.verify(store)
    after = files(store)
    changed = {key for key in before if after[key] != before[key]}
    manifest = {f"obs/__lazypert__/manifest/{name}" for name in ("key", "size", "crc32")}
    assert changed == {"zarr.json", "obs/zarr.json"} | {
        key for key in changed if key.rpartition("/c/")[0] in manifest
    } | {f"{path}/zarr.json" for path in manifest}


def test_a_users_own_files_stay(store):
    (store / "notes.txt").write_text("mine")
    (store / "link").symlink_to("X")
    lp.add_obs(store, table(store))
    assert (store / "notes.txt").read_text() == "mine"
    assert (store / "link" / "zarr.json").is_file()
    lp.verify(store)


def test_a_link_to_a_store_stays_a_link(store, tmp_path):
    (tmp_path / "link.zarr").symlink_to(store)
    lp.add_obs(tmp_path / "link.zarr", table(store))
    assert (tmp_path / "link.zarr").is_symlink()
    assert "new" in Store(store).obs_columns


def test_a_second_writer_fails_with_a_clear_error(store):
    before = files(store)
    with StoreUpdate(store), pytest.raises(MachineError, match=r"another process is writing .* Wait for it"):
        lp.add_obs(store, table(store))
    lock = TargetLock(store.with_name("s.zarr.partial.lock"), wait=False)  # as a conversion holds it
    with pytest.raises(MachineError, match="another process"):
        lp.add_obs(store, table(store))
    lock.release()
    assert files(store) == before
    lp.add_obs(store, table(store))
    assert names(store.parent) == [store.name]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_read_only_folder_is_a_clear_error(store, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(store_folder, "TargetLock", refuse)
        with pytest.raises(MachineError, match=r"not writable .*Nothing was changed"):
            lp.add_obs(store, table(store))
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(MachineError, match=r"not writable .*Nothing was changed"):
        lp.add_obs(store, table(store))


def test_urls_missing_stores_and_files_are_clear_errors(store, tmp_path):
    with pytest.raises(ConfigError, match="cannot be written over HTTP"):
        lp.add_obs("https://example.com/s.zarr", table(store))
    with pytest.raises(StoreNotFoundError, match="There is no store"):
        lp.add_obs(tmp_path / "other.zarr", table(store))
    assert names(tmp_path) == [store.name]


def test_old_format_versions_are_refused(tmp_path):
    for version in (1, 2):
        shutil.unpack_archive(Path(__file__).parents[1] / f"data/golden_v{version}.zip", tmp_path / str(version))
        (old,) = (path for path in [tmp_path / str(version), *tmp_path.glob(f"{version}/*")] if (path / "obs").is_dir())
        with pytest.raises(ConfigError, match=f"format version {version} .* Convert the source again"):
            lp.add_obs(old, table(old))


@pytest.mark.parametrize("key", ["zarr.json", "obs/__lazypert__/manifest/size/c/0"])
def test_a_damaged_manifest_is_not_sealed_again(store, key):
    rows = table(store)
    data = (store / key).read_bytes()
    if key == "zarr.json":
        data = data.replace(b'"s.h5ad"', b'"t.h5ad"')
    else:
        data = data[:20] + bytes([data[20] ^ 1]) + data[21:]
    (store / key).write_bytes(data)
    with pytest.raises(StoreDamagedError):
        lp.add_obs(store, rows)


def test_damage_stays_visible(store):
    (store / "X/data/c/0").unlink()
    lp.add_obs(store, table(store))
    with pytest.raises(StoreDamagedError, match="X/data/c/0: missing"):
        lp.verify(store)


def test_a_conversion_cleans_up_after_a_killed_update(store, made):
    leftover = store.with_name("s.zarr.partial-add-0123456789ab")
    (leftover / "store").mkdir(parents=True)
    backup = store.with_name("s.zarr.partial-add-mine")
    backup.mkdir()
    lp.convert(made.parent / "s.h5ad", store, progress=False, overwrite=True, **ROLES)
    assert names(store.parent) == ["s.zarr", backup.name]


@pytest.fixture
def without_exchange(monkeypatch):
    """As on disks that cannot exchange two folders at once."""
    monkeypatch.setattr("lazypert._internal.files.ctypes.CDLL", lambda *_, **__: None)


@pytest.mark.usefixtures("without_exchange")
def test_without_an_exchange_of_folders_updates_work(store):
    lp.add_obs(store, table(store))
    lp.verify(store)
    assert "new" in read_store(store).obs
    assert names(store.parent) == [store.name]


@pytest.mark.usefixtures("without_exchange")
@pytest.mark.parametrize("n_renames", [2, 3, 4])
def test_without_an_exchange_of_folders_the_next_update_puts_a_store_back(store, monkeypatch, n_renames):
    rows, rename, calls = table(store), Path.rename, []

    def stop(path, target):
        calls.append(target)
        if len(calls) == n_renames:
            raise SystemExit  # as a kill would
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):  # noqa: PT012
        patch.setattr(Path, "rename", stop)
        lp.add_obs(store, rows)
    if not store.exists():
        with pytest.raises(StoreNotFoundError, match=r"interrupted.*\.swap' is the store as it was"):
            Store(store)
    lp.add_obs(store, rows.rename(columns={"new": "other"}))
    lp.verify(store)
    assert "other" in Store(store).obs_columns
    assert names(store.parent) == [store.name]


def test_an_error_about_the_callers_own_files_is_not_about_the_store(store, tmp_path):
    """A full or protected disk of something else keeps its own error; one of the store is explained."""
    own = tmp_path / "own"
    for number, kind in ((errno.ENOSPC, OSError), (errno.EACCES, PermissionError)):
        with pytest.raises(kind) as caught, StoreUpdate(store):
            raise OSError(number, os.strerror(number), str(own))
        assert type(caught.value) is kind
        with pytest.raises(kind) as caught, StoreUpdate(store):
            raise OSError(number, os.strerror(number))
        assert type(caught.value) is kind
    with pytest.raises(DiskFullError, match="The store is as it was"), StoreUpdate(store):
        raise OSError(errno.ENOSPC, "No space left on device", str(store / "x"))
    lp.verify(store)
