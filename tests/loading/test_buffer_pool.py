"""Memory comes back when the last array that shows it is gone, and never before."""

import gc
import threading

import jax
import numpy as np
import pytest

from lazypert.loading.buffer_pool import ALIGNMENT, BufferPool


def address(array):
    return array.ctypes.data


@pytest.mark.parametrize("shape", [5, (3, 4), (0,), (2, 0), (1000, 1000)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
def test_arrays_are_as_asked_and_aligned(shape, dtype):
    made = BufferPool(10**6).take(shape, dtype)
    assert made.shape == (shape if isinstance(shape, tuple) else (shape,))
    assert made.dtype == dtype
    assert made.flags.writeable
    assert made.flags.c_contiguous
    assert address(made) % ALIGNMENT == 0


def test_memory_is_used_again_once_nothing_shows_it():
    buffers = BufferPool(10**6)
    one = buffers.take((10, 10), np.float32)
    view, first = one[2:5], address(one)
    del one
    assert address(buffers.take((10, 10), np.float32)) != first  # the view is alive
    del view
    again = buffers.take(99, np.float32)  # nearly as long
    assert address(again) == first


def test_memory_is_lent_once():
    buffers = BufferPool(10**7)
    for _ in range(3):
        lent = [buffers.take(1_000, np.int64) for _ in range(20)]
        for number, array in enumerate(lent):
            array[:] = number
        assert all((array == number).all() for number, array in enumerate(lent))
        del lent, array


def test_no_more_is_kept_than_allowed():
    buffers = BufferPool(3 * 2**20)
    lent = [buffers.take(2**20, np.uint8) for _ in range(8)]
    del lent
    assert 2 * 2**20 <= buffers.idle_bytes <= 3 * 2**20
    assert sum(len(one) for idle in buffers._idle.values() for one in idle) == buffers.idle_bytes
    nothing = BufferPool(0)
    nothing.take(2**20, np.uint8)
    assert nothing.idle_bytes == 0


def test_jax_shows_lent_memory_without_a_copy_and_keeps_it():
    buffers = BufferPool(10**7)
    lent = buffers.take((100, 100), np.float32)
    lent[:] = 3
    where = address(lent)
    shown = jax.device_put(lent)
    assert shown.unsafe_buffer_pointer() == where
    del lent
    gc.collect()
    other = buffers.take((100, 100), np.float32)
    other[:] = 4
    assert address(other) != where
    assert (np.asarray(shown) == 3).all()
    del shown
    gc.collect()
    assert address(buffers.take((100, 100), np.float32)) == where


def test_threads_share_it():
    buffers = BufferPool(10**7)
    wrong = []

    def work(number):
        for _ in range(300):
            lent = [buffers.take(500 + number, np.int64) for _ in range(3)]
            for array in lent:
                array[:] = number
            wrong.extend(1 for array in lent if (array != number).any())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 0 < buffers.idle_bytes <= 10**7
