"""Grids tile arrays with shards and chunks, and values are read with an exact float dtype."""

import re

import numpy as np
import pytest

from lazypert.store.format import (
    MATRIX_CHUNK,
    MATRIX_SHARD,
    Grid,
    astype_codec,
    declared_dtype,
    default_compression,
    delta_codec,
    dense_dtype,
    index_codec,
    stored_elements,
    stored_index_dtype,
)


@pytest.mark.parametrize("make", [Grid.matrix, Grid.column], ids=["matrix", "column"])
@pytest.mark.parametrize("length", [0, 1, 2, 65_535, 65_536, 65_537, 1_048_577, 8_388_608, 8_388_609, 3 * 10**9])
def test_shards_tile_the_array_in_multiples_of_chunks(make, length):
    grid = make(length)
    assert grid.shard % grid.chunk == 0
    assert 1 <= grid.chunk <= grid.shard
    spans = [grid.span(k) for k in range(grid.n_shards)]
    assert [a for a, _ in spans] == [0, *(b for _, b in spans[:-1])][: len(spans)]
    assert (spans[-1][1] if spans else 0) == length
    assert all(stop > start for start, stop in spans)


def test_long_matrices_have_the_standard_chunk_and_shard_lengths():
    grid = Grid.matrix(10**9)
    assert (grid.chunk, grid.shard) == (MATRIX_CHUNK, MATRIX_SHARD)
    assert 32_768 <= grid.chunk <= 131_072
    assert grid.shard == 8_388_608


@pytest.mark.parametrize(
    ("stored", "extreme", "expected"),
    [
        ("u2", 65_535, "f4"),
        ("u4", 2**24, "f4"),
        ("u4", 2**24 + 1, "f8"),
        ("i4", -(2**24) - 1, "f8"),
        ("f4", 0.5, "f4"),
        ("f8", 0.1, "f8"),
    ],
)
def test_the_dense_dtype_is_the_smallest_exact_float(stored, extreme, expected):
    found = dense_dtype(np.dtype(stored), max(0, extreme), min(0, extreme))
    assert found == expected
    if np.dtype(stored).kind != "f":
        assert int(np.array(extreme).astype(found)) == extreme


@pytest.mark.parametrize(
    ("stored", "extreme", "expected"),
    [
        ("u2", 65_535, "f4"),
        ("u4", 2**24 + 1, "f8"),
        ("i8", 2**53, "f8"),
        ("i8", 2**53 + 1, "i8"),
        ("i8", -(2**53) - 1, "i8"),
        ("f4", 2.0**60, "f4"),
        ("f8", 0.1, "f8"),
    ],
)
def test_the_declared_dtype_is_a_float_wherever_one_is_exact(stored, extreme, expected):
    found = declared_dtype(np.dtype(stored), max(0, extreme), min(0, extreme))
    assert found == expected
    assert np.array(extreme).astype(found).item() == extreme


BYTES, BLOSC = {"name": "bytes", "configuration": {"endian": "little"}}, {"name": "blosc"}


@pytest.mark.parametrize(("stored", "declared"), [("u2", "f4"), ("u4", "f8"), ("i8", "f8")])
def test_the_stored_dtype_is_read_from_the_codec_that_the_writer_uses(stored, declared):
    stored, declared = np.dtype(stored), np.dtype(declared)
    codec = astype_codec(stored, declared)
    assert codec["configuration"] == {"encode_dtype": f"<{stored.str[1:]}", "decode_dtype": f"<{declared.str[1:]}"}
    assert stored_elements(declared, [codec, BYTES, BLOSC]) == (stored, False)
    assert stored_elements(declared, [codec, delta_codec(stored), BYTES, BLOSC]) == (stored, True)


def test_without_that_codec_the_stored_dtype_is_the_declared_one():
    assert stored_elements(np.dtype("u2"), [BYTES, BLOSC]) == (np.uint16, False)
    assert stored_elements(np.dtype("i4"), [delta_codec(np.dtype("i4")), BYTES, BLOSC]) == (np.int32, True)


@pytest.mark.parametrize(
    ("codecs", "problem"),
    [
        ([{"name": "transpose"}, BYTES], "codecs: got ['transpose', 'bytes']"),
        ([astype_codec(np.dtype("u2"), np.dtype("f4")), {"name": "numcodecs.shuffle"}, BYTES], "numcodecs.shuffle"),
        ([delta_codec(np.dtype("u2")), astype_codec(np.dtype("u2"), np.dtype("f4")), BYTES], "stored as float32"),
        ([delta_codec(np.dtype("f4")), BYTES], "in an array stored as float32"),
        ([astype_codec(np.dtype("u2"), np.dtype("f4")), delta_codec(np.dtype("i2")), BYTES], "stored as uint16"),
        ([astype_codec(np.dtype("u2"), np.dtype("f8")), BYTES], "decode_dtype: got '<f8' in an array of float32"),
    ],
    ids=["other", "another", "delta first", "delta of floats", "other delta", "mismatch"],
)
def test_elements_that_another_codec_changes_are_not_misread(codecs, problem):
    with pytest.raises(ValueError, match=re.escape(problem)):
        stored_elements(np.dtype("f4"), codecs)


@pytest.mark.parametrize(("n_columns", "stored"), [(0, "u2"), (65_536, "u2"), (65_537, "i4")])
def test_column_numbers_are_stored_as_two_bytes_if_all_of_them_fit(n_columns, stored):
    dtype = stored_index_dtype(n_columns, np.dtype("i4"))
    assert dtype == stored
    for compression in ("fast", "compact"):
        codec = index_codec(dtype, compression)
        assert codec.blocksize == 4_096 * dtype.itemsize
        assert codec.is_delta == (compression == "compact")


@pytest.mark.parametrize(("store", "expected"), [("s.zarr", "fast"), ("s3://bucket/s.zarr", "compact")])
def test_the_network_limits_reading_from_urls(store, expected):
    assert default_compression(store) == expected
