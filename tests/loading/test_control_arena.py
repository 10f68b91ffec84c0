"""Controls in an arena equal those of the store, are read once by whichever thread comes first, and all fit."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert.design.control_pools import control_pools
from lazypert.errors import StoreDamagedError
from lazypert.loading.control_arena import LARGEST_GAP, ControlArena, arena_bytes
from lazypert.loading.control_cache import ControlCache
from lazypert.loading.row_pointers import RowTransform
from lazypert.sources.aligned_matrix import AlignedMatrix
from lazypert.sparse.columns import ColumnSelection

COLUMNS = ColumnSelection.from_indices(np.array([150, 3, 77]), 200)


class RecordingReader:
    """A row reader that records the rows of each request, and can wait or fail first."""

    def __init__(self, matrix, before=lambda rows: None):
        self._matrix, self._before, self.requests = matrix, before, []
        self.shape, self.dtype, self.row_lengths = matrix.shape, matrix.dtype, matrix.row_lengths

    def read_view(self, rows, **options):
        self._record(rows)
        return self._matrix.read_view(rows, **options)

    def read_columns(self, rows, columns, **options):
        self._record(rows)
        return self._matrix.read_columns(rows, columns, **options)

    def _record(self, rows):
        self.requests.append(np.asarray(rows))
        self._before(rows)


@pytest.fixture(scope="module")
def controls(reference):
    return control_pools(reference.source.groups, by_batch=True).controls


def matrix_of(reference, kind):
    """The matrix of one store, or of two stores that share 120 genes and order them differently."""
    matrix = reference.source.matrix
    if kind == "store":
        return matrix
    order = np.arange(200)[::-1].copy()
    kept = np.where(order < 120, order, -1)
    genes = SimpleNamespace(
        var=range(120), is_same=False, new_col=(kept, np.where(np.arange(200) < 120, range(200), -1))
    )
    return AlignedMatrix((matrix, matrix), genes)


def make(matrix, controls, columns=None, **options):
    return ControlArena(matrix, controls, arena_bytes(matrix, controls, columns), columns, **options)


def dense(rows, n_columns, target_sum=None):
    out = np.empty((len(rows), n_columns), np.float32)
    transform = RowTransform(columns=None, n_columns=n_columns, target_sum=target_sum)
    rows.to_dense(transform, np.zeros(len(rows), np.uint64), out)
    return out


@pytest.mark.parametrize("columns", [None, COLUMNS], ids=["all columns", "selected"])
@pytest.mark.parametrize("kind", ["store", "stores"])
@settings(deadline=None)
@given(requests=st.lists(st.lists(st.integers(0, 149), min_size=1, max_size=40), min_size=1, max_size=6))
def test_rows_equal_direct_reads_and_pages(reference, controls, kind, columns, requests):
    assert len(controls) == 150
    matrix = RecordingReader(matrix_of(reference, kind))
    totals = columns is not None
    arena = make(matrix, controls, columns, totals=totals)
    others = [ControlCache(matrix_of(reference, kind), controls, n, columns, totals=totals) for n in (0, 5_000)]
    n_columns = columns.n_columns if totals else matrix.shape[1]
    for request in requests:
        control_index = np.array(request)
        found = dense(arena.rows(control_index), n_columns, 100.0 if totals else None)
        for other in others:
            expected = dense(other.rows(control_index), n_columns, 100.0 if totals else None)
            np.testing.assert_array_equal(found, expected)
    read = np.concatenate(matrix.requests)
    assert len(read) == len(set(read.tolist()))  # none twice
    assert set(read.tolist()) >= set(controls[np.unique(np.concatenate(requests))].tolist())
    assert arena.nbytes <= arena_bytes(matrix, controls, columns)


def test_only_small_gaps_are_read_along(reference, controls):
    matrix = RecordingReader(reference.source.matrix)
    arena = make(matrix, controls)
    far = LARGEST_GAP + 2
    arena.rows(np.array([0, far, far + LARGEST_GAP + 1, 0]))
    np.testing.assert_array_equal(matrix.requests[0], controls[np.array([0, *range(far, far + LARGEST_GAP + 2)])])
    arena.rows(np.array([1, far, 4]))
    np.testing.assert_array_equal(matrix.requests[1], controls[1:5])
    arena.rows(np.array([2, 0, far + 5]))
    assert len(matrix.requests) == 2


def test_all_controls_fit_in_the_reserved_memory(reference, controls):
    """Even if each is read on its own, and nothing else is allocated."""
    arena = make(reference.source.matrix, controls)
    for index in np.random.default_rng(0).permutation(len(controls)):
        arena.rows(np.array([index]))
    assert len(arena._views) == len(controls)
    for view in arena._views:
        assert np.shares_memory(view.indices, arena._memory) or not view.lengths.sum()
        assert np.shares_memory(view.data, arena._memory) or not view.lengths.sum()
    expected = reference.source.batch(controls[:])["counts"]
    np.testing.assert_array_equal(dense(arena.rows(np.arange(len(controls))), 200), expected)


def test_memory_is_reserved_but_not_used(reference, controls):
    arena = ControlArena(reference.source.matrix, controls, 2**40 // 64)  # 16 GiB, of which none is touched
    np.testing.assert_array_equal(dense(arena.rows(np.arange(3)), 200), reference.source.batch(controls[:3])["counts"])
    assert arena.nbytes < 10**4


def test_threads_read_each_control_once(reference, controls):
    expected = reference.source.batch(controls[:])["counts"]
    for seed in range(5):
        matrix = RecordingReader(reference.source.matrix)
        arena = make(matrix, controls)

        def work(number, arena=arena, seed=seed):
            rng = np.random.default_rng((seed, number))
            for _ in range(10):
                control_index = rng.integers(0, len(controls), 20)
                np.testing.assert_array_equal(dense(arena.rows(control_index), 200), expected[control_index])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        read = np.concatenate(matrix.requests)
        assert len(read) == len(set(read.tolist()))


def test_a_thread_waits_only_for_controls_that_it_needs(reference, controls):
    is_reading, may_go_on = threading.Event(), threading.Event()

    def before(rows):
        if controls[0] in rows:
            is_reading.set()
            assert may_go_on.wait(10)

    arena = make(RecordingReader(reference.source.matrix, before), controls)
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(arena.rows, np.array([0, 1]))
        assert is_reading.wait(10)
        assert len(arena.rows(np.array([100, 60]))) == 2  # does not wait
        waiting = pool.submit(arena.rows, np.array([1, 100]))
        assert not waiting.done()
        may_go_on.set()
        assert len(slow.result(10)) == len(waiting.result(10)) == 2


def test_controls_can_be_read_after_a_failure(reference, controls):
    """Each thread that needs them gets the error, and the next one reads them."""
    failures = iter([StoreDamagedError("damaged")] * 2)

    def before(rows):
        if error := next(failures, None):
            raise error

    arena = make(RecordingReader(reference.source.matrix, before), controls)
    for _ in range(2):
        with pytest.raises(StoreDamagedError, match="damaged"):
            arena.rows(np.array([3, 4]))
    np.testing.assert_array_equal(
        dense(arena.rows(np.array([4, 3])), 200), reference.source.batch(controls[np.array([4, 3])])["counts"]
    )


@pytest.mark.parametrize("kind", ["store", "stores"])
def test_row_lengths_are_at_least_those_that_are_read(reference, controls, kind):
    matrix = matrix_of(reference, kind)
    rows = controls[np.array([5, 3, 3, 100])]
    lengths, read = matrix.row_lengths(rows), matrix.read_view(rows).lengths
    assert (lengths >= read).all()
    assert (lengths == read).all() == (kind == "store")
