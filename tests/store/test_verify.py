"""verify passes on an intact store and detects any damage to any file."""

import random

import pytest

import lazypert as lp
from lazypert.errors import LazypertError, StoreDamagedError, StoreNotFoundError
from lazypert.store.manifest import MANIFEST
from tests.support.stores import converted, copied, flip, small_grids


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        small_grids(patch)
        return converted(tmp_path_factory.mktemp("verify"))[1]


@pytest.fixture(scope="module")
def broken(made, tmp_path_factory):
    return copied(made, tmp_path_factory.mktemp("broken") / "s.zarr")


def all_files(store):
    return sorted(path for path in store.rglob("*") if path.is_file())


def test_an_intact_store_passes(made):
    n_manifest = sum(f"{MANIFEST}/" in path.as_posix() and path.parent.name != "manifest" for path in all_files(made))
    assert lp.verify(made) == lp.verify(str(made)) == len(all_files(made)) - 1 - n_manifest


def damage_reported(store):
    """Verify a damaged store and return the error message."""
    with pytest.raises(LazypertError) as caught:
        lp.verify(store)
    return str(caught.value)


def test_random_flipped_bits_are_detected(broken):
    rng = random.Random(11)
    paths = all_files(broken)
    chosen = [p for p in paths if p.name == "zarr.json"], [p for p in paths if p.name != "zarr.json"]
    for path in rng.sample(chosen[0], 8) + rng.sample(chosen[1], 12):
        good = path.read_bytes()
        flip(path, rng.randrange(8 * len(good)))
        message = damage_reported(broken)
        if path != broken / "zarr.json" and MANIFEST not in path.as_posix():
            assert path.relative_to(broken).as_posix() in message
        path.write_bytes(good)
    lp.verify(broken)


def test_flipped_bits_of_the_manifest_are_detected(broken):
    rng = random.Random(12)
    for path in [p for p in all_files(broken) if MANIFEST in p.as_posix()]:
        good = path.read_bytes()
        flip(path, rng.randrange(8 * len(good)))
        damage_reported(broken)
        path.write_bytes(good)


def test_flipped_bits_of_the_root_metadata_are_detected(broken):
    rng = random.Random(13)
    path = broken / "zarr.json"
    good = path.read_bytes()
    for _ in range(40):
        flip(path, rng.randrange(8 * len(good)))
        damage_reported(broken)
        path.write_bytes(good)


def test_deleted_files_are_detected(tmp_path, made):
    store = copied(made, tmp_path / "s.zarr")
    (store / "X/data/c/1").unlink()
    (store / "obs/zarr.json").unlink()
    with pytest.raises(StoreDamagedError, match=r"X/data/c/1: missing\n  obs/zarr.json: missing"):
        lp.verify(store)


def test_a_truncated_shard_is_detected(tmp_path, made):
    store = copied(made, tmp_path / "s.zarr")
    path = store / "X/indices/c/0"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreDamagedError, match=r"X/indices/c/0: got [\d,]+ bytes, expected [\d,]+"):
        lp.verify(store)


def test_swapped_shards_are_detected(tmp_path, made):
    store = copied(made, tmp_path / "s.zarr")
    a, b = store / "X/data/c/0", store / "X/data/c/1"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    with pytest.raises(StoreDamagedError, match=r"X/data/c/0.*\n.*X/data/c/1"):
        lp.verify(store)


def test_a_manifest_from_another_store_is_detected(tmp_path, made):
    _, other = converted(tmp_path, order="source")
    store = copied(made, tmp_path / "s.zarr")
    for key in ("key", "size", "crc32"):
        path = next((other / MANIFEST / key / "c").iterdir())
        (store / path.relative_to(other)).write_bytes(path.read_bytes())
    with pytest.raises(StoreDamagedError):
        lp.verify(store)


def test_long_lists_of_damage_are_cut(tmp_path, made):
    store = copied(made, tmp_path / "s.zarr")
    for path in (store / "obs").rglob("c/*"):
        if MANIFEST not in path.as_posix():
            path.unlink()
    with pytest.raises(StoreDamagedError, match=r"and \d+ more") as caught:
        lp.verify(store)
    assert len(str(caught.value).splitlines()) < 15


def test_a_missing_store_raises_store_not_found(tmp_path):
    with pytest.raises(StoreNotFoundError):
        lp.verify(tmp_path / "none.zarr")
