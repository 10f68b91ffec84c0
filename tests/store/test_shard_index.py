"""Shard indexes say where chunks lie, and damaged ones raise an error."""

import pickle

import numpy as np
import pytest

from lazypert.errors import StoreDamagedError
from lazypert.store.encoded_chunks import checksum
from lazypert.store.format import Grid
from lazypert.store.shard_index import ShardIndexes
from tests.support.arrays import values_of, write_ours


@pytest.fixture
def written(tmp_path):
    """An array of 4,000 elements in shards of 16 and chunks of 8, and its values."""
    values = values_of(4_000)
    return write_ours(tmp_path, values, Grid(4_000, 8, 16)), values


def test_byte_ranges_are_those_of_the_chunks(written, tmp_path):
    array, _ = written
    encoded = (tmp_path / "a/c/3").read_bytes()
    for offset, length in array.indexes.read([3])[0]:
        chunk = encoded[offset : offset + length]
        assert checksum(chunk[:-4]) == chunk[-4:]
    assert array.indexes.key(3) == "a/c/3"


def test_few_indexes_are_cached(written):
    array, values = written
    array.indexes.MAX_CACHED = 10
    for start in range(0, 3_900, 3):
        np.testing.assert_array_equal(array.read(start, start + 5), values[start : start + 5])
    assert len(array.indexes) <= 10


def test_pickles_without_its_cache(written):
    array, _ = written
    array.indexes.read([0])
    again = pickle.loads(pickle.dumps(array.indexes))
    assert (len(array.indexes), len(again)) == (1, 0)
    np.testing.assert_array_equal(again.read([5]), array.indexes.read([5]))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda index: np.add(index, [[0, 10_000], [0, 0]]), id="length_beyond_the_file"),
        pytest.param(lambda index: np.add(index, [[10_000, 0], [0, 0]]), id="offset_beyond_the_file"),
        pytest.param(lambda index: np.multiply(index, [[1, 0], [1, 1]]), id="shorter_than_a_checksum"),
    ],
)
def test_impossible_byte_ranges_raise_though_the_checksum_matches(written, tmp_path, change):
    array, _ = written
    path = tmp_path / "a/c/0"
    encoded = path.read_bytes()
    index = change(np.frombuffer(encoded[-36:-4], "<u8").reshape(2, 2).astype("i8")).astype("<u8").tobytes()
    path.write_bytes(encoded[:-36] + index + checksum(index))
    with pytest.raises(StoreDamagedError, match="a/c/0: the shard index is damaged or cut short"):
        ShardIndexes(array.reader, "a", 2).read([0])


def test_a_missing_shard_raises(written):
    with pytest.raises(StoreDamagedError, match="a/c/999: the file is missing"):
        written[0].indexes.read([999])
