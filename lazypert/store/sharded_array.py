"""Zarr v3 shards of one-dimensional arrays, to bytes and back.

The arrays are ordinary Zarr: any reader opens them, and the tests hold this module to zarr-python
byte for byte. It exists for two things zarr-python does not do: encode and decode in threads at
the codec's speed into given buffers (zarr-python takes about five times as long), and say that a
shard is missing instead of filling in zeros.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lazypert.errors import StoreDamagedError
from lazypert.store import native
from lazypert.store.chunk_kernels import CHECKSUM, Chunks, Damage, checksum, decode, pick, scatter, select

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lazypert.sparse.columns import ColumnSelection
    from lazypert.store.byte_reader import ByteRange, ByteReader
    from lazypert.store.format import Grid
from lazypert.store.shard_encoding import _ABSENT, _ENTRY


class _Scratch(threading.local):
    """A thread's own buffers, used again by every read: fresh memory costs as much as decoding into it."""

    def __init__(self) -> None:
        self._held: dict[str, NDArray[np.uint8]] = {}

    def take(self, name: str, length: int, dtype: Any = np.uint8) -> NDArray[Any]:
        """(length,) array of any content. Of memory that is never touched there is none."""
        n_bytes = length * np.dtype(dtype).itemsize
        if name not in self._held or len(self._held[name]) < n_bytes:
            self._held[name] = np.empty(n_bytes, np.uint8)
        return self._held[name][:n_bytes].view(dtype)


_scratch = _Scratch()


