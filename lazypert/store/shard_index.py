"""Shard indexes: the byte range of every chunk, from the end of each shard's file, and which chunks were verified."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.fork import forkable_lock
from lazypert.errors import StoreDamagedError
from lazypert.store.damage import store_damaged
from lazypert.store.encoded_chunks import CHECKSUM, checksum
from lazypert.store.shard_encoding import ABSENT, INDEX_ENTRY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.store.byte_reader import ByteReader


_LARGEST_SHARD = 2**31
"""Bytes; what an object without a known size is checked against. Reading beyond its end is an error in any case."""


class ShardIndexes:
    """The shard indexes of one array, each read on first use; the most recently used ones are cached.

    They also note which chunks have been verified, so that the checksum of each is computed once.

    Thread-safe and picklable; pickles without its cache.

    Parameters
    ----------
    reader
        Where the bytes are.
    path
        The array's path in the store.
    chunks_per_shard
        Number of chunks in one shard.
    """

    MAX_CACHED = 4096

    def __init__(self, reader: ByteReader, path: str, chunks_per_shard: int) -> None:
        self.reader, self.path, self.chunks_per_shard = reader, path, chunks_per_shard
        self._lock = forkable_lock()
        self._cached: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self._verified: dict[int, tuple[tuple[int, ...], NDArray[np.bool_]]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardIndexes, (self.reader, self.path, self.chunks_per_shard)

    def __len__(self) -> int:
        """Return the number of indexes in the cache."""
        return len(self._cached)

    def key(self, shard: int) -> str:
        """Key of a shard's file."""
        return f"{self.path}/c/{shard}"

    def read(self, shards: Sequence[int]) -> list[NDArray[np.int64]]:
        """(chunks_per_shard, 2) offset and length of each chunk, for each shard; offset -1 if it was never written.

        Raises
        ------
        StoreDamagedError
            If a shard is missing or its index is damaged.
        """
        with self._lock:
            known = {shard: self._cached[shard] for shard in shards if shard in self._cached}
            for shard in known:
                self._cached.move_to_end(shard)
        unread = [shard for shard in dict.fromkeys(shards) if shard not in known]
        indexes = known | dict(zip(unread, self._read(unread), strict=True)) if unread else known
        if unread:
            with self._lock:
                self._cached.update(indexes)
                while len(self._cached) > self.MAX_CACHED:
                    self._verified.pop(self._cached.popitem(last=False)[0], None)
        return [indexes[shard] for shard in shards]

    def has_changed(self, shard: int) -> bool:
        """Whether a shard has another intact index now than was read before."""
        with self._lock:
            known = self._cached.get(shard)
        length, key = self.chunks_per_shard * INDEX_ENTRY + CHECKSUM, self.key(shard)
        ((tail, size),) = self.reader.fresh().read_tails([key], length)
        try:
            return known is not None and tail is not None and not np.array_equal(known, _parse(key, tail, size, length))
        except StoreDamagedError:
            return False

    def verified(self, shards: Sequence[int], files: Sequence[int]) -> list[NDArray[np.bool_]]:
        """(chunks_per_shard,) whether each chunk has been verified, for each shard; readers set it.

        A file that was replaced or written to since then counts as not verified.

        Parameters
        ----------
        files
            Descriptor of each shard's open file.
        """
        stats = [os.fstat(file) for file in files]
        identities = [(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]
        with self._lock:
            return [self._flags(shard, identity) for shard, identity in zip(shards, identities, strict=True)]

    def _flags(self, shard: int, identity: tuple[int, ...]) -> NDArray[np.bool_]:
        known, is_verified = self._verified.get(shard, (None, None))
        if is_verified is None or known != identity:
            is_verified = np.zeros(self.chunks_per_shard, np.bool_)
            if shard in self._cached:
                self._verified[shard] = identity, is_verified
        return is_verified

    def _read(self, shards: Sequence[int]) -> list[NDArray[np.int64]]:
        keys = [self.key(shard) for shard in shards]
        length = self.chunks_per_shard * INDEX_ENTRY + CHECKSUM
        tails = self.reader.read_tails(keys, length)
        return [_parse(key, tail, size, length) for key, (tail, size) in zip(keys, tails, strict=True)]


def _parse(key: str, encoded: bytes | None, size: int | None, length: int) -> NDArray[np.int64]:
    """Return the entries of an encoded index; the size of its file is None if it is not known."""
    if encoded is None:
        raise store_damaged(key, "the file is missing")
    if len(encoded) != length or checksum(encoded[:-CHECKSUM]) != encoded[-CHECKSUM:]:
        raise store_damaged(key, "the shard index is damaged or cut short")
    entries = np.frombuffer(encoded[:-CHECKSUM], dtype="<u8").reshape(-1, 2)
    # A file that is cut short right after a chunk ends in a valid checksum too.
    written, n_chunk_bytes = entries[entries[:, 0] != ABSENT], _LARGEST_SHARD if size is None else size - len(encoded)
    beyond = (written > n_chunk_bytes).any() or (written.sum(axis=1) > n_chunk_bytes).any()
    if beyond or (written[:, 1] < CHECKSUM).any():
        raise store_damaged(key, "the shard index is damaged or cut short")
    return entries.astype(np.int64)  # ABSENT becomes -1
