"""A store appears whole or not at all, and its columns come back as they were."""

import threading
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from lazypert.conversion import store_writer as writer_module
from lazypert.conversion.dataframe_writer import InMemoryColumn, write_column, write_frame
from lazypert.conversion.store_writer import StoreWriter
from lazypert.errors import LazypertError, SourceFormatError, StoreExistsError
from lazypert.store.format import MARKER, TABLES, Grid
from lazypert.store.manifest import MANIFEST_FILES, manifest_digest
from lazypert.store.store import Store
from lazypert.store.verify import _read_manifest, verify
from tests.support.stores import every_column, leftovers

ATTRS = {
    "roles": {}, "n_obs": 3, "n_vars": 1, "matrices": {}, "order": "source",
    "summary": {"n_groups": 1, "n_perturbations": 1, "n_cell_types": 1, "n_batches": 1, "n_controls": 0},
}  # fmt: skip


def fill(writer, value=1):
    writer.group("obs", {})
    writer.array("obs/a", np.full(3, value, "i4"))


def stored_frame(target, frame):
    """A store with nothing but an obs table, read back with AnnData and with the store's own reader."""
    with StoreWriter(target) as writer:
        write_frame(writer, "obs", InMemoryColumn(frame.index.to_numpy(dtype=object)), [str(c) for c in frame.columns])
        for name in frame.columns:
            write_column(writer, "obs", name, InMemoryColumn(frame[name]))
        writer.finalise(ATTRS | {"n_obs": len(frame)})
    import zarr

    return anndata.io.read_elem(zarr.open_group(target, mode="r")["obs"]), Store(target)


def test_nothing_is_at_the_target_until_finalise(tmp_path):
    target = tmp_path / "s.zarr"
    with StoreWriter(target) as writer:
        fill(writer)
        assert not target.exists()
        assert all(p.name.startswith("s.zarr.partial") for p in tmp_path.iterdir())
        assert writer.finalise(ATTRS) == target
    assert leftovers(tmp_path, "s.zarr") == []
    assert Store(target).table("obs/a").tolist() == [1, 1, 1]
    assert verify(target) > 0


def test_everything_is_on_disk_before_the_publish(tmp_path, monkeypatch):
    synced, at_publish = set(), set()
    monkeypatch.setattr(writer_module, "sync", lambda path: synced.add(path.relative_to(tmp_path).parts[2:]))
    rename = StoreWriter._publish
    monkeypatch.setattr(StoreWriter, "_publish", lambda self: [at_rename.update(synced), rename(self)])
    with StoreWriter(tmp_path / "s.zarr") as writer:
        fill(writer)
        writer.finalise(ATTRS)
    assert {p.relative_to(tmp_path).parts[1:] for p in (tmp_path / "s.zarr").rglob("*")} <= at_publish


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt], ids=lambda e: e.__name__)
def test_an_exception_leaves_nothing(tmp_path, error):
    with pytest.raises(error), StoreWriter(tmp_path / "s.zarr") as writer:  # noqa: PT012
        fill(writer)
        raise error
    assert leftovers(tmp_path) == []


def test_leaving_without_finalise_leaves_nothing(tmp_path):
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
    assert Store(target).table("obs/a").tolist() == [1, 1, 1]
    with StoreWriter(target, overwrite=True) as writer:
        fill(writer, 2)
        assert Store(target).table("obs/a").tolist() == [1, 1, 1]
        writer.finalise(ATTRS)
    assert Store(target).table("obs/a").tolist() == [2, 2, 2]
    assert leftovers(tmp_path, "s.zarr") == []


@pytest.mark.parametrize("kind", ["folder_of_work", "file"])
def test_overwrite_never_deletes_what_is_not_a_store(tmp_path, kind):
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


def test_of_two_writers_one_wins_and_the_other_is_told(tmp_path):
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
    (told,) = [result for result in results if isinstance(result, str)]
    assert "Another process is writing" in told or "exists already" in told
    assert Store(target).table("obs/a").tolist() == [winner] * 3
    assert leftovers(tmp_path, "s.zarr") == []
    verify(target)


def test_a_target_that_appears_meanwhile_is_not_replaced(tmp_path):
    target = tmp_path / "s.zarr"
    with pytest.raises(StoreExistsError), StoreWriter(target) as writer:  # noqa: PT012
        fill(writer)
        target.mkdir()
        (target / "theirs").write_text("x")
        writer.finalise(ATTRS)
    assert (target / "theirs").exists()
    assert leftovers(tmp_path, "s.zarr") == []


@pytest.mark.parametrize("name", ["__lazypert__", "zarr.json", "..", ".", "", "_index", "a/b"])
def test_reserved_column_names_are_refused(tmp_path, name):
    with StoreWriter(tmp_path / "s.zarr") as writer:
        write_frame(writer, "obs", InMemoryColumn(np.array(["x"], dtype=object)), [name])
        with pytest.raises(SourceFormatError, match="Rename the column"):
            write_column(writer, "obs", name, InMemoryColumn(np.ones(1)))
    assert leftovers(tmp_path) == []