class Kept(NamedTuple):
    """Which of the column numbers of some ranges are wanted.

    Attributes
    ----------
    columns
        (m,) unsigned output column of each.
    places
        (m,) uint32 its place in its chunk. Valid until this thread's next `ShardedArray.select`.
    upto_range, upto_chunk
        How many are kept up to the end of each range, and of each chunk.
    """

    columns: NDArray[Any]
    places: NDArray[np.uint32]
    upto_range: NDArray[np.int64]
    upto_chunk: NDArray[np.int64]


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
    CHUNKS_AT_ONCE = 128  # in memory, packed: about 4 MiB of a matrix
    FILES_AT_ONCE = 64  # open

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
            Contiguous, of the array's dtype; or of unsigned integers of another width, for an array of
            unsigned ones that fit.

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
        scratch = self._chunk()
        for numbers, some in self._portions(starts, stops):
            with self._packed(numbers) as chunks:
                damage = decode(chunks, (starts[some], stops[some]), places[some], out, scratch)
            self._check(damage, numbers)

    def select(self, starts: NDArray[np.int64], stops: NDArray[np.int64], columns: ColumnSelection) -> Kept:
        """Which elements of ranges, that are column numbers, are wanted. Needs `native.FUNCTIONS`.

        Parameters
        ----------
        starts, stops
            As in `gather`; no range is empty, and none begins before another ends.
        columns
            Which are wanted.
        """
        scratch = self._chunk()
        most = int((stops - starts).sum()) + 1
        out = _scratch.take("columns", most, columns.lookup.dtype), _scratch.take("places", most, np.uint32)
        n_chunks = len(_chunks_of(starts, stops, self.grid.chunk))
        upto_range, upto_chunk = np.zeros(len(starts), np.int64), np.zeros(n_chunks, np.int64)
        kept = done = 0
        for numbers, some in self._portions(starts, stops):
            upto = upto_range[some], upto_chunk[done : done + len(numbers)]
            with self._packed(numbers) as chunks:
                damage, kept = select(chunks, (starts[some], stops[some]), columns, kept, upto, out, scratch)
            self._check(damage, numbers)
            done += len(numbers)
        return Kept(out[0][:kept].copy(), out[1][:kept], upto_range, upto_chunk)

    def pick(
        self, starts: NDArray[np.int64], stops: NDArray[np.int64], kept: Kept, *, totals: bool
    ) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Elements of ranges at the places kept by `select`, of an array with chunks of the same length.

        Returns
        -------
        (m,) elements, and the (n,) sum of each whole range, if asked for.
        """
        scratch = self._chunk()
        out, sums = np.empty(len(kept.columns), self.dtype), np.zeros(len(starts) if totals else 0)
        first = done = 0
        for numbers, some in self._portions(starts, stops):
            upto = kept.upto_chunk[done : done + len(numbers)]
            with self._packed(numbers) as chunks:
                ranges = starts[some], stops[some]
                damage = pick(chunks, ranges, first, upto, kept.places, out, sums[some], scratch)
            self._check(damage, numbers)
            first, done = int(upto[-1]), done + len(numbers)
        return out, sums

    def _check(self, damage: Damage, numbers: NDArray[np.int64]) -> None:
        if damage is not None:
            which, what = damage
            raise self._damaged(int(numbers[which]) // self._per_shard, what)

    @property
    def _name(self) -> str:
        return self.path.rpartition("/")[2]  # of a matrix, indices and data may be at hand at the same time

    def _chunk(self) -> NDArray[Any]:
        return _scratch.take(f"chunk {self._name}", self.grid.chunk, self.dtype)

    @property
    def _per_shard(self) -> int:
        return self.grid.shard // self.grid.chunk

    def _portions(
        self, starts: NDArray[np.int64], stops: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], slice]]:
        """Chunks that are read together, and which ranges want something of them.

        They are of few files; or in memory, where they are no files, or cannot be read where they are decoded.
        """
        numbers = _chunks_of(starts, stops, self.grid.chunk)
        nth = np.cumsum(np.diff(numbers // self._per_shard, prepend=-1) != 0)  # its shard, of those wanted
        at, in_files = 0, native.FUNCTIONS is not None and self.reader.has_files
        while at < len(numbers):
            stop = at + self.CHUNKS_AT_ONCE
            if in_files:
                stop = int(np.searchsorted(nth, nth[at] + self.FILES_AT_ONCE))
            stop = min(stop, len(numbers))
            begin, end = numbers[at] * self.grid.chunk, (numbers[stop - 1] + 1) * self.grid.chunk
            some = slice(np.searchsorted(stops, begin, side="right"), np.searchsorted(starts, end, side="left"))
            yield numbers[at:stop], some
            at = stop

    @contextmanager
    def _packed(self, numbers: NDArray[np.int64]) -> Iterator[Chunks]:
        """Chunks in memory, or in files that are open meanwhile."""
        shard = numbers // self._per_shard
        is_new = np.diff(shard, prepend=-1) != 0
        of_shards, which = shard[is_new], np.cumsum(is_new) - 1
        heads = np.append(np.flatnonzero(is_new), len(numbers))
        entries = np.concatenate(
            [
                self._index(number)[numbers[head:end] - number * self._per_shard]
                for number, head, end in zip(of_shards.tolist(), heads[:-1], heads[1:], strict=True)
            ]
        )
        absent = np.flatnonzero(entries[:, 0] < 0)
        if len(absent):
            raise self._damaged(int(shard[absent[0]]), "the shard's index says that a chunk was never written")
        offset, length = np.ascontiguousarray(entries.T)
        files: list[int] | None = None
        if native.FUNCTIONS is not None and self.reader.has_files:
            try:
                files = self.reader.open([self._key(number) for number in of_shards.tolist()])
            except FileNotFoundError as error:
                raise self._damaged(int(str(error.filename).rpartition("/")[2]), "the file is missing") from None
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
        if files is None:
            packed, at = self._read(shard, offset, length)
            yield Chunks(packed, np.full(len(numbers), -1), at, length, numbers, self.grid.chunk)
            return
        try:
            packed = _scratch.take(f"packed {self._name}", int(length.max()))
            yield Chunks(packed, np.array(files)[which], offset, length, numbers, self.grid.chunk)
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
        packed = _scratch.take(f"packed {self._name}", int(size.sum()))
        pieces: list[ByteRange] = [
            (self._key(s), o, n)
            for s, o, n in zip(shard[first].tolist(), offset[first].tolist(), size.tolist(), strict=True)
        ]
        lacking = size - np.array(self.reader.read_ranges(pieces, memoryview(packed)), dtype=np.int64)  # type: ignore[arg-type]
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


def scatter_rows(
    indices: ShardedArray,
    data: ShardedArray,
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    places: NDArray[np.int64],
    columns: ColumnSelection,
    target_sum: float,
    out: NDArray[np.float32],
) -> None:
    """Decode rows of a matrix and write the wanted columns of each, dense. Needs `native.FUNCTIONS`.

    Parameters
    ----------
    indices, data
        Its column numbers and values, in chunks of the same length.
    starts, stops
        (n,) where each row is in them; no row is empty, and none begins before another ends.
    places
        (n,) row of `out` that each is.
    columns, target_sum
        Which columns to take; and the sum to scale each row to before ``log1p``, 0 for values as they are.
    out
        (m, n_columns) float32.
    """
    scratch, sums = (indices._chunk(), data._chunk()), np.zeros(len(starts))
    row = np.zeros(columns.n_columns + 1, np.float32)
    for numbers, some in indices._portions(starts, stops):
        ranges = starts[some], stops[some]
        with indices._packed(numbers) as of_indices, data._packed(numbers) as of_data:
            problems = scatter(
                (of_indices, of_data), ranges, places[some], columns, target_sum, sums[some], row, out, scratch
            )
        for array, damage in zip((indices, data), problems, strict=True):
            array._check(damage, numbers)


def _chunks_of(starts: NDArray[np.int64], stops: NDArray[np.int64], chunk: int) -> NDArray[np.int64]:
    """Return the numbers of the chunks that ranges touch, ascending, each once."""
    first, last = starts // chunk, (stops - 1) // chunk
    # Of each range only what those before it left over.
    first = np.maximum(first, np.concatenate([first[:1], last[:-1] + 1]))
    count = np.maximum(last - first + 1, 0)
    before = np.cumsum(count) - count
    return np.repeat(first - before, count) + np.arange(int(count.sum()))
