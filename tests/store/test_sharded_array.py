"""Sharded arrays return what zarr-python and NumPy return, and any damage to them raises an error."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec

from lazypert.errors import LazypertError, StoreDamagedError
from lazypert.store.byte_reader import LocalReader
from lazypert.store.format import CODEC, Grid
from lazypert.store.sharded_array import ShardedArray
from tests.support.arrays import values_of, write_ours, zarr_array
from tests.support.stores import flip


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """300 elements in shards of 128 and chunks of 32: as a ShardedArray, a Zarr array and a NumPy array."""
    root = tmp_path_factory.mktemp("arrays")
    values, grid = values_of(300, "i4"), Grid(300, 32, 128)
    theirs = zarr_array(root, values, grid)
    return ShardedArray(LocalReader(root), "a", values.dtype, grid), theirs, values


@given(st.integers(0, 300), st.integers(0, 300))
@settings(max_examples=150, deadline=None)
def test_reading_equals_zarr_and_numpy(arrays, a, b):
    ours, theirs, values = arrays
    start, stop = min(a, b), max(a, b)
    found = ours.read(start, stop)
    np.testing.assert_array_equal(found, values[start:stop])
    np.testing.assert_array_equal(found, theirs[start:stop])
    assert found.dtype == values.dtype


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (299, 2), (301, 0), (0, 301)])
def test_reading_out_of_bounds_raises_an_index_error(arrays, start, length):
    ours, _, values = arrays
    with pytest.raises(IndexError, match="300 elements"):
        ours.read_into(np.empty(length, values.dtype), start)


def test_read_results_are_not_shared(arrays):
    ours, _, values = arrays
    ours.read(0, 40)[:] = -9
    ours.read(3, 9)[:] = -9
    np.testing.assert_array_equal(ours.read(0, 40), values[:40])


def test_pickles_are_small_and_read_the_same(arrays):
    ours, _, values = arrays
    ours.read(0, 300)
    again = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(again.read(50, 290), values[50:290])
    assert len(pickle.dumps(ours)) < 2_000


def test_many_threads_can_read_one_array(arrays):
    ours, _, values = arrays
    fresh = pickle.loads(pickle.dumps(ours))
    rng = np.random.default_rng(5)
    ranges = [tuple(sorted(rng.integers(0, 301, 2).tolist())) for _ in range(2_000)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda r: fresh.read(*r), ranges))
    for (start, stop), elements in zip(ranges, found, strict=True):
        np.testing.assert_array_equal(elements, values[start:stop])


@pytest.fixture
def written(tmp_path):
    values, grid = values_of(300), Grid(300, 32, 128)
    return tmp_path, write_ours(tmp_path, values, grid), values


def test_a_missing_shard_raises_an_error_that_names_it(written):
    root, ours, values = written
    (root / "a/c/1").unlink()
    with pytest.raises(StoreDamagedError, match="a/c/1: the file is missing"):
        ours.read(100, 200)
    np.testing.assert_array_equal(ours.read(0, 128), values[:128])


def test_a_shard_deleted_after_its_first_read_raises(written):
    root, ours, _ = written
    ours.read(128, 160)
    (root / "a/c/1").unlink()
    with pytest.raises(StoreDamagedError, match="a/c/1"):
        ours.read(160, 256)


@pytest.mark.parametrize("keep", [0, 1, 40, 67, 84, 168, -1], ids=lambda n: f"first_{n}_bytes")
def test_a_truncated_shard_raises(written, keep):
    root, ours, _ = written
    path = root / "a/c/0"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreDamagedError, match="a/c/0"):
        ours.read(0, 128)


def test_a_shard_truncated_after_its_index_was_read_raises(written):
    root, ours, _ = written
    ours.read(0, 3)
    path = root / "a/c/0"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(StoreDamagedError, match="cut short"):
        ours.read(64, 128)


def test_a_chunk_that_was_never_written_raises(tmp_path):
    values, grid = values_of(128), Grid(128, 32, 128)
    array = zarr.create_array(
        tmp_path, name="a", shape=(128,), dtype="u2", chunks=(32,), shards=(128,), filters=None,
        compressors=[BloscCodec(**CODEC.blosc()), Crc32cCodec()], fill_value=0, config={"write_empty_chunks": False},
    )  # fmt: skip
    array[32:64] = values[32:64]
    ours = ShardedArray(LocalReader(tmp_path), "a", values.dtype, grid)
    np.testing.assert_array_equal(ours.read(32, 64), values[32:64])
    with pytest.raises(StoreDamagedError, match="never written"):
        ours.read(0, 128)


def test_flipped_bits_of_a_shard_are_detected(tmp_path):
    values, grid = values_of(300), Grid(300, 32, 128)
    ours = write_ours(tmp_path, values, grid)
    path = tmp_path / "a/c/2"
    good = path.read_bytes()
    for bit in range(0, 8 * len(good), 3):
        flip(path, bit)
        with pytest.raises(StoreDamagedError, match="a/c/2"):
            pickle.loads(pickle.dumps(ours)).read(256, 300)
        path.write_bytes(good)


def test_damage_raises_a_lazypert_error_that_is_an_os_error_too(written):
    root, ours, _ = written
    os.truncate(root / "a/c/2", 7)
    with pytest.raises(LazypertError) as caught:
        ours.read(256, 300)
    assert isinstance(caught.value, OSError)
    assert "lazypert.verify" in str(caught.value)
