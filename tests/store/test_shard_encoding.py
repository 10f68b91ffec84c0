"""Encoded shards equal those of zarr-python byte for byte."""

import numpy as np
import pytest

from lazypert._internal.files import write_atomic
from lazypert.store.format import CODEC, COUNTS_CODEC, DELTA_CODEC, Grid
from lazypert.store.shard_encoding import encode_shard
from tests.support.arrays import values_of, write_ours, zarr_array

DTYPES = ["u2", "u4", "i4", "i8", "f4", "f8", "i1", "bool"]
PLAIN = [(codec, dtype) for codec in (CODEC, COUNTS_CODEC) for dtype in DTYPES]
DELTAS = [(DELTA_CODEC, dtype) for dtype in ("u2", "i4", "i8")]


@pytest.mark.parametrize(("codec", "dtype"), PLAIN + DELTAS)
@pytest.mark.parametrize("length", [1, 5, 31, 32, 33, 128, 129, 200, 256, 300])
def test_encoding_equals_zarr_byte_for_byte(tmp_path, length, codec, dtype):
    values, grid = values_of(length, dtype), Grid(length, 32, 128)
    zarr_array(tmp_path / "theirs", values, grid, codec)
    ours = write_ours(tmp_path / "ours", values, grid, codec)
    np.testing.assert_array_equal(ours.read(0, length), values)
    theirs = sorted((tmp_path / "theirs/a/c").iterdir())
    ours = sorted((tmp_path / "ours/a/c").iterdir())
    assert [p.name for p in ours] == [p.name for p in theirs]
    assert [p.read_bytes() for p in ours] == [p.read_bytes() for p in theirs]


@pytest.mark.parametrize("chunk", [65_536, 131_072])
def test_encoding_equals_zarr_at_realistic_chunk_sizes(tmp_path, chunk):
    values = np.random.default_rng(1).poisson(1.0, 5 * chunk + 17).astype("u2")
    grid = Grid(len(values), chunk, 4 * chunk)
    zarr_array(tmp_path / "theirs", values, grid)
    write_ours(tmp_path / "ours", values, grid)
    for shard in range(2):
        assert (tmp_path / f"ours/a/c/{shard}").read_bytes() == (tmp_path / f"theirs/a/c/{shard}").read_bytes()


def test_checksums_distinguish_valid_shards_of_equal_length(tmp_path):
    found = set()
    for seed in range(6):
        values = np.random.default_rng(seed).integers(0, 2**16, 128).astype("u2")
        found.add(write_atomic(tmp_path / str(seed), encode_shard(values, Grid(128, 32, 128))))
    assert len({size for size, _ in found}) == 1
    assert len(found) == 6
