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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import google_crc32c
import numpy as np
from numcodecs import blosc

from lazypert.errors import StoreDamagedError
from lazypert.schema import CODEC, Codec, Grid

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

# zarr-python sets this too: in C-Blosc's own threads, output would depend on their timing.
blosc.use_threads = False

_CHECKSUM = 4
_ENTRY = 16
_ABSENT = np.uint64(2**64 - 1)


def checksum(data: bytes) -> bytes:
    """CRC-32C of `data`, four bytes, little-endian, as Zarr's ``crc32c`` codec appends it."""
    return int(google_crc32c.value(data)).to_bytes(4, "little")


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


class ByteReader(Protocol):
    """Where a store's bytes are. Thread-safe and picklable."""

    def size(self, key: str) -> int | None:
        """Bytes of an object, or None when there is no such object."""
        ...

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``: fewer at the end of the object, none when it is gone."""
        ...


@dataclass(frozen=True, slots=True)
class LocalReader:
    """Files under a folder."""

    root: Path

    def size(self, key: str) -> int | None:
        """Bytes of a file, or None."""
        try:
            return (self.root / key).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Read part of a file without moving anyone's file position."""
        try:
            fd = os.open(self.root / key, os.O_RDONLY)
        except FileNotFoundError:
            return b""
        try:
            return os.pread(fd, length, offset)
        finally:
            os.close(fd)


class ShardedArray:
    """A one-dimensional sharded array, read by ranges of elements.

    Safe to use from many threads and to pickle. Only shard indexes and a few decoded chunks are
    kept, both within bounds.

    Parameters
    ----------
    reader
        Where the bytes are.
    path
        The array's path in the store, such as ``"X/data"``.
    """

    KEEP_INDEXES = 4096
    KEEP_CHUNKS = 8

    def __init__(self, reader: ByteReader, path: str, dtype: np.dtype[Any], grid: Grid) -> None:
        self.reader, self.path, self.dtype, self.grid = reader, path, np.dtype(dtype), grid
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._indexes: OrderedDict[int, NDArray[np.uint64]] = OrderedDict()
        self._chunks: OrderedDict[int, NDArray[Any]] = OrderedDict()

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
        if not 0 <= start <= start + len(out) <= self.grid.length:
            raise IndexError(f"{self.path} has {self.grid.length} elements, got {start} to {start + len(out)}.")
        for number, lo, hi, found in self._chunks_of(start, start + len(out)):
            first = number * self.grid.chunk
            if isinstance(found, bytes) and hi - lo == self.grid.chunk:
                blosc.decompress(found, out[lo - start : hi - start])  # straight to its place
                continue
            chunk = self._keep(number, found) if isinstance(found, bytes) else found
            out[lo - start : hi - start] = chunk[lo - first : hi - first]

    def _keep(self, number: int, packed: bytes) -> NDArray[Any]:
        chunk = np.empty(self.grid.chunk, dtype=self.dtype)
        blosc.decompress(packed, chunk)
        with self._lock:
            self._chunks[number] = chunk
            while len(self._chunks) > self.KEEP_CHUNKS:
                self._chunks.popitem(last=False)
        return chunk

    def _chunks_of(self, start: int, stop: int) -> Iterator[tuple[int, int, int, NDArray[Any] | bytes]]:
        """Chunks that overlap a range: number, overlap, and the chunk, decoded or as checked bytes."""
        per_shard = self.grid.shard // self.grid.chunk
        number, end = start // self.grid.chunk, -(-stop // self.grid.chunk) if stop > start else 0
        while number < end:
            with self._lock:
                kept = self._chunks.get(number)
            if kept is not None:
                yield number, *self._overlap(number, start, stop), kept
                number += 1
                continue
            last = min(end, (number // per_shard + 1) * per_shard)
            for found, body in self._read_shard(range(number, last)):
                yield found, *self._overlap(found, start, stop), body
            number = last

    def _overlap(self, number: int, start: int, stop: int) -> tuple[int, int]:
        return max(start, number * self.grid.chunk), min(stop, (number + 1) * self.grid.chunk)

    def _read_shard(self, numbers: range) -> Iterator[tuple[int, bytes]]:
        """Neighbouring chunks of one shard lie side by side in its file: one read brings them all."""
        per_shard = self.grid.shard // self.grid.chunk
        shard = numbers.start // per_shard
        first = numbers.start - shard * per_shard
        entries = self._index(shard)[first : first + len(numbers)]
        if (entries == _ABSENT).any():
            raise self._damaged(shard, "the shard's index says that a chunk was never written")
        begin, end = int(entries[:, 0].min()), int(entries.sum(axis=1).max())
        blob = self.reader.read(self._key(shard), begin, end - begin)
        if len(blob) != end - begin:
            raise self._damaged(shard, f"the file is cut short by {end - begin - len(blob)} bytes")
        for number, (offset, length) in zip(numbers, entries.tolist(), strict=True):
            piece = blob[offset - begin : offset - begin + length]
            body = piece[:-_CHECKSUM]
            if checksum(body) != piece[-_CHECKSUM:]:
                raise self._damaged(shard, f"the checksum of chunk {number} does not match its bytes")
            held = int.from_bytes(body[4:8], "little")  # so says the header of every blosc chunk
            if held != self.grid.chunk * self.dtype.itemsize:
                raise self._damaged(shard, f"chunk {number} holds {held:,} bytes, which are those of another array")
            yield number, body

    def _index(self, shard: int) -> NDArray[np.uint64]:
        with self._lock:
            if shard in self._indexes:
                self._indexes.move_to_end(shard)
                return self._indexes[shard]
        key = self._key(shard)
        size = self.reader.size(key)
        if size is None:
            raise self._damaged(shard, "the file is missing")
        length = self.grid.shard // self.grid.chunk * _ENTRY
        raw = self.reader.read(key, max(0, size - length - _CHECKSUM), length + _CHECKSUM)
        if len(raw) != length + _CHECKSUM or checksum(raw[:-_CHECKSUM]) != raw[-_CHECKSUM:]:
            raise self._damaged(shard, "the shard's index is damaged or cut off")
        index = np.frombuffer(raw[:-_CHECKSUM], dtype="<u8").reshape(-1, 2)
        # A file cut off right after a chunk ends in a valid checksum too.
        written, body = index[index[:, 0] != _ABSENT], size - len(raw)
        if (written > body).any() or (written.sum(axis=1) > body).any() or (written[:, 1] < _CHECKSUM).any():
            raise self._damaged(shard, "the shard's index is damaged or cut off")
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
