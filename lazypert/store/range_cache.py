"""Byte ranges of a remote file, kept on the local disk: each is read once, whatever reads it again."""

from __future__ import annotations

import tempfile
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK_BYTES = 1 << 16
"""Unit that is read and kept: small, because HDF5 scatters its structure over a file."""

RANGE_BYTES = 8 << 20
"""Largest range of one request."""

_RANGES_AT_ONCE = 4
_STREAMS = 16  # sequences of reads that are told apart: HDF5 reads text from two places in turn


class RangeCache:
    """Reads byte ranges of a file through a temporary local file, which is deleted with the process.

    Reads that follow one another read ahead, twice as far each time. Thread-safe.

    Parameters
    ----------
    fetch
        Returns the bytes from one offset to another.
    size
        Size of the file.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch, self._size = fetch, size
        self._is_kept = bytearray(-(-size // BLOCK_BYTES))
        self._file = tempfile.TemporaryFile(prefix="lazypert-")  # noqa: SIM115 - open as long as the cache
        self._lock = threading.Lock()
        self._streams: dict[int, int] = {}
        weakref.finalize(self, self._file.close)

    def read(self, start: int, stop: int) -> bytes:
        """Read from one offset to another: fewer bytes at the end of the file."""
        stop = min(stop, self._size)
        if start >= stop:
            return b""
        with self._lock:
            self._complete(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
            self._file.seek(start)
            return self._file.read(stop - start)

    def _complete(self, first: int, last: int) -> None:
        """Fetch the blocks from `first` up to `last` that are not kept yet, and some more after sequential reads."""
        runs = list(self._absent_runs(first, last))
        if not runs:
            return
        begin, end = runs[-1]
        if end == last:
            ahead = self._ahead(runs[0][0], last)
            limit = min(end + ahead, len(self._is_kept))
            while end < limit and not self._is_kept[end]:
                end += 1
            runs[-1] = begin, end
            self._streams[end] = ahead
        step = RANGE_BYTES // BLOCK_BYTES
        pieces = [(a, min(a + step, stop)) for start, stop in runs for a in range(start, stop, step)]
        if len(pieces) == 1:
            self._keep(pieces[0], self._fetch_blocks(pieces[0]))
            return
        with ThreadPoolExecutor(_RANGES_AT_ONCE) as pool:
            for group in range(0, len(pieces), _RANGES_AT_ONCE):  # so that few are in memory
                some = pieces[group : group + _RANGES_AT_ONCE]
                for piece, data in zip(some, pool.map(self._fetch_blocks, some), strict=True):
                    self._keep(piece, data)

    def _ahead(self, first: int, last: int) -> int:
        """Blocks to read ahead: twice as many each time that a read continues one of the last ones."""
        continued = next((end for end in self._streams if first <= end <= last), None)
        if continued is not None:
            return min(max(2 * self._streams.pop(continued), 1), RANGE_BYTES // BLOCK_BYTES)
        if len(self._streams) >= _STREAMS:
            del self._streams[next(iter(self._streams))]
        return 0

    def _absent_runs(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        start = self._is_kept.find(0, first, last)
        while start >= 0:
            stop = self._is_kept.find(1, start, last)
            stop = last if stop < 0 else stop
            yield start, stop
            start = self._is_kept.find(0, stop, last)

    def _fetch_blocks(self, blocks: tuple[int, int]) -> bytes:
        return self._fetch(blocks[0] * BLOCK_BYTES, min(blocks[1] * BLOCK_BYTES, self._size))

    def _keep(self, blocks: tuple[int, int], data: bytes) -> None:
        self._file.seek(blocks[0] * BLOCK_BYTES)
        self._file.write(data)
        self._file.flush()
        self._is_kept[blocks[0] : blocks[1]] = b"\1" * (blocks[1] - blocks[0])
