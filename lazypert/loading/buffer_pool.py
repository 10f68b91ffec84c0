"""Reference-counted buffer pool."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALIGNMENT = 64
"""JAX uses host memory without a copy if its address is a multiple of this."""


class BufferPool:
    """Allocates arrays, and reuses their memory once nothing refers to it any more.

    Fresh memory costs a page fault per 4 KiB, which takes longer than filling it. JAX may share the memory
    of a NumPy array for as long as a `jax.Array` lives, so only the reference count tells when memory is
    free: each array of the pool refers to a `_Lease`, which returns the memory when it is deleted.

    Thread-safe.

    Parameters
    ----------
    max_idle_bytes
        Maximum number of bytes to keep for reuse; memory beyond that is freed.
    """

    def __init__(self, max_idle_bytes: int) -> None:
        self._max_idle_bytes = max_idle_bytes
        # Appending to and popping from a deque is atomic, even inside a garbage collection.
        self._idle: defaultdict[int, deque[NDArray[np.uint8]]] = defaultdict(deque)

    @property
    def idle_bytes(self) -> int:
        """Bytes kept for reuse."""
        return sum(size * len(buffers) for size, buffers in list(self._idle.items()))

    def take(self, shape: int | tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return an uninitialised array."""
        dtype = np.dtype(dtype)
        n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        # Sizes are rounded up by at most an eighth, so that batches of similar size share buffers.
        step = 1 << max(12, n_bytes.bit_length() - 3)
        size = -(-max(n_bytes, 1) // step) * step
        buffer = self._pop(size)
        lease = _Lease(self, _allocate_aligned(size) if buffer is None else buffer)
        return np.asarray(lease)[:n_bytes].view(dtype).reshape(shape)

    def _pop(self, size: int) -> NDArray[np.uint8] | None:
        """Idle buffer of this size or slightly larger, or None."""
        for idle_size in sorted(self._idle):
            if size <= idle_size <= size + size // 2:
                try:
                    return self._idle[idle_size].pop()
                except IndexError:
                    continue
        return None

    def _give_back(self, buffer: NDArray[np.uint8]) -> None:
        if self.idle_bytes + len(buffer) <= self._max_idle_bytes:
            self._idle[len(buffer)].append(buffer)


class _Lease:
    """Owner of an array's memory; NumPy and JAX keep it alive as the array's base."""

    __slots__ = ("__array_interface__", "_buffer", "_pool")

    def __init__(self, pool: BufferPool, buffer: NDArray[np.uint8]) -> None:
        self._pool, self._buffer = pool, buffer
        self.__array_interface__ = buffer.__array_interface__

    def __del__(self) -> None:
        self._pool._give_back(self._buffer)


def _allocate_aligned(size: int) -> NDArray[np.uint8]:
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size]
