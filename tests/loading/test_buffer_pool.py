"""Memory is reused once the last array that refers to it is deleted, and never before."""

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
def test_arrays_are_aligned_and_have_the_requested_shape(shape, dtype):
    made = BufferPool(10**6).take(shape, dtype)
    assert made.shape == (shape if isinstance(shape, tuple) else (shape,))
    assert made.dtype == dtype
    assert made.flags.writeable
    assert made.flags.c_contiguous
    assert address(made) % ALIGNMENT == 0


def test_memory_is_reused_once_nothing_refers_to_it():
    buffers = BufferPool(10**6)
    array = buffers.take((10, 10), np.float32)
    view, first = array[2:5], address(array)
    del array
    assert address(buffers.take((10, 10), np.float32)) != first  # the view still refers to it
    del view
    reused = buffers.take(99, np.float32)  # of nearly the same size
    assert address(reused) == first


def test_arrays_never_share_memory():
    buffers = BufferPool(10**7)
    for _ in range(3):
        arrays = [buffers.take(1_000, np.int64) for _ in range(20)]
        for number, array in enumerate(arrays):
            array[:] = number
        assert all((array == number).all() for number, array in enumerate(arrays))
        del arrays, array


def test_idle_memory_is_bounded():
    buffers = BufferPool(3 * 2**20)
    arrays = [buffers.take(2**20, np.uint8) for _ in range(8)]
    del arrays
    assert 2 * 2**20 <= buffers.idle_bytes <= 3 * 2**20
    assert sum(len(buffer) for idle in buffers._idle.values() for buffer in idle) == buffers.idle_bytes
    keeps_nothing = BufferPool(0)
    keeps_nothing.take(2**20, np.uint8)
    assert keeps_nothing.idle_bytes == 0


def test_jax_arrays_share_memory_and_keep_it_alive():
    buffers = BufferPool(10**7)
    array = buffers.take((100, 100), np.float32)
    array[:] = 3
    first = address(array)
    on_device = jax.device_put(array)
    assert on_device.unsafe_buffer_pointer() == first
    del array
    gc.collect()
    other = buffers.take((100, 100), np.float32)
    other[:] = 4
    assert address(other) != first
    assert (np.asarray(on_device) == 3).all()
    del on_device
    gc.collect()
    assert address(buffers.take((100, 100), np.float32)) == first


def test_threads_can_share_a_pool():
    buffers = BufferPool(10**7)
    wrong = []

    def work(number):
        for _ in range(300):
            arrays = [buffers.take(500 + number, np.int64) for _ in range(3)]
            for array in arrays:
                array[:] = number
            wrong.extend(1 for array in arrays if (array != number).any())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 0 < buffers.idle_bytes <= 10**7
