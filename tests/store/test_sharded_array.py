"""Shards equal zarr-python's byte for byte, and any damage to them is an error."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec

from lazypert._internal.files import write_atomic
from lazypert.errors import LazypertError, StoreDamagedError
from lazypert.store.byte_reader import LocalReader
from lazypert.store.chunk_kernels import checksum
from lazypert.store.format import CODEC, COUNTS_CODEC, Grid
from lazypert.store.shard_encoding import encode_shard
from lazypert.store.sharded_array import ShardedArray
from tests.support.stores import flip

SIZES = [1, 5, 31, 32, 33, 128, 129, 200, 256, 300]


def values_of(length, dtype="u2", seed=0):
    values = np.random.default_rng(seed).integers(0, 200, length).astype(dtype)
    return values * np.dtype(dtype).type(1.5) if np.dtype(dtype).kind == "f" else values


def write_ours(root, values, grid, codec=CODEC):
    for shard in range(grid.n_shards):
        start, stop = grid.span(shard)
        (Path(root) / "a/c").mkdir(parents=True, exist_ok=True)
        write_atomic(Path(root) / f"a/c/{shard}", encode_shard(values[start:stop], grid, codec))
    return ShardedArray(LocalReader(Path(root)), "a", values.dtype, grid)


def zarr_array(root, values, grid, codec=CODEC):
    array = zarr.create_array(
        root,
        name="a",
        shape=(grid.length,),
        dtype=values.dtype,
        chunks=(grid.chunk,),
        shards=(grid.shard,),
        filters=None,
        compressors=[BloscCodec(**asdict(codec)), Crc32cCodec()],
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    array[...] = values
    return array


@pytest.mark.parametrize("dtype", ["u2", "u4", "i4", "i8", "f4", "f8", "i1", "bool"])
@pytest.mark.parametrize("codec", [CODEC, COUNTS_CODEC], ids=lambda codec: codec.shuffle)
@pytest.mark.parametrize("length", SIZES)
def test_encoding_equals_zarr_byte_for_byte(tmp_path, length, dtype, codec):
    values, grid = values_of(length, dtype), Grid(length, 32, 128)
    zarr_array(tmp_path / "theirs", values, grid, codec)
    ours = write_ours(tmp_path / "ours", values, grid, codec)
    np.testing.assert_array_equal(ours.read(0, length), values)
    theirs = sorted((tmp_path / "theirs/a/c").iterdir())
    ours = sorted((tmp_path / "ours/a/c").iterdir())
    assert [p.name for p in ours] == [p.name for p in theirs]
    assert [p.read_bytes() for p in ours] == [p.read_bytes() for p in theirs]


@pytest.mark.parametrize("chunk", [65_536, 131_072])
def test_encoding_equals_zarr_at_the_formats_own_sizes(tmp_path, chunk):
    values = np.random.default_rng(1).poisson(1.0, 5 * chunk + 17).astype("u2")
    grid = Grid(len(values), chunk, 4 * chunk)
    zarr_array(tmp_path / "theirs", values, grid)
    write_ours(tmp_path / "ours", values, grid)
    for shard in range(2):
        assert (tmp_path / f"ours/a/c/{shard}").read_bytes() == (tmp_path / f"theirs/a/c/{shard}").read_bytes()


def test_write_atomic_reports_size_and_checksum(tmp_path):
    size, crc = write_atomic(tmp_path / "file", [b"1234", b"56789"])
    assert (tmp_path / "file").read_bytes() == b"123456789"
    assert size == 9
    assert crc == 0xCBF43926  # the check value of CRC-32
    assert checksum(b"123456789") == (0xE3069283).to_bytes(4, "little")  # that of CRC-32C


def test_checksums_tell_valid_shards_of_one_length_apart(tmp_path):
    found = set()
    for seed in range(6):
        values = np.random.default_rng(seed).integers(0, 2**16, 128).astype("u2")
        found.add(write_atomic(tmp_path / str(seed), encode_shard(values, Grid(128, 32, 128))))
    assert len({size for size, _ in found}) == 1
    assert len(found) == 6


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """300 elements in shards of 128 and chunks of 32: ours, zarr's, NumPy's."""
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
def test_reading_outside_is_an_index_error(arrays, start, length):
    ours, _, values = arrays
    with pytest.raises(IndexError, match="300 elements"):
        ours.read_into(np.empty(length, values.dtype), start)


def test_a_read_result_is_the_callers_own(arrays):
    ours, _, values = arrays
    ours.read(0, 40)[:] = -9
    ours.read(3, 9)[:] = -9
    np.testing.assert_array_equal(ours.read(0, 40), values[:40])


def test_pickles_without_its_buffers(arrays):
    ours, _, values = arrays
    ours.read(0, 300)
    again = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(again.read(50, 290), values[50:290])
    assert len(pickle.dumps(ours)) < 2_000


def test_many_threads_read_the_same_array(arrays):
    ours, _, values = arrays
    fresh = pickle.loads(pickle.dumps(ours))
    rng = np.random.default_rng(5)
    ranges = [tuple(sorted(rng.integers(0, 301, 2).tolist())) for _ in range(2_000)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda r: fresh.read(*r), ranges))
    for (start, stop), part in zip(ranges, found, strict=True):
        np.testing.assert_array_equal(part, values[start:stop])


def test_keeps_few_indexes(tmp_path):
    values, grid = values_of(4_000), Grid(4_000, 8, 16)
    ours = write_ours(tmp_path, values, grid)
    ours.KEEP_INDEXES = 10
    for start in range(0, 3_900, 3):
        np.testing.assert_array_equal(ours.read(start, start + 5), values[start : start + 5])
    assert len(ours._indexes) <= 10


@pytest.fixture
def written(tmp_path):
    values, grid = values_of(300), Grid(300, 32, 128)
    return tmp_path, write_ours(tmp_path, values, grid), values


def test_a_missing_shard_is_an_error_that_names_it(written):
    root, ours, values = written
    (root / "a/c/1").unlink()
    with pytest.raises(StoreDamagedError, match="a/c/1: the file is missing"):
        ours.read(100, 200)
    np.testing.assert_array_equal(ours.read(0, 128), values[:128])


def test_a_shard_that_goes_missing_after_its_first_read_is_an_error(written):
    root, ours, _ = written
    ours.read(128, 160)
    (root / "a/c/1").unlink()
    with pytest.raises(StoreDamagedError, match="a/c/1"):
        ours.read(160, 256)


@pytest.mark.parametrize("keep", [0, 1, 40, 67, 84, 168, -1], ids=lambda n: f"first_{n}_bytes")
def test_a_truncated_shard_is_an_error(written, keep):
    root, ours, _ = written
    path = root / "a/c/0"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreDamagedError, match="a/c/0"):
        ours.read(0, 128)


def test_a_shard_truncated_after_its_index_was_read_is_an_error(written):
    root, ours, _ = written
    ours.read(0, 3)
    path = root / "a/c/0"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(StoreDamagedError, match="cut short"):
        ours.read(64, 128)


def test_a_chunk_that_was_never_written_is_an_error(tmp_path):
    values, grid = values_of(128), Grid(128, 32, 128)
    array = zarr.create_array(
        tmp_path, name="a", shape=(128,), dtype="u2", chunks=(32,), shards=(128,), filters=None,
        compressors=[BloscCodec(**asdict(CODEC)), Crc32cCodec()], fill_value=0, config={"write_empty_chunks": False},
    )  # fmt: skip
    array[32:64] = values[32:64]
    ours = ShardedArray(LocalReader(tmp_path), "a", values.dtype, grid)
    np.testing.assert_array_equal(ours.read(32, 64), values[32:64])
    with pytest.raises(StoreDamagedError, match="never written"):
        ours.read(0, 128)


def test_flipped_bits_of_a_shard_are_found(tmp_path):
    values, grid = values_of(300), Grid(300, 32, 128)
    ours = write_ours(tmp_path, values, grid)
    path = tmp_path / "a/c/2"
    good = path.read_bytes()
    for bit in range(0, 8 * len(good), 3):
        flip(path, bit)
        with pytest.raises(StoreDamagedError, match="a/c/2"):
            pickle.loads(pickle.dumps(ours)).read(256, 300)
        path.write_bytes(good)


def test_damage_raises_a_lazypert_error_that_is_an_os_error(written):
    root, ours, _ = written
    os.truncate(root / "a/c/2", 7)
    with pytest.raises(LazypertError) as caught:
        ours.read(256, 300)
    assert isinstance(caught.value, OSError)
    assert "lazypert.verify" in str(caught.value)