def test_the_manifest_lists_every_file_but_the_root(tmp_path):
    with StoreWriter(tmp_path / "s.zarr") as writer:
        fill(writer)
        writer.strings("obs/b", np.array(["x", "y", "z"], dtype=object))
        writer.finalise(ATTRS)
    store = Store(tmp_path / "s.zarr")
    entries = _read_manifest(store)
    there = {p.relative_to(store.path).as_posix() for p in Path(store.path).rglob("*") if p.is_file()}
    listed = {entry.key for entry in entries}
    sealed_by_the_root = {key for key, _, _ in store.attrs[MANIFEST_FILES]}
    assert there == {"zarr.json"} | listed | sealed_by_the_root
    assert all(key.startswith(f"{TABLES}/manifest/") for key in sealed_by_the_root)
    assert manifest_digest(entries) == store._root.attrs[MARKER]["manifest_digest"]


def test_every_kind_of_column_comes_back(tmp_path):
    frame = every_column(40)
    found, store = stored_frame(tmp_path / "s.zarr", frame)
    expected = frame.copy()
    pd.testing.assert_frame_equal(found[list(frame.columns)], expected, check_index_type=False, check_dtype=False)
    for name in frame.columns:
        ours = pd.Series(store.column(f"obs/{name}"), index=frame.index, name=name)
        assert ours.isna().tolist() == frame[name].isna().tolist()
        kept = frame[name].notna()
        assert ours[kept].tolist() == frame[name][kept].tolist()
        if isinstance(frame[name].dtype, pd.CategoricalDtype):
            assert ours.cat.ordered == frame[name].cat.ordered
            assert ours.cat.categories.tolist() == frame[name].cat.categories.tolist()
            assert found[name].cat.ordered == frame[name].cat.ordered
        elif isinstance(frame[name].dtype, np.dtype) and frame[name].dtype.kind in "fiub":
            assert found[name].dtype == ours.dtype == frame[name].dtype


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(np.array([1, -2, 3], dtype=">i4"), id="big_endian_ints"),
        pytest.param(np.array([1.5, np.nan, 3], dtype=">f8"), id="big_endian_floats"),
        pytest.param(pd.array([1.5, None, 2.5], dtype="Float64"), id="nullable_floats"),
        pytest.param(pd.array(["a", "", "ü"], dtype="string"), id="string_array"),
        pytest.param(pd.array(["a", None, "ü"], dtype="string"), id="string_array_missing"),
        pytest.param(np.array(["a", None, "c"], dtype=object), id="objects_missing"),
        pytest.param(np.array(["a", "bb", "c"]), id="fixed_width_text"),
        pytest.param(pd.Categorical([True, False, None]), id="bool_categories"),
        pytest.param(pd.array([2**60, None, -1], dtype="Int64"), id="large_nullable"),
        pytest.param(np.array([2**63, 1, 2], dtype="u8"), id="unsigned"),
    ],
)
def test_other_columns_come_back(tmp_path, values):
    with StoreWriter(tmp_path / "s.zarr") as writer:
        write_frame(writer, "obs", InMemoryColumn(np.array(list("xyz"), dtype=object)), ["v"])
        write_column(writer, "obs", "v", InMemoryColumn(values))
        writer.finalise(ATTRS)
    store = Store(tmp_path / "s.zarr")
    found = store.column("obs/v")
    assert pd.isna(found).tolist() == pd.isna(values).tolist()
    kept = ~np.asarray(pd.isna(values))
    assert list(np.asarray(found, dtype=object)[kept]) == list(np.asarray(values, dtype=object)[kept])
    assert "obs/v" in str(store._root["obs/v"].path)
    import zarr

    frame = anndata.io.read_elem(zarr.open_group(tmp_path / "s.zarr", mode="r")["obs"])
    assert frame["v"].isna().tolist() == pd.isna(values).tolist()


@pytest.mark.parametrize("n", [127, 128, 32_767, 32_768])
def test_codes_hold_as_many_categories_as_there_are(tmp_path, n):
    values = pd.Categorical([f"c{i}" for i in range(n)])
    with StoreWriter(tmp_path / "s.zarr") as writer:
        writer.group("obs", {})
        write_column(writer, "obs", "v", InMemoryColumn(values))
        writer.finalise(ATTRS)
    assert (Store(tmp_path / "s.zarr").column("obs/v") == values).all()


def test_dense_rows_come_back(tmp_path):
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
    np.testing.assert_array_equal(Store(tmp_path / "s.zarr").table("t"), values)
    verify(tmp_path / "s.zarr")


def test_errors_are_lazypert_errors():
    assert issubclass(StoreExistsError, LazypertError)
    assert issubclass(StoreExistsError, FileExistsError)
