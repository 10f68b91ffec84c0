"""Memory that is used again: a buffer comes back when the last array that shows it is gone."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALIGNMENT = 64
"""JAX shows host memory that begins at such a multiple as it is, without a copy."""


class BufferPool:
    """Lends arrays and takes their memory back by itself.

    Fresh memory costs a page fault for every 4 KiB, which is more than filling it. Arrays handed to JAX
    may live on as `jax.Array` without a copy, so nobody can say when they are done with except
    their reference count: each loan is owned by the arrays that show it.

    Thread-safe. At most `keep` bytes wait for the next loan; more are freed.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        # Appending to and popping from a deque is atomic, also within a garbage collection.
        self._idle: defaultdict[int, deque[NDArray[np.uint8]]] = defaultdict(deque)

    @property
    def idle_bytes(self) -> int:
        """Bytes that wait for the next loan."""
        return sum(size * len(memories) for size, memories in list(self._idle.items()))

    def take(self, shape: int | tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Lend an array of any content."""
        dtype = np.dtype(dtype)
        wanted = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        # Few sizes, an eighth apart, so that batches of slightly different size share buffers.
        step = 1 << max(12, wanted.bit_length() - 3)
        size = -(-max(wanted, 1) // step) * step
        memory = self._pop(size)
        loan = _Loan(self, _aligned(size) if memory is None else memory)
        return np.asarray(loan)[:wanted].view(dtype).reshape(shape)

    def _pop(self, size: int) -> NDArray[np.uint8] | None:
        """Idle memory of this size, or not much more."""
        for have in sorted(self._idle):
            if size <= have <= size + size // 2:
                try:
                    return self._idle[have].pop()
                except IndexError:
                    continue
        return None

    def _back(self, memory: NDArray[np.uint8]) -> None:
        if self.idle_bytes + len(memory) <= self._keep:
            self._idle[len(memory)].append(memory)


class _Loan:
    """Owner of the memory that lent arrays show; NumPy and JAX keep it alive as their base."""

    __slots__ = ("__array_interface__", "_memory", "_owner")

    def __init__(self, owner: BufferPool, memory: NDArray[np.uint8]) -> None:
        self._owner, self._memory = owner, memory
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        self._owner._back(self._memory)


def _aligned(size: int) -> NDArray[np.uint8]:
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]
