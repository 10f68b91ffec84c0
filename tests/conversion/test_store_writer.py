"""A store appears complete or not at all, and its arrays read back equal."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lazypert.conversion import staging
from lazypert.conversion.store_writer import StoreWriter
from lazypert.errors import LazypertError, StoreExistsError
from lazypert.store.format import MARKER, TABLES, Grid
from lazypert.store.manifest import MANIFEST_FILES, manifest_digest
from lazypert.store.store import Store
from lazypert.store.verify import verify
from tests.support.stores import ATTRS, leftovers


def fill(writer, value=1):
    writer.group("obs", {})
    writer.array("obs/a", np.full(3, value, "i4"))


def test_the_target_does_not_exist_before_finalise(tmp_path):
    target = tmp_path / "s.zarr"
    with StoreWriter(target) as writer:
        fill(writer)
        assert not target.exists()
        assert all(p.name.startswith("s.zarr.partial") for p in tmp_path.iterdir())
        assert writer.finalise(ATTRS) == target
    assert leftovers(tmp_path, "s.zarr") == []
    assert Store(target).read_array("obs/a").tolist() == [1, 1, 1]
    assert verify(target) > 0


def test_everything_is_synced_before_the_rename(tmp_path, monkeypatch):
    synced, at_rename = set(), set()
    monkeypatch.setattr(staging, "sync", lambda path: synced.add(path.relative_to(tmp_path).parts[2:]))
    rename = Path.rename

    def renamed(self, target):
        at_rename.update(synced if self.name == "store" else ())
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)
    with StoreWriter(tmp_path / "s.zarr") as writer:
        fill(writer)
        writer.finalise(ATTRS)
    assert {p.relative_to(tmp_path).parts[1:] for p in (tmp_path / "s.zarr").rglob("*")} <= at_rename


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt], ids=lambda e: e.__name__)
def test_an_exception_leaves_nothing(tmp_path, error):
    with pytest.raises(error), StoreWriter(tmp_path / "s.zarr") as writer:  # noqa: PT012
        fill(writer)
        raise error
    assert leftovers(tmp_path) == []


def test_exiting_without_finalise_leaves_nothing(tmp_path):
    with StoreWriter(tmp_path / "s.zarr") as writer:
        fill(writer)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("kind", ["store", "file", "empty_folder"])
def test_an_existing_target_is_refused_before_anything_is_written(tmp_path, kind):
    target = tmp_path / "s.zarr"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
    with pytest.raises(StoreExistsError, match="overwrite=True"):
        StoreWriter(target)
    assert leftovers(tmp_path, "s.zarr") == []


def test_overwrite_replaces_only_once_the_new_store_is_complete(tmp_path):
    target = tmp_path / "s.zarr"
    with StoreWriter(target) as writer:
        fill(writer, 1)
        writer.finalise(ATTRS)
    with pytest.raises(ValueError, match="stop"), StoreWriter(target, overwrite=True) as writer:  # noqa: PT012
        fill(writer, 2)
        raise ValueError("stop")
    assert Store(target).read_array("obs/a").tolist() == [1, 1, 1]
    with StoreWriter(target, overwrite=True) as writer:
        fill(writer, 2)
        assert Store(target).read_array("obs/a").tolist() == [1, 1, 1]
        writer.finalise(ATTRS)
    assert Store(target).read_array("obs/a").tolist() == [2, 2, 2]
    assert leftovers(tmp_path, "s.zarr") == []


@pytest.mark.parametrize("kind", ["folder_of_work", "file"])
def test_overwrite_refuses_what_is_not_a_store(tmp_path, kind):
    target = tmp_path / "data"
    if kind == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "thesis.txt").write_text("mine")
    with pytest.raises(StoreExistsError, match="not a Zarr store"):
        StoreWriter(target, overwrite=True)
    assert (target if kind == "file" else target / "thesis.txt").read_text() == "mine"
    assert leftovers(tmp_path, "data") == []


def test_the_second_of_two_writers_fails_with_an_error(tmp_path):
    target = tmp_path / "s.zarr"
    barrier, results = threading.Barrier(2), []

    def run(value):
        barrier.wait()
        try:
            with StoreWriter(target) as writer:
                fill(writer, value)
                time.sleep(0.2)
                writer.finalise(ATTRS)
            results.append(value)
        except StoreExistsError as error:
            results.append(str(error))

    threads = [threading.Thread(target=run, args=(value,)) for value in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [result for result in results if isinstance(result, int)]
    (message,) = [result for result in results if isinstance(result, str)]
    assert "another process is writing" in message or "exists already" in message
    assert Store(target).read_array("obs/a").tolist() == [winner] * 3
    assert leftovers(tmp_path, "s.zarr") == []
    verify(target)


def test_a_target_that_appears_in_the_meantime_is_not_replaced(tmp_path):
    target = tmp_path / "s.zarr"
    with pytest.raises(StoreExistsError), StoreWriter(target) as writer:  # noqa: PT012
        fill(writer)
        target.mkdir()
        (target / "theirs").write_text("x")
        writer.finalise(ATTRS)
    assert (target / "theirs").exists()
    assert leftovers(tmp_path, "s.zarr") == []


def test_the_manifest_and_the_root_cover_every_file(tmp_path):
    with StoreWriter(tmp_path / "s.zarr") as writer:
        fill(writer)
        writer.strings("obs/b", np.array(["x", "y", "z"], dtype=object))
        writer.finalise(ATTRS)
    store = Store(tmp_path / "s.zarr")
    entries = store.read_manifest()
    existing = {p.relative_to(store.path).as_posix() for p in Path(store.path).rglob("*") if p.is_file()}
    listed = {entry.key for entry in entries}
    listed_in_the_root = {key for key, _, _ in store.attrs[MANIFEST_FILES]}
    assert existing == {"zarr.json"} | listed | listed_in_the_root
    assert all(key.startswith(f"{TABLES}/manifest/") for key in listed_in_the_root)
    assert manifest_digest(entries) == store._root.attrs[MARKER]["manifest_digest"]


def test_dense_rows_read_back_equal(tmp_path):
    rows = np.random.default_rng(0).normal(size=(7, 3))
    with StoreWriter(tmp_path / "s.zarr") as writer:
        writer.group("obsm", {})
        array = writer.dense("obsm/e", rows.shape, rows.dtype)
        array[:] = rows
        writer.finalise(ATTRS | {"n_obs": 7})
    np.testing.assert_array_equal(Store(tmp_path / "s.zarr").obsm["e"][:], rows)


def test_a_template_writes_one_shard_at_a_time(tmp_path):
    grid, values = Grid(10, 2, 4), np.arange(10, dtype="i4")
    with StoreWriter(tmp_path / "s.zarr") as writer:
        template = writer.template("t", "i4", grid)
        for shard in (2, 0, 1):
            writer.add([template.write_shard(shard, values[slice(*grid.span(shard))])])
        with pytest.raises(AssertionError):
            template.write_shard(0, values[:3])
        writer.finalise(ATTRS)
    np.testing.assert_array_equal(Store(tmp_path / "s.zarr").read_array("t"), values)
    verify(tmp_path / "s.zarr")


def test_errors_are_lazypert_errors():
    assert issubclass(StoreExistsError, LazypertError)
    assert issubclass(StoreExistsError, FileExistsError)
