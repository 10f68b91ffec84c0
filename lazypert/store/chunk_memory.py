"""Encoded chunks of objects, kept in memory: neighbouring reads share chunks, and scans read ahead.

A chunk holds about 20 cells, and an epoch reads fewer than that at a time, so it needs most chunks two or three times.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

from lazypert._internal.fork import forkable_lock
from lazypert.store import requests

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from lazypert.store.byte_reader import ByteRange, ByteReader

_KEPT_BYTES = 256 * 1024**2
"""Bytes that are kept of all stores of a process together."""

MAX_CHUNKS = 64
"""Chunks that are read by one request at most, and dropped together: about 2 MiB."""


class Piece:
    """Consecutive chunks of a shard that one request reads; other threads can wait for it too.

    Attributes
    ----------
    offset, size
        Bytes of the shard.
    first, last
        Numbers of the first and the last chunk.
    """

    __slots__ = ("_future", "_reader", "_thread", "first", "last", "offset", "range", "size")

    def __init__(self, reader: ByteReader, byte_range: ByteRange, first: int, last: int) -> None:
        self._reader, self.range, self.first, self.last = reader, byte_range, first, last
        _, self.offset, self.size = byte_range
        self._thread = threading.get_ident()
        self._future: concurrent.futures.Future[bytes | None] = reader.start(byte_range)

    @property
    def has_failed(self) -> bool:
        """Whether the request has ended without all bytes."""
        future = self._future
        if not future.done():
            return False
        if future.cancelled() or future.exception() is not None:
            return True
        return len(future.result() or b"") < self.size

    def wait(self) -> bytes:
        """Return the bytes, fewer if the object ends before.

        Whether another thread's request was cancelled, or failed, says nothing about one of this thread.
        """
        is_own = self._thread == threading.get_ident()
        try:
            return requests.wait(self._future) or b""
        except Exception:
            if is_own:
                raise
            return requests.wait(self._reader.start(self.range)) or b""


class ChunkMemory:
    """Keeps the pieces that were used last. Thread-safe.

    Parameters
    ----------
    limit
        Bytes that pieces may take, including those that are being read.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = forkable_lock()
        self._gone: deque[int] = deque()  # arrays; a finalizer must not wait for the lock
        self._numbers = iter(range(2**62))
        self._clear()

    def _clear(self) -> None:
        self._pid, self._n_bytes = os.getpid(), 0
        self._pieces: OrderedDict[Piece, int] = OrderedDict()  # with the array of each
        self._of_chunk: dict[tuple[int, int], Piece] = {}

    def register(self, array: Any) -> int:
        """Return a number for an array, whose chunks are dropped with it."""
        number = next(self._numbers)
        weakref.finalize(array, self._gone.append, number)
        return number

    def find(self, array: int, numbers: NDArray[np.int64]) -> list[Piece | None]:
        """Pieces that hold chunks of an array, None for a chunk that is neither in memory nor being read."""
        with self._lock:
            self._tidy()
            found = [self._of_chunk.get((array, number)) for number in numbers.tolist()]
            for piece in dict.fromkeys(found):
                if piece is not None:
                    self._pieces.move_to_end(piece)
        failed = {piece for piece in found if piece is not None and piece.has_failed}
        if failed:
            self._drop(failed)
        return [None if piece in failed else piece for piece in found]

    def add(self, array: int, pieces: Sequence[Piece]) -> None:
        """Keep pieces, and drop those that were not used for longest."""
        with self._lock:
            for piece in pieces:
                self._pieces[piece] = array
                self._n_bytes += piece.size
                self._of_chunk.update(((array, number), piece) for number in range(piece.first, piece.last + 1))
            while self._n_bytes > self.limit and len(self._pieces) > len(pieces):
                self._remove(next(iter(self._pieces)))

    def forget(self, array: int) -> None:
        """Drop all chunks of an array, such as damaged ones, so that they are read again."""
        self._gone.append(array)

    def _drop(self, pieces: Iterable[Piece]) -> None:
        with self._lock:
            for piece in pieces:
                self._remove(piece)

    def _tidy(self) -> None:
        if self._pid != os.getpid():  # requests of the parent never end here
            self._clear()
        while self._gone:
            array = self._gone.popleft()
            for piece in [piece for piece, owner in self._pieces.items() if owner == array]:
                self._remove(piece)

    def _remove(self, piece: Piece) -> None:
        array = self._pieces.pop(piece, None)
        if array is None:
            return
        self._n_bytes -= piece.size
        for number in range(piece.first, piece.last + 1):
            if self._of_chunk.get((array, number)) is piece:
                del self._of_chunk[array, number]


CHUNKS = ChunkMemory(_KEPT_BYTES)


class Scans:
    """Finds reads that continue an earlier one, as those of the blocks of a Dask array do, and how far to read ahead.

    Thread-safe enough: a race costs a request.
    """

    _MAX_SCANS = 8
    _LONGEST = 4 * MAX_CHUNKS

    def __init__(self) -> None:
        self._ends: OrderedDict[int, int] = OrderedDict()

    def ahead(self, numbers: NDArray[np.int64]) -> int:
        """Return how many chunks to read after consecutive ones; 0 if nothing says that they will be needed."""
        first, last = int(numbers[0]), int(numbers[-1])
        if last - first + 1 != len(numbers) or last in self._ends:  # begun before, and read now
            return 0
        # Neighbouring blocks share a chunk, and threads do not read them in order.
        before = next((end for end in (first, first - 1) if end in self._ends), None)
        length = 0 if before is None else min(max(2 * (self._ends.pop(before, 0)), len(numbers)), self._LONGEST)
        self._ends[last] = length
        while len(self._ends) > self._MAX_SCANS:
            self._ends.popitem(last=False)
        return length
