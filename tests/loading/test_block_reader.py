"""Controls in memory are the controls of the store, and take no more of it than allowed."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lazypert.design.control_pools import control_pools
from lazypert.loading.control_cache import PIECE, ControlCache
from lazypert.loading.row_pointers import RowTransform


class Counting:
    """A row reader that notes which rows it was asked for."""

    def __init__(self, matrix):
        self._matrix, self.asked = matrix, []

    def read_view(self, rows, **options):
        self.asked.append(np.asarray(rows))
        return self._matrix.read_view(rows, **options)


@pytest.fixture
def source(reference):
    return Counting(reference.source.matrix)


@pytest.fixture
def controls(reference):
    return control_pools(reference.source.groups, by_batch=True).controls


def dense(rows):
    out = np.empty((len(rows), 200), np.float32)
    rows.to_dense(RowTransform(columns=None, n_columns=200), np.zeros(len(rows), np.uint64), out)
    return out


@pytest.mark.parametrize("n_bytes", [0, 1, 50_000, 10**9])
def test_are_the_stores(reference, source, controls, n_bytes):
    kept = ControlCache(source, controls, n_bytes)
    rng = np.random.default_rng(0)
    for _ in range(8):
        places = rng.integers(0, len(controls), 50)
        expected = reference.source.batch(controls[places])["counts"]
        np.testing.assert_array_equal(dense(kept.rows(places)), expected)
        assert kept._bytes <= n_bytes
        assert kept._bytes == sum(piece.blocks[0].nbytes for piece in kept._pieces.values())


def test_are_read_once_while_there_is_room(source, controls):
    kept = ControlCache(source, controls, 10**9)
    for places in ([0, 1, PIECE - 1], [PIECE, 3], [2, PIECE + 1], [PIECE, PIECE, 0]):
        kept.rows(np.array(places))
    rows = np.concatenate(source.asked)
    assert sorted(rows) == sorted(controls[np.arange(2 * PIECE)])


def test_the_ones_used_last_stay(source, controls):
    kept = ControlCache(source, controls, 10**9)
    kept.rows(np.array([0]))
    kept._most = 2 * kept._bytes
    last = (len(controls) - 1) // PIECE
    assert last >= 2
    for piece in range(1, last + 1):
        kept.rows(np.array([piece * PIECE]))
        kept.rows(np.array([0]))
    assert 0 in kept._pieces
    assert 1 not in kept._pieces
    n_reads = len(source.asked)
    kept.rows(np.array([0]))
    assert len(source.asked) == n_reads


def test_rows_outlive_the_memory_they_came_from(source, controls):
    kept = ControlCache(source, controls, 1)
    rows = kept.rows(np.arange(5))
    before = dense(rows)
    for start in range(0, len(controls), PIECE):
        kept.rows(np.array([start]))
    np.testing.assert_array_equal(dense(rows), before)


def test_threads_share_it(reference, source, controls):
    kept = ControlCache(source, controls, 60_000)
    expected = reference.source.batch(controls[np.arange(len(controls))])["counts"]

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(20):
            places = rng.integers(0, len(controls), 30)
            np.testing.assert_array_equal(dense(kept.rows(places)), expected[places])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert kept._bytes == sum(piece.blocks[0].nbytes for piece in kept._pieces.values()) <= 60_000
