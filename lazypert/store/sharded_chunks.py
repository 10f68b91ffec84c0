"""The encoded chunks of an array in shards: in which steps they are read, and from which files, objects or memory."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.fork import forkable_lock
from lazypert._internal.machine import machine_error
from lazypert.errors import LazypertError, StoreChangedError
from lazypert.store import native
from lazypert.store.chunk_memory import CHUNKS, MAX_CHUNKS, Piece, Scans
from lazypert.store.damage import store_damaged
from lazypert.store.encoded_chunks import UNREADABLE, ChunkDamage, EncodedChunks
from lazypert.store.shard_index import ShardIndexes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lazypert.store.byte_reader import ByteRange, ByteReader
    from lazypert.store.format import Grid

_SMALL = 4 * 1024**2
"""Bytes of a decoded array that is read as a whole from object storage."""

_INDEXES_AT_ONCE = 16
"""Shard indexes that a scan reads at a time."""


class _Scratch(threading.local):
    """Buffers of one thread, reused by every read: fresh memory costs as much as decoding into it."""

    def __init__(self) -> None:
        self._buffers: dict[str, NDArray[np.uint8]] = {}

    def take(self, name: str, length: int, dtype: Any = np.uint8) -> NDArray[Any]:
        """(length,) uninitialised array, valid until the thread takes this buffer again."""
        n_bytes = length * np.dtype(dtype).itemsize
        if name not in self._buffers or len(self._buffers[name]) < n_bytes:
            self._buffers[name] = np.empty(n_bytes, np.uint8)
        return self._buffers[name][:n_bytes].view(dtype)


SCRATCH = _Scratch()


class ShardedChunks:
    """Chunks of a one-dimensional array, which are read in steps; matrices read two arrays side by side.

    Parameters
    ----------
    reader
        Where the bytes are.
    path
        The array's path in the store, such as ``"X/data"``.
    dtype
        Dtype of the elements.
    grid
        Lengths of the array, its chunks and its shards.
    is_delta
        Whether chunks hold the difference of each element to the one before it.
    """

    MAX_CHUNKS_IN_MEMORY = 128  # encoded, per read: about 4 MiB of a matrix
    MAX_OPEN_FILES = 64  # per read
    MAX_CHUNKS_IN_REQUEST = 512  # encoded, per read of object storage: about 16 MiB, so that few steps wait for it

    def __init__(
        self, reader: ByteReader, path: str, dtype: np.dtype[Any], grid: Grid, *, is_delta: bool = False
    ) -> None:
        self.reader, self.path, self.dtype, self.grid, self.is_delta = reader, path, np.dtype(dtype), grid, is_delta
        self.indexes = ShardIndexes(reader, path, grid.shard // grid.chunk)
        self._in_memory, self._scans, self._beginning = CHUNKS.register(self), Scans(), forkable_lock()

    def scratch_chunk(self) -> NDArray[Any]:
        """(chunk,) buffer for one decoded chunk, reused by every read of this thread."""
        return SCRATCH.take(f"chunk {self._name}", self.grid.chunk, self.dtype)

    def read_steps(
        self, starts: NDArray[np.int64], stops: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], slice]]:
        """Divide a read into steps that bound the open files, or the memory if chunks are not decoded from files.

        Yields
        ------
        Numbers of the chunks of a step, and the ranges that overlap them.
        """
        numbers = chunks_of(starts, stops, self.grid.chunk)
        ends = self._step_ends(numbers)
        for at, end, next_end in zip([0, *ends], ends, [*ends[1:], None], strict=False):
            if next_end is not None:
                self.begin(numbers[end:next_end])
            start, stop = numbers[at] * self.grid.chunk, (numbers[end - 1] + 1) * self.grid.chunk
            overlapping = slice(np.searchsorted(stops, start, side="right"), np.searchsorted(starts, stop, side="left"))
            yield numbers[at:end], overlapping

    def _step_ends(self, numbers: NDArray[np.int64]) -> list[int]:
        nth_shard = np.cumsum(np.diff(numbers // self._per_shard, prepend=-1) != 0)
        from_files = native.are_available() and self.reader.has_files
        is_local = self.reader.coalescing_gap == 0
        ends, at = [], 0
        while at < len(numbers):
            end = at + (self.MAX_CHUNKS_IN_MEMORY if is_local else self.MAX_CHUNKS_IN_REQUEST)
            if from_files:
                n_files = self.MAX_OPEN_FILES
                last = int(np.searchsorted(nth_shard, nth_shard[at] + n_files))
                end = last if is_local else min(last, end)
            at = min(end, len(numbers))
            ends.append(at)
        return ends

    def begin(self, numbers: NDArray[np.int64]) -> None:
        """Start to read chunks that this thread will read next, if they are objects."""
        if self.reader.coalescing_gap == 0 or not len(numbers):
            return
        if not self.reader.has_files or not native.are_available():
            self._pieces(numbers)

    def begin_ranges(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        """Start to read the first step of ranges that this thread will read after another array."""
        if self.reader.coalescing_gap:
            self.hold_if_small()
            is_filled = stops > starts
            numbers = chunks_of(starts[is_filled], stops[is_filled], self.grid.chunk)
            self.begin(numbers[: self._step_ends(numbers)[0]] if len(numbers) else numbers)

    def hold_if_small(self) -> None:
        """Let a small array be read by one request, instead of one for its index and another for its chunks."""
        is_small = self.grid.n_shards == 1 and self.grid.length * self.dtype.itemsize <= _SMALL
        if is_small and self.reader.coalescing_gap and not self.reader.has_files:
            self.reader.hold([self.indexes.key(0)])

    @contextmanager
    def open_chunks(self, numbers: NDArray[np.int64]) -> Iterator[EncodedChunks]:
        """Locate chunks in files that are open within the context, or read them into memory."""
        shard, within, offsets, lengths = self._locate(numbers)
        is_new = np.diff(shard, prepend=-1) != 0
        nth_shard, shards = np.cumsum(is_new) - 1, shard[is_new].tolist()
        files = self._open_files(shards, shard, offsets, lengths)
        if files is None:
            read = self._read_chunks if self.reader.coalescing_gap == 0 else self._take_chunks
            buffer, offsets = read(numbers, offsets, lengths)
            is_verified, in_files = np.zeros(len(numbers), bool), np.full(len(numbers), -1)
            yield EncodedChunks(
                buffer, in_files, offsets, lengths, numbers, self.grid.chunk, self.is_delta, is_verified
            )
            return
        try:
            buffer = SCRATCH.take(f"encoded {self._name}", int(lengths.max()))
            of_shards = self.indexes.verified(shards, files)
            was_verified = np.stack(of_shards)[nth_shard, within]
            is_verified, in_files = was_verified.copy(), np.array(files)[nth_shard]
            in_file = offsets + self.reader.file_offset
            yield EncodedChunks(
                buffer, in_files, in_file, lengths, numbers, self.grid.chunk, self.is_delta, is_verified
            )
            for i in np.flatnonzero(is_verified & ~was_verified).tolist():
                of_shards[nth_shard[i]][within[i]] = True
        finally:
            for file in files:
                os.close(file)

    def _locate(
        self, numbers: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Shard of each chunk, its number within it, and its offset and length in bytes."""
        shard, within = np.divmod(numbers, self._per_shard)
        is_new = np.diff(shard, prepend=-1) != 0
        entries = np.stack(self.indexes.read(shard[is_new].tolist()))[np.cumsum(is_new) - 1, within]
        absent = np.flatnonzero(entries[:, 0] < 0)
        if len(absent):
            raise self._damaged(int(shard[absent[0]]), "the shard index says that a chunk was never written")
        offsets, lengths = np.ascontiguousarray(entries.T)
        return shard, within, offsets, lengths

    def raise_damage(self, damage: ChunkDamage, numbers: NDArray[np.int64]) -> None:
        """Raise the error for damage, if any, among the chunks of a step, or for a failed read."""
        if damage is None:
            return
        position, problem = damage
        shard, within = divmod(int(numbers[position]), self._per_shard)
        CHUNKS.forget(self._in_memory)
        if problem != UNREADABLE:
            self.reader.check()  # parts of a new store do not fit the index of the old one
            raise self._damaged(shard, problem)
        # Kernels cannot say why a read failed: read the same bytes in Python, which raises the reason.
        offset, length = self.indexes.read([shard])[0][within].tolist()
        self.reader.read(self.indexes.key(shard), offset, length)
        raise machine_error(self.indexes.key(shard), OSError(errno.EIO, "a read failed, and succeeded when repeated"))

    def _open_files(
        self, shards: list[int], shard: NDArray[np.int64], offsets: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> list[int] | None:
        """Open the files of shards; None if there are none, kernels cannot read them, or too many are open."""
        if not (native.are_available() and self.reader.has_files):
            return None
        is_local = self.reader.coalescing_gap == 0
        ranges = [] if is_local else self._coalesce(shard, offsets, lengths)[0]
        try:
            return self.reader.open_files([self.indexes.key(number) for number in shards], ranges)
        except LazypertError:  # some are errors of files too
            raise
        except FileNotFoundError as error:
            raise store_damaged(str(error.filename), "the file is missing") from None
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise machine_error(str(error.filename), error) from error
            return None

    def _read_chunks(
        self, numbers: NDArray[np.int64], offsets: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Read chunks into memory: the bytes, and the offset of each chunk in them."""
        shard = numbers // self._per_shard
        ranges, first, last = self._coalesce(shard, offsets, lengths)
        sizes = offsets[last] + lengths[last] - offsets[first]
        buffer = SCRATCH.take(f"encoded {self._name}", int(sizes.sum()))
        missing = sizes - np.array(self.reader.read_ranges(ranges, memoryview(buffer)), dtype=np.int64)  # type: ignore[arg-type]
        if missing.any():
            worst = int(missing.argmax())
            raise self._damaged(int(shard[first[worst]]), f"the file is cut short by {int(missing[worst])} bytes")
        range_offsets = np.cumsum(sizes) - sizes
        return buffer, offsets + np.repeat(range_offsets - offsets[first], last - first + 1)

    def _take_chunks(
        self, numbers: NDArray[np.int64], offsets: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Like `_read_chunks`, from the chunks that are kept in memory or being read."""
        buffer = SCRATCH.take(f"encoded {self._name}", int(lengths.sum()))
        ends = np.cumsum(lengths)
        bodies: dict[Piece, NDArray[np.uint8]] = {}
        for i, piece in enumerate(self._pieces(numbers)):
            if piece not in bodies:
                bodies[piece] = np.frombuffer(piece.wait(), np.uint8)
            start, length = int(offsets[i]) - piece.offset, int(lengths[i])
            body = bodies[piece][start : start + length]
            if len(body) < length:
                shard = int(numbers[i]) // self._per_shard
                raise self._damaged(shard, f"the file is cut short by {length - len(body)} bytes")
            buffer[ends[i] - length : ends[i]] = body
        return buffer, ends - lengths

    def _pieces(self, numbers: NDArray[np.int64]) -> list[Piece]:
        """Pieces that hold chunks; those that are not in memory are begun to be read, and what a scan needs next."""
        self._locate(numbers)  # reads the indexes, so that nothing waits for a server below
        with self._beginning:  # otherwise two threads would read the same chunk
            found = CHUNKS.find(self._in_memory, numbers)
            missing = numbers[[piece is None for piece in found]]
            if len(missing):
                begun = self._begin_pieces(missing)
                nth = np.searchsorted([piece.first for piece in begun], missing, side="right") - 1
                of_missing = iter([begun[i] for i in nth.tolist()])
                found = [next(of_missing) if piece is None else piece for piece in found]
        n_ahead = self._scans.ahead(numbers)
        if n_ahead:
            n_chunks = -(-self.grid.length // self.grid.chunk)
            ahead = np.arange(numbers[-1] + 1, min(numbers[-1] + 1 + n_ahead, n_chunks))
            if len(ahead):
                group = int(ahead[-1]) // self._per_shard // _INDEXES_AT_ONCE * _INDEXES_AT_ONCE
                self.indexes.read(range(group, min(group + _INDEXES_AT_ONCE, self.grid.n_shards)))
            absent = ahead[[piece is None for piece in CHUNKS.find(self._in_memory, ahead)]]
            if len(absent) and (len(absent) >= n_ahead // 2 or ahead[-1] == n_chunks - 1):
                self._begin_pieces(absent)
        return found  # type: ignore[return-value]

    def _begin_pieces(self, numbers: NDArray[np.int64]) -> list[Piece]:
        shard, _, offsets, lengths = self._locate(numbers)
        ranges, first, last = self._coalesce(shard, offsets, lengths, at_most=MAX_CHUNKS)
        begun = [
            Piece(self.reader, one, int(numbers[a]), int(numbers[b]))
            for one, a, b in zip(ranges, first.tolist(), last.tolist(), strict=True)
        ]
        CHUNKS.add(self._in_memory, begun)
        return begun

    def _coalesce(
        self,
        shard: NDArray[np.int64],
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int64],
        at_most: int | None = None,
    ) -> tuple[list[ByteRange], NDArray[np.int64], NDArray[np.int64]]:
        """Byte ranges that hold chunks, `at_most` so many each, and the first and the last chunk of each."""
        # Chunks lie in the order of their numbers, so nearby ones coalesce into one byte range.
        gap = offsets[1:] - (offsets + lengths)[:-1]
        is_apart = (np.diff(shard) != 0) | (gap < 0) | (gap > self.reader.coalescing_gap)
        first = np.append(0, np.flatnonzero(is_apart) + 1)
        if at_most is not None:
            ends = np.append(first[1:], len(shard)).tolist()
            first = np.array([at for a, b in zip(first.tolist(), ends, strict=True) for at in range(a, b, at_most)])
        last = np.append(first[1:], len(shard)) - 1
        sizes = offsets[last] + lengths[last] - offsets[first]
        ranges: list[ByteRange] = [
            (self.indexes.key(number), offset, size)
            for number, offset, size in zip(shard[first].tolist(), offsets[first].tolist(), sizes.tolist(), strict=True)
        ]
        return ranges, first, last

    @property
    def _name(self) -> str:
        # Names scratch buffers: a matrix reads its indices and data at the same time.
        return self.path.rpartition("/")[2]

    @property
    def _per_shard(self) -> int:
        return self.indexes.chunks_per_shard

    def _damaged(self, shard: int, problem: str) -> Exception:
        key = self.indexes.key(shard)
        if self.indexes.has_changed(shard):  # by an update at a URL that was undone since then
            return StoreChangedError(f"{key}: it was written again while it was read. Open the store again.")
        return store_damaged(key, problem)


def chunks_of(starts: NDArray[np.int64], stops: NDArray[np.int64], chunk: int) -> NDArray[np.int64]:
    """Return the numbers of the chunks that ranges overlap, sorted and unique."""
    first, last = starts // chunk, (stops - 1) // chunk
    # Leave out the chunks that earlier ranges overlap.
    first = np.maximum(first, np.concatenate([first[:1], last[:-1] + 1]))
    count = np.maximum(last - first + 1, 0)
    before = np.cumsum(count) - count
    return np.repeat(first - before, count) + np.arange(int(count.sum()))
