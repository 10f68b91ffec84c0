"""Updates of a store at a URL: the result of a local one, and at any moment the old store or the new one."""

import contextlib
import itertools
import json
import shutil
import time
from datetime import UTC, datetime

import anndata
import fsspec
import numpy as np
import pandas as pd
import pytest
import zarr

import lazypert as lp
from lazypert.conversion import target_claim
from lazypert.errors import ConfigError, MachineError, StoreChangedError, StoreExistsError, StoreNotFoundError
from lazypert.store import updating
from lazypert.store.object_folder import ObjectFolder
from lazypert.store.remote_reader import RemoteReader
from lazypert.store.store import Store
from lazypert.store.unfinished import CLAIM
from lazypert.store.updating import UPDATING
from lazypert.updates import append as append_module
from lazypert.updates.store_update import StoreUpdate
from tests.support.appended import files_of
from tests.support.killer import files
from tests.support.loaders import same_batch, whole_loader
from tests.support.stores import ROLES

URL = "memory://bucket/s.zarr"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A local store whose last shards are not full, and a file to append to it."""
    folder = tmp_path_factory.mktemp("made")
    one, two = files_of(folder, lean=True)
    for path in (one, two):
        adata = anndata.read_h5ad(path)
        adata.obsm["X_pca"] = np.random.default_rng(adata.n_obs).random((adata.n_obs, 3))
        adata.write_h5ad(path)
    lp.convert(one, folder / "s.zarr", progress=False, **ROLES)
    lp.append(folder / "s.zarr", two, progress=False)
    adata.obs_names = "third_" + adata.obs_names
    adata.write_h5ad(folder / "three.h5ad")
    return folder / "s.zarr", folder / "three.h5ad"


@pytest.fixture
def put_back(made, tmp_path, monkeypatch):
    """Put the store as it was at the URL; temporary files are in a folder of the test."""
    monkeypatch.setattr("lazypert.conversion.remote_staging.default_work_dir", lambda: tmp_path / "work")
    content, storage = files(made[0]), fsspec.filesystem("memory")

    def restore():
        if storage.exists("/bucket"):
            storage.rm("/bucket", recursive=True)
        for key, data in content.items():
            storage.pipe_file(f"/bucket/s.zarr/{key}", data)

    restore()
    return restore


@pytest.fixture
def more(made, put_back):
    return made[1]


@pytest.fixture
def at_noon(monkeypatch):
    """Stop the clock that the record of an appended file has."""

    class Stopped(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2030, 1, 1, 12, tzinfo=tz or UTC)

    monkeypatch.setattr(append_module, "datetime", Stopped)


def objects():
    folder = ObjectFolder(URL)
    return {key: folder.get(key) for key in folder.list()}


def sent():
    """Bytes of all objects, without the line ends by which root metadata tell versions apart."""
    found = objects()
    return found | {"zarr.json": found["zarr.json"].rstrip(b"\n")}


def table(n=160, **columns):
    names = lp.open(URL).cell_name.to_numpy()[:n]
    return pd.DataFrame(columns or {"guide": [f"g{i % 3}" for i in range(len(names))]}, index=names)


def obs():
    opened = Store(URL)
    return {name: list(map(str, opened.read_column(f"obs/{name}"))) for name in opened.obs_columns}


def everything(store):
    """All values of an open store."""
    columns = [list(map(str, store.read_column(f"obs/{name}"))) for name in sorted(store.obs_columns)]
    x = [store.open_matrix(name).read(0, store.n_obs).to_dense() for name in store.matrices]
    return columns, [*x, store.obsm["X_pca"][:], store.groups.sizes, store.cell_stats.control_sum]


def assert_same(one, other):
    assert one[0] == other[0]
    for a, b in zip(one[1], other[1], strict=True):
        np.testing.assert_array_equal(a, b)


def watch(monkeypatch, seen):
    """Call `seen` with the name and the key before every request that changes something."""
    for name in ("put", "copy", "delete"):
        original = getattr(ObjectFolder, name)

        def changed(self, key, *args, original=original, name=name, **options):
            seen(name, key)
            return original(self, key, *args, **options)

        monkeypatch.setattr(ObjectFolder, name, changed)


def test_each_update_gives_the_bytes_of_a_local_one(made, more, tmp_path):
    local, n = shutil.copytree(made[0], tmp_path / "s.zarr"), 160
    rows = table(60, guide=["g1", "g2"] * 30, score=np.arange(60.0))
    for store in (local, URL):
        with pytest.warns(UserWarning, match="100 of the store's 160 cells"):
            lp.add_obs(store, rows)
        lp.add_obs(store, table(n, guide=["h"] * n), overwrite=True)
        lp.add_layer(store, "double", np.full((n, Store(local).n_vars), 2))
        lp.add_obsm(store, "X_more", np.arange(2.0 * n).reshape(n, 2))
    assert sent() == files(local)
    assert list((tmp_path / "work").iterdir()) == []
    assert lp.verify(URL) == lp.verify(local)


@pytest.mark.slow
@pytest.mark.parametrize("n_categories", [2, 200])
def test_appending_gives_the_bytes_of_appending_locally(made, more, tmp_path, at_noon, n_categories):
    """With 200 new categories, a column has to be written again."""
    local, many = shutil.copytree(made[0], tmp_path / "s.zarr"), anndata.read_h5ad(more)
    many = anndata.concat([many] * 3, index_unique="-")
    many.obs["batch"] = pd.Categorical([f"b{i % n_categories}" for i in range(many.n_obs)])
    for store in (local, URL):
        lp.append(store, many, dataset="many", progress=False)
    assert ("obs/batch" in Store(URL).appended[1]["rewritten"]) == (n_categories == 200)
    assert sent() == files(local)
    assert list((tmp_path / "work").iterdir()) == []
    assert lp.verify(URL) == lp.verify(local)


STOPS = {
    "the claim": lambda _roots, _n: 0,
    "the plan": lambda _roots, _n: 1,
    "an object that is new": lambda _roots, _n: 3,
    "a copy": lambda roots, _n: roots[0] - 2,
    "the root metadata that name the copies": lambda roots, _n: roots[0],
    "an object that is replaced": lambda roots, _n: (roots[0] + roots[1]) // 2,
    "the root metadata": lambda roots, _n: roots[1],
    "what is deleted": lambda roots, _n: roots[1] + 1,
    "the claim at the end": lambda _roots, n: n - 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_an_update_that_stops_anywhere_leaves_the_old_store_or_the_new_one(more, put_back, monkeypatch, stop):
    """From some change on, the storage fails for good, as it also is for the objects if the process is killed."""
    before, changes = everything(Store(URL)), []
    with monkeypatch.context() as patch:
        watch(patch, lambda _, key: changes.append(key))
        lp.append(URL, more, progress=False)
    after = everything(Store(URL))
    roots = [number for number, key in enumerate(changes) if key == "zarr.json"]
    assert len(roots) == 2
    put_back()
    stop, count = stop(roots, len(changes)), itertools.count()

    def fail(*_):
        if next(count) >= stop:
            raise MachineError("the storage is gone")

    is_complete = stop > roots[1]
    with monkeypatch.context() as patch:
        watch(patch, fail)
        with contextlib.nullcontext() if is_complete else pytest.raises(MachineError, match="storage is gone"):
            lp.append(URL, more, progress=False)
    lp.verify(URL)
    assert_same(everything(Store(URL)), after if is_complete else before)
    if is_complete:
        lp.add_obsm(URL, "other", np.ones((230, 1)))
    else:
        lp.append(URL, more, progress=False)
    assert_same(everything(Store(URL)), after)
    lp.verify(URL)
    store = Store(URL)
    known = {entry.key for entry in store.read_manifest()} | {one[0] for one in store.attrs["manifest_files"]}
    assert objects().keys() == known | {"zarr.json"}, "nothing else is left"


@pytest.mark.slow
def test_whoever_opens_the_store_meanwhile_sees_one_version_of_it(more, monkeypatch):
    before, opened, lazily = everything(Store(URL)), Store(URL), Store(URL)
    make, looked, foreign = whole_loader(URL), itertools.count(1), []
    batches, running = list(make()), iter(make())
    first = next(running)

    def look(name, key):
        is_due = name == "put" and UPDATING in Store(URL).attrs and (next(looked) % 16 == 0 or key == "zarr.json")
        if is_due and key != CLAIM:
            lp.verify(URL)
            assert_same(everything(Store(URL)), before)
            assert_same(everything(opened), before)
            seen = anndata.read_zarr(zarr.storage.FsspecStore.from_url(URL, read_only=True))
            foreign.append(np.array_equal(seen.X.toarray(), before[1][0]))

    with monkeypatch.context() as patch:
        watch(patch, look)
        lp.append(URL, more, progress=False)
    assert len(foreign) > 2
    assert all(foreign)
    assert_same(everything(lazily), before)
    for one, other in zip([first, *running], batches, strict=True):
        assert same_batch(one, other)
    assert Store(URL).n_obs == 230


def test_a_column_that_is_being_replaced_is_the_old_one_or_an_error(more, monkeypatch):
    lp.add_obs(URL, table())
    before, opened = obs(), Store(URL)
    began, seen = [], []

    def look(name, key):
        if name == "put" and key == "zarr.json" and UPDATING in Store(URL).attrs:
            seen.append(obs() == before)
            began.append(Store(URL))
            with pytest.raises(StoreChangedError, match="obs/guide: the column was replaced"):
                opened.read_column("obs/guide")
            opened.read_column("obs/batch")

    with monkeypatch.context() as patch:
        watch(patch, look)
        lp.add_obs(URL, table(guide=["other"] * 160), overwrite=True)
    assert seen == [True]
    for store in (*began, opened):
        with pytest.raises(StoreChangedError, match="obs/guide: the column was replaced"):
            store.read_column("obs/guide")
    assert set(obs()["guide"]) == {"other"}


@pytest.mark.slow
def test_what_a_reader_has_seen_of_an_update_that_was_undone_harms_nobody(more, tmp_path, monkeypatch):
    """Neither in memory nor in a cache on disk, where the index of a shard may be that of the lost version."""
    before = everything(Store(URL))
    arrays = [store.open_array("X/indptr") for store in (Store(URL), Store(URL, cache_dir=tmp_path / "cache"))]

    def look(name, key):
        if name == "put" and key == "zarr.json" and UPDATING in Store(URL).attrs:
            for array in arrays:
                array.indexes.read([1])
            raise MachineError("the storage is gone")

    with monkeypatch.context() as patch, pytest.raises(MachineError, match="storage is gone"):  # noqa: PT012
        watch(patch, look)
        lp.append(URL, more, progress=False)
    lp.add_obs(URL, table())
    for array in arrays:
        with pytest.raises(StoreChangedError, match="Open the store again"):
            array.read(0, 160)
    again = Store(URL, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(again.matrix().read(0, 160).to_dense(), before[1][0])


def test_one_of_two_updates_wins(more, tmp_path):
    before, rows = objects(), table()
    for work_dir in (None, tmp_path / "another machine"):
        with StoreUpdate(URL), pytest.raises(MachineError, match=r"another process is writing .* Wait for it"):
            lp.add_obs(URL, rows, work_dir=work_dir)
    with StoreUpdate(URL), pytest.raises(StoreExistsError, match="another process is writing"):
        lp.convert(more, URL, overwrite=True, work_dir=tmp_path / "w", progress=False, **ROLES)
    assert objects() == before
    lp.add_obs(URL, rows)
    assert "guide" in obs()


def test_a_claim_that_is_lost_stops_the_update_and_one_that_expired_is_taken_over(more, monkeypatch, tmp_path):
    other = json.dumps({"claim": "other", "is_replacing": True, "renewed": datetime.now(UTC).isoformat()}).encode()
    before, rows = obs(), table()

    def steal(name, key):
        if name == "put" and key == "obs/guide/codes/c/0":
            fsspec.filesystem("memory").pipe_file(f"/bucket/s.zarr/{CLAIM}", other)

    with monkeypatch.context() as patch, pytest.raises(MachineError, match="begun to write"):  # noqa: PT012
        watch(patch, steal)
        lp.add_obs(URL, rows)
    assert obs() == before
    lp.verify(URL)
    assert objects()[CLAIM] == other
    with pytest.raises(MachineError, match="another process"):
        lp.add_obs(URL, rows)
    monkeypatch.setattr(target_claim, "EXPIRY", -1.0)
    lp.add_obs(URL, rows, work_dir=tmp_path / "another machine")
    assert obs().keys() == {*before, "guide"}
    assert not [key for key in objects() if "partial" in key]


def test_objects_that_something_else_deletes_stop_the_update(more, monkeypatch):
    before, rows, lost = objects(), table(), []

    def lose(name, key):
        if name == "copy" and not lost:
            fsspec.filesystem("memory").rm("/bucket/s.zarr/obs/guide/codes/c/0")
            lost.append(key)

    with monkeypatch.context() as patch, pytest.raises(MachineError, match=r"obs/guide/codes/c/0 and .* as they were"):  # noqa: PT012
        watch(patch, lose)
        lp.add_obs(URL, rows)
    found = objects()
    assert found.pop("zarr.json") == before.pop("zarr.json") + b"\n", "another text, for caches"
    assert found == before


def test_other_objects_below_the_url_stay(more):
    notes = "/bucket/s.zarr/notes.txt"
    fsspec.filesystem("memory").pipe_file(notes, b"mine")
    lp.append(URL, more, progress=False)
    assert fsspec.filesystem("memory").cat_file(notes) == b"mine"
    lp.verify(URL)


def test_wrong_urls_and_options_are_clear_errors(more, tmp_path):
    rows = table()
    for url, kind, says in (
        ("memory://bucket/none.zarr", StoreNotFoundError, r"no zarr\.json"),
        ("https://example.com/s.zarr", ConfigError, "cannot be written over HTTP"),
        ("memory://bucket/s.zarr?signature=1", ConfigError, "a query in it"),
        ("zz://bucket/s.zarr", ConfigError, "zz"),
        ("memory://", ConfigError, "something in a bucket"),
    ):
        with pytest.raises(kind, match=says):
            lp.add_obs(url, rows)
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match=r"work_dir: the folder .* not writable"):
        lp.add_obs(URL, rows, work_dir=tmp_path / "file" / "below")
    with pytest.raises(ConfigError, match="work_dir: got"):
        lp.add_obs(tmp_path / "s.zarr", rows, work_dir=tmp_path)
    assert "guide" not in obs()


def test_a_damaged_object_is_not_sealed_again(more):
    storage, path = fsspec.filesystem("memory"), "/bucket/s.zarr/obs/__lazypert__/source_row/c/1"
    data = storage.cat_file(path)
    storage.pipe_file(path, data[:40] + bytes([data[40] ^ 1]) + data[41:])
    with pytest.raises(lp.errors.StoreDamagedError, match="source_row/c/1: missing, or its bytes changed"):
        lp.append(URL, more, progress=False)


def test_a_file_url_is_a_local_store(made, more, tmp_path):
    local = shutil.copytree(made[0], tmp_path / "s.zarr")
    lp.add_obs(f"file://{local}", table())
    assert "guide" in Store(local).obs_columns


def test_what_root_metadata_permit_waits_for_readers_that_have_just_read_others(more, monkeypatch):
    """For a moment, in which readers need not ask for them again, nothing follows either of the two root metadata."""
    monkeypatch.setattr(updating, "GRACE", 0.3)
    changes = []
    with monkeypatch.context() as patch:
        watch(patch, lambda name, key: changes.append((key, time.monotonic())))
        lp.add_obs(URL, table())
        lp.add_obs(URL, table(guide=["other"] * 160), overwrite=True)
    changes = [change for change in changes if change[0] != CLAIM]
    roots = [number for number, (key, _) in enumerate(changes) if key == "zarr.json"]
    assert len(roots) == 4
    for number in roots:
        assert changes[number + 1][1] - changes[number][1] >= 0.3


def test_a_reader_looks_again_only_if_opening_took_long(more, monkeypatch):
    looked, identity = [], RemoteReader.root_identity
    monkeypatch.setattr(RemoteReader, "root_identity", lambda self: looked.append(self) or identity(self))
    n_looks = []
    for fresh in (600.0, 0.0):
        looked.clear()
        monkeypatch.setattr(updating, "FRESH", fresh)
        lp.open(URL)
        n_looks.append(len(looked))
    assert n_looks[1] == n_looks[0] + 1
