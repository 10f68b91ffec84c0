"""Appending values to the arrays of a store, so that readers of the version before go on undisturbed.

Array grids never change. A shard that was not full is written again: all of its old bytes at the same offsets, then its
last chunk with more values, further chunks, and an index of all. A reader that holds the old index finds the old
chunks, and a reader of the new one finds as many values as its metadata say, or more.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numcodecs import blosc
from numcodecs.vlen import VLenUTF8

from lazypert._internal.files import write_atomic
from lazypert.errors import ConfigError
from lazypert.store.encoded_chunks import CHECKSUM, checksum
from lazypert.store.format import Codec, stored_elements
from lazypert.store.shard_encoding import ABSENT, INDEX_ENTRY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

_SHUFFLES = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}


@dataclass(frozen=True, slots=True)
class _Chunks:
    """How the chunks of an array are encoded; `dtype` is None for text."""

    dtype: np.dtype[Any] | None
    codec: Codec

    @classmethod
    def of(cls, path: str, data_type: str, codecs: list[dict[str, Any]]) -> _Chunks:
        compressor = next((codec for codec in codecs if codec["name"] == "blosc"), None)
        if compressor is None or codecs[-1]["name"] != "crc32c":
            names = [codec["name"] for codec in codecs]
            raise ConfigError(
                f"store: got {path!r} with the codecs {names}, expected 'blosc'. Convert all files again."
            )
        chosen = {name: compressor["configuration"][name] for name in ("cname", "clevel", "shuffle", "blocksize")}
        if data_type == "string":
            return cls(None, Codec(**chosen))
        stored = stored_elements(np.dtype(data_type), codecs)
        return cls(stored.dtype, Codec(**chosen, is_delta=stored.is_delta))

    def encode(self, values: NDArray[Any], length: int) -> bytes:
        """Encode one chunk of a number of elements (or rows), padded with zeros or empty text."""
        n_missing = length - len(values)
        if self.dtype is None:
            text = np.empty(length, object)
            text[: len(values)], text[len(values) :] = values, ""
            raw: Any = VLenUTF8().encode(text)
        else:
            padding = np.zeros((n_missing, *values.shape[1:]), self.dtype)
            raw = np.concatenate([values.astype(self.dtype, copy=False), padding])
            if self.codec.is_delta:
                raw = np.diff(raw, prepend=raw.dtype.type(0))
        codec = self.codec
        body = blosc.compress(raw, codec.cname.encode(), codec.clevel, _SHUFFLES[codec.shuffle], codec.blocksize)
        return bytes(body + checksum(body))

    def decode(self, encoded: bytes) -> NDArray[Any]:
        """Decode a chunk into one dimension."""
        raw = blosc.decompress(encoded[:-CHECKSUM])
        if self.dtype is None:
            return np.asarray(VLenUTF8().decode(raw))
        elements = np.frombuffer(raw, self.dtype)
        return np.cumsum(elements, dtype=self.dtype) if self.codec.is_delta else elements


class ArrayAppender:
    """Appends to a one-dimensional array, sharded as all of those of a store are.

    Parameters
    ----------
    folder
        Folder of the array in a version of the store that no one reads yet; its files may be hard links.
    empty_grid
        Lengths of a chunk and a shard of an array that has no values yet, and so no grid to keep.
    read
        Reads a file of values in the folder, which may be elsewhere.
    """

    def __init__(self, folder: Path, empty_grid: tuple[int, int], read: Callable[[Path], bytes]) -> None:
        self.folder, self._read = folder, read
        self.metadata = json.loads((folder / "zarr.json").read_bytes())
        (self.length,) = self.metadata["shape"]
        (sharding,) = self.metadata["codecs"]
        if self.length == 0:
            self.metadata["chunk_grid"]["configuration"]["chunk_shape"] = [empty_grid[1]]
            sharding["configuration"]["chunk_shape"] = [empty_grid[0]]
        (self.shard,) = self.metadata["chunk_grid"]["configuration"]["chunk_shape"]
        (self.chunk,) = sharding["configuration"]["chunk_shape"]
        self.chunks = _Chunks.of(folder.name, self.metadata["data_type"], sharding["configuration"]["codecs"])
        self._pending: list[NDArray[Any]] = []
        self._n_pending = 0

    def __repr__(self) -> str:
        return f"ArrayAppender({str(self.folder)!r}, {self.length:,} values)"

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """Dtype of the stored values; None for text."""
        return self.chunks.dtype

    def add(self, values: NDArray[Any]) -> None:
        """Append values; whole shards are written as soon as they are full."""
        while len(values):
            room = self.shard - self.length % self.shard - self._n_pending
            self._pending.append(values[:room])
            self._n_pending += len(values[:room])
            values = values[room:]
            if self.length % self.shard + self._n_pending == self.shard:
                self._flush()

    def close(self) -> None:
        """Write the last shard and the metadata."""
        if self._n_pending:
            self._flush()
        self.metadata["shape"] = [self.length]
        write_json(self.folder / "zarr.json", self.metadata)

    def _flush(self) -> None:
        values = np.concatenate(self._pending)
        number, filled = divmod(self.length, self.shard)
        file = self.folder / "c" / str(number)
        file.parent.mkdir(exist_ok=True)
        write_atomic(file, self._extended(self._read(file) if filled else b"", filled, values))
        self.length += len(values)
        self._pending, self._n_pending = [], 0

    def _extended(self, old: bytes, filled: int, values: NDArray[Any]) -> list[bytes]:
        """Buffers of a shard that has `filled` values in the bytes `old`, and further ones."""
        n_chunks = self.shard // self.chunk
        index = np.full((n_chunks, 2), ABSENT, dtype="<u8")
        first, n_partial = divmod(filled, self.chunk)
        if filled:
            encoded_index = old[len(old) - n_chunks * INDEX_ENTRY - CHECKSUM : len(old) - CHECKSUM]
            index[:] = np.frombuffer(encoded_index, "<u8").reshape(-1, 2)
        if n_partial:
            offset, size = map(int, index[first])
            values = np.concatenate([self.chunks.decode(old[offset : offset + size])[:n_partial], values])
        buffers, offset = [old], len(old)
        for number, start in enumerate(range(0, len(values), self.chunk), start=first):
            encoded = self.chunks.encode(values[start : start + self.chunk], self.chunk)
            index[number] = offset, len(encoded)
            offset += len(encoded)
            buffers.append(encoded)
        encoded_index = index.tobytes()
        return [*buffers, encoded_index + checksum(encoded_index)]


def append_rows(folder: Path, values: Any, read: Callable[[Path], bytes]) -> None:
    """Append rows to an embedding, whose chunks are files of their own.

    Parameters
    ----------
    values
        (n, width) rows, or an object that reads them when it is sliced.
    read
        As for `ArrayAppender`.
    """
    metadata = json.loads((folder / "zarr.json").read_bytes())
    n_old, width = metadata["shape"]
    if n_old == 0:
        metadata["chunk_grid"]["configuration"]["chunk_shape"][0] = max(1, min(len_of(values), 4096))
    rows, columns = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    chunks = _Chunks.of(folder.name, metadata["data_type"], metadata["codecs"])
    total, start = n_old + len_of(values), n_old
    while start < total:
        number, n_filled = divmod(start, rows)
        stop = min(total, (number + 1) * rows)
        block = np.asarray(values[start - n_old : stop - n_old]).astype(chunks.dtype, copy=False)
        file = folder / "c" / str(number) / "0"
        if n_filled:
            block = np.concatenate([chunks.decode(read(file)).reshape(rows, columns)[:n_filled, :width], block])
        if width < columns:  # an embedding of no columns has chunks of one
            block = np.zeros((len(block), columns), chunks.dtype)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, [chunks.encode(np.ascontiguousarray(block), rows)])
        start = stop
    metadata["shape"] = [total, width]
    write_json(folder / "zarr.json", metadata)


def len_of(values: Any) -> int:
    """Return the number of rows."""
    return int(values.shape[0])


def write_json(file: Path, content: Any) -> None:
    """Write metadata as a new file, so that the version before keeps its own."""
    write_atomic(file, [json.dumps(content, indent=2).encode()])


def finite_sum(totals: list[float | None]) -> float | None:
    """Sum of the sums of parts; None if one of them, or the sum, is not finite."""
    known = [total for total in totals if total is not None]
    total = math.fsum(known) if len(known) == len(totals) else math.inf
    return total if math.isfinite(total) else None
