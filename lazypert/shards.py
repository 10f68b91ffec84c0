"""Zarr v3 shards of one-dimensional arrays, to bytes and back.

The arrays are ordinary Zarr: any reader opens them, and the tests hold this module to zarr-python
byte for byte. It exists for two things zarr-python does not do: encode and decode in threads at
the codec's speed into given buffers (zarr-python takes about five times as long), and say that a
shard is missing instead of filling in zeros.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numcodecs import blosc

from lazypert import native
from lazypert.decoding import CHECKSUM, checksum, decode
from lazypert.errors import StoreDamagedError
from lazypert.schema import CODEC, Codec, Grid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lazypert.readers import ByteReader, Piece

# zarr-python sets this too: in C-Blosc's own threads, output would depend on their timing.
blosc.use_threads = False

_ENTRY = 16
_ABSENT = np.uint64(2**64 - 1)

_SHUFFLES = {"shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}


def encode_shard(values: NDArray[Any], grid: Grid, codec: Codec = CODEC) -> list[bytes]:
    """Encode the elements of one shard.

    Parameters
    ----------
    values
        (at most ``grid.shard``,) elements; fewer only in an array's last shard.

    Returns
    -------
    The shard's file as pieces to write one after another: compressed chunks, then the index.
    """
    per_shard = grid.shard // grid.chunk
    index = np.full((per_shard, 2), _ABSENT, dtype="<u8")
    pieces: list[bytes] = []
    offset = 0
    for number, start in enumerate(range(0, len(values), grid.chunk)):
        chunk = values[start : start + grid.chunk]
        if len(chunk) < grid.chunk:  # Zarr chunks are always full; the array's shape hides the rest.
            chunk = np.concatenate([chunk, np.zeros(grid.chunk - len(chunk), dtype=values.dtype)])
        packed = blosc.compress(
            np.ascontiguousarray(chunk),
            codec.cname.encode(),
            codec.clevel,
            _SHUFFLES[codec.shuffle],
            codec.blocksize,
        )
        piece = packed + checksum(packed)
        index[number] = offset, len(piece)
        offset += len(piece)
        pieces.append(piece)
    raw = index.tobytes()
    pieces.append(raw + checksum(raw))
    return pieces


class _Scratch(threading.local):
    """A thread's own buffers, used again by every read: fresh memory costs as much as decoding into it."""

    def __init__(self) -> None:
        self._packed, self._chunk = np.empty(0, np.uint8), np.empty(0, np.uint8)

    def packed(self, n_bytes: int) -> NDArray[np.uint8]:
        if len(self._packed) < n_bytes:
            self._packed = np.empty(n_bytes, np.uint8)
        return self._packed

    def chunk(self, length: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        if len(self._chunk) < length * dtype.itemsize:
            self._chunk = np.empty(length * dtype.itemsize, np.uint8)
        return self._chunk[: length * dtype.itemsize].view(dtype)


_scratch = _Scratch()


class ShardedArray:
    """A one-dimensional sharded array, read by ranges of elements.

    Safe to use from many threads and to pickle. Only shard indexes are kept, within bounds.

    Parameters
    ----------
    reader
        Where the bytes are.
    path
        The array's path in the store, such as ``"X/data"``.
    """

    KEEP_INDEXES = 4096
    CHUNKS_AT_ONCE = 128  # about 4 MiB of a matrix
    SHARDS_AT_ONCE = 32  # files open at a time

    def __init__(self, reader: ByteReader, path: str, dtype: np.dtype[Any], grid: Grid) -> None:
        self.reader, self.path, self.dtype, self.grid = reader, path, np.dtype(dtype), grid
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._indexes: OrderedDict[int, NDArray[np.int64]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"reader": self.reader, "path": self.path, "dtype": self.dtype, "grid": self.grid}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __len__(self) -> int:
        return self.grid.length

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Elements ``start`` to ``stop``, decoded into a new array."""
        out = np.empty(stop - start, dtype=self.dtype)
        self.read_into(out, start)
        return out

    def read_into(self, out: NDArray[Any], start: int) -> None:
        """Decode ``len(out)`` elements from ``start`` on into `out`.

        Raises
        ------
        StoreDamagedError
            When a shard is missing or cut short, or a checksum does not match.
        """
        at = np.array([start, start + len(out), 0], dtype=np.int64)
        self.gather(at[:1], at[1:2], at[2:], out)

    def gather(
        self, starts: NDArray[np.int64], stops: NDArray[np.int64], places: NDArray[np.int64], out: NDArray[Any]
    ) -> None:
        """Decode ranges of elements, each to its own place. A chunk that ranges share is decoded once.

        Parameters
        ----------
        starts, stops
            (n,) ranges ``[starts[i], stops[i])``; neither starts nor stops descend. Ranges may repeat.
        places
            (n,) where in `out` each range begins.
        out
            Contiguous, of the array's dtype; or of unsigned integers that are narrower, for an array
            of integers that fit.

        Raises
        ------
        StoreDamagedError
            When a shard is missing or cut short, or a checksum does not match.
        """
        if len(starts) and not 0 <= starts[0] <= stops[-1] <= self.grid.length:
            raise IndexError(f"{self.path} has {self.grid.length} elements, got {starts[0]} to {stops[-1]}.")
        filled = stops > starts
        if not filled.all():
            starts, stops, places = starts[filled], stops[filled], places[filled]
        scratch = _scratch.chunk(self.grid.chunk, self.dtype)
        for numbers in self._portions(_chunks_of(starts, stops, self.grid.chunk)):
            begin, end = numbers[0] * self.grid.chunk, (numbers[-1] + 1) * self.grid.chunk
            some = slice(np.searchsorted(stops, begin, side="right"), np.searchsorted(starts, end, side="left"))
            ranges = (starts[some], stops[some], places[some])
            with self._packed(numbers) as (packed, file, at, length):
                problem = decode(packed, file, at, length, numbers, self.grid.chunk, ranges, out, scratch)
            if problem is not None:
                which, what = problem
                raise self._damaged(int(numbers[which]) // self._per_shard, what)

    @property
    def _per_shard(self) -> int:
        return self.grid.shard // self.grid.chunk

    def _portions(self, numbers: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Chunks that are read together: of few files, and as many as a buffer holds."""
        _, nth = np.unique(numbers // self._per_shard, return_inverse=True)
        at = 0
        while at < len(numbers):
            stop = min(at + self.CHUNKS_AT_ONCE, int(np.searchsorted(nth, nth[at] + self.SHARDS_AT_ONCE)))
            yield numbers[at:stop]
            at = stop

    @contextmanager
    def _packed(self, numbers: NDArray[np.int64]) -> Iterator[tuple[NDArray[Any], ...]]:
        """Where chunks are: bytes in memory, and of each chunk its file (-1: it is in memory), place and length."""
        of_shards, which = np.unique(numbers // self._per_shard, return_inverse=True)
        heads = np.searchsorted(which, np.arange(len(of_shards) + 1))
        entries = np.concatenate(
            [
                self._index(shard)[numbers[head:end] - shard * self._per_shard]
                for shard, head, end in zip(of_shards.tolist(), heads[:-1], heads[1:], strict=True)
            ]
        )
        absent = np.flatnonzero(entries[:, 0] < 0)
        if len(absent):
            shard = int(of_shards[which[absent[0]]])
            raise self._damaged(shard, "the shard's index says that a chunk was never written")
        offset, length = entries.T
        files: list[int] | None = None
        if native.FUNCTIONS is not None:
            try:
                files = self.reader.open([self._key(shard) for shard in of_shards.tolist()])
            except FileNotFoundError as error:
                raise self._damaged(int(str(error.filename).rpartition("/")[2]), "the file is missing") from None
        if files is None:
            packed, at = self._read(of_shards[which], offset, length)
            yield packed, np.full(len(numbers), -1), at, length
            return
        try:
            yield _scratch.packed(int(length.max())), np.array(files)[which], offset, length
        finally:
            for file in files:
                os.close(file)

    def _read(
        self, shard: NDArray[np.int64], offset: NDArray[np.int64], length: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Read chunks into memory; also say where each is in it."""
        # Chunks lie in their order, as they were written: neighbours are one piece.
        between = offset[1:] - (offset + length)[:-1]
        apart = (np.diff(shard) != 0) | (between < 0) | (between > self.reader.gap)
        first = np.append(0, np.flatnonzero(apart) + 1)
        last = np.append(first[1:], len(shard)) - 1
        size = offset[last] + length[last] - offset[first]
        packed = _scratch.packed(int(size.sum()))
        pieces: list[Piece] = [
            (self._key(s), o, n)
            for s, o, n in zip(shard[first].tolist(), offset[first].tolist(), size.tolist(), strict=True)
        ]
        lacking = size - np.array(self.reader.read_pieces(pieces, memoryview(packed)), dtype=np.int64)  # type: ignore[arg-type]
        if lacking.any():
            worst = int(lacking.argmax())
            raise self._damaged(int(shard[first[worst]]), f"the file is cut short by {int(lacking[worst])} bytes")
        place = np.cumsum(size) - size
        return packed, offset + np.repeat(place - offset[first], last - first + 1)

    def _index(self, shard: int) -> NDArray[np.int64]:
        """(per shard, 2) int64 offset and length of each chunk; offset -1 where none was written."""
        with self._lock:
            if shard in self._indexes:
                self._indexes.move_to_end(shard)
                return self._indexes[shard]
        key = self._key(shard)
        size = self.reader.size(key)
        if size is None:
            raise self._damaged(shard, "the file is missing")
        length = self.grid.shard // self.grid.chunk * _ENTRY
        raw = self.reader.read(key, max(0, size - length - CHECKSUM), length + CHECKSUM)
        if len(raw) != length + CHECKSUM or checksum(raw[:-CHECKSUM]) != raw[-CHECKSUM:]:
            raise self._damaged(shard, "the shard's index is damaged or cut off")
        entries = np.frombuffer(raw[:-CHECKSUM], dtype="<u8").reshape(-1, 2)
        # A file cut off right after a chunk ends in a valid checksum too.
        written, body = entries[entries[:, 0] != _ABSENT], size - len(raw)
        if (written > body).any() or (written.sum(axis=1) > body).any() or (written[:, 1] < CHECKSUM).any():
            raise self._damaged(shard, "the shard's index is damaged or cut off")
        index = entries.astype(np.int64)  # "absent" becomes -1
        with self._lock:
            self._indexes[shard] = index
            while len(self._indexes) > self.KEEP_INDEXES:
                self._indexes.popitem(last=False)
        return index

    def _key(self, shard: int) -> str:
        return f"{self.path}/c/{shard}"

    def _damaged(self, shard: int, what: str) -> StoreDamagedError:
        return StoreDamagedError(
            f"The store is damaged at {self._key(shard)}: {what}. Nothing was read from it. "
            "Run lazypert.verify(store) to list all damage, and convert the source again."
        )


def _chunks_of(starts: NDArray[np.int64], stops: NDArray[np.int64], chunk: int) -> NDArray[np.int64]:
    """Return the numbers of the chunks that ranges touch, ascending, each once."""
    first, last = starts // chunk, (stops - 1) // chunk
    # Of each range only what those before it left over.
    first = np.maximum(first, np.concatenate([first[:1], last[:-1] + 1]))
    count = np.maximum(last - first + 1, 0)
    before = np.cumsum(count) - count
    return np.repeat(first - before, count) + np.arange(int(count.sum()))
