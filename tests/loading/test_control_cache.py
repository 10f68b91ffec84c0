"""Cached controls equal those of the store, and stay within the byte budget."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lazypert.design.control_pools import control_pools
from lazypert.loading.control_cache import PAGE_SIZE, ControlCache
from lazypert.loading.row_pointers import RowTransform


class RecordingReader:
    """A row reader that records the rows of each request."""

    def __init__(self, matrix):
        self._matrix, self.requests = matrix, []

    def read_view(self, rows, **options):
        self.requests.append(np.asarray(rows))
        return self._matrix.read_view(rows, **options)


@pytest.fixture
def source(reference):
    return RecordingReader(reference.source.matrix)


@pytest.fixture
def controls(reference):
    return control_pools(reference.source.groups, by_batch=True).controls


def dense(rows):
    out = np.empty((len(rows), 200), np.float32)
    rows.to_dense(RowTransform(columns=None, n_columns=200), np.zeros(len(rows), np.uint64), out)
    return out


@pytest.mark.parametrize("n_bytes", [0, 1, 50_000, 10**9])
def test_rows_equal_those_of_the_store(reference, source, controls, n_bytes):
    cache = ControlCache(source, controls, n_bytes)
    rng = np.random.default_rng(0)
    for _ in range(8):
        control_index = rng.integers(0, len(controls), 50)
        expected = reference.source.batch(controls[control_index])["counts"]
        np.testing.assert_array_equal(dense(cache.rows(control_index)), expected)
        assert cache._bytes <= n_bytes
        assert cache._bytes == sum(page.views[0].nbytes for page in cache._pages.values())


def test_controls_are_read_once_while_the_budget_lasts(source, controls):
    cache = ControlCache(source, controls, 10**9)
    for control_index in ([0, 1, PAGE_SIZE - 1], [PAGE_SIZE, 3], [2, PAGE_SIZE + 1], [PAGE_SIZE, PAGE_SIZE, 0]):
        cache.rows(np.array(control_index))
    rows = np.concatenate(source.requests)
    assert sorted(rows) == sorted(controls[np.arange(2 * PAGE_SIZE)])


def test_least_recently_used_pages_are_evicted(source, controls):
    cache = ControlCache(source, controls, 10**9)
    cache.rows(np.array([0]))
    cache._budget = 2 * cache._bytes
    last = (len(controls) - 1) // PAGE_SIZE
    assert last >= 2
    for page in range(1, last + 1):
        cache.rows(np.array([page * PAGE_SIZE]))
        cache.rows(np.array([0]))
    assert 0 in cache._pages
    assert 1 not in cache._pages
    n_reads = len(source.requests)
    cache.rows(np.array([0]))
    assert len(source.requests) == n_reads


def test_rows_stay_valid_after_eviction(source, controls):
    cache = ControlCache(source, controls, 1)
    rows = cache.rows(np.arange(5))
    before = dense(rows)
    for start in range(0, len(controls), PAGE_SIZE):
        cache.rows(np.array([start]))
    np.testing.assert_array_equal(dense(rows), before)


def test_threads_can_share_a_cache(reference, source, controls):
    cache = ControlCache(source, controls, 60_000)
    expected = reference.source.batch(controls[np.arange(len(controls))])["counts"]

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(20):
            control_index = rng.integers(0, len(controls), 30)
            np.testing.assert_array_equal(dense(cache.rows(control_index)), expected[control_index])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert cache._bytes == sum(page.views[0].nbytes for page in cache._pages.values()) <= 60_000
