"""Encoding the shards of one-dimensional Zarr v3 arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numcodecs import blosc

from lazypert.store import native
from lazypert.store.encoded_chunks import checksum
from lazypert.store.format import CODEC, Codec, Grid

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from lazypert._internal.texts import Texts


# zarr-python sets this too: with C-Blosc's own threads, the output would depend on their timing.
blosc.use_threads = False

native.never_split_blocks()

INDEX_ENTRY = 16
"""Bytes of a shard index per chunk: offset and length, two uint64."""

ABSENT = np.uint64(2**64 - 1)
"""Offset and length of a chunk that was never written."""

_SHUFFLES = {"shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}


def encode_shard(values: NDArray[Any], grid: Grid, codec: Codec = CODEC) -> list[bytes]:
    """Encode the elements of one shard.

    Parameters
    ----------
    values
        (at most ``grid.shard``,) elements; fewer only in the last shard of an array.

    Returns
    -------
    Buffers to write one after another: the encoded chunks, then the index.
    """
    return _with_index(_chunks(values, grid), grid, codec)


def encode_text_shard(texts: Texts, grid: Grid, codec: Codec = CODEC) -> list[bytes]:
    """Encode the texts of one shard, in Zarr's codec ``vlen-utf8``; see `encode_shard`."""
    n = len(texts)
    chunks = (texts.with_lengths(start, min(n, start + grid.chunk), grid.chunk) for start in range(0, n, grid.chunk))
    return _with_index(chunks, grid, codec)


def _chunks(values: NDArray[Any], grid: Grid) -> Iterable[NDArray[Any]]:
    for start in range(0, len(values), grid.chunk):
        chunk = values[start : start + grid.chunk]
        if len(chunk) < grid.chunk:  # Zarr chunks are always full; the array's shape hides the padding
            chunk = np.concatenate([chunk, np.zeros(grid.chunk - len(chunk), dtype=values.dtype)])
        yield chunk


def _with_index(chunks: Iterable[NDArray[Any]], grid: Grid, codec: Codec) -> list[bytes]:
    """Compress the chunks of a shard, and append the shard's index."""
    index = np.full((grid.shard // grid.chunk, 2), ABSENT, dtype="<u8")
    buffers: list[bytes] = []
    offset = 0
    for number, chunk in enumerate(chunks):
        if codec.is_delta:
            chunk = np.diff(chunk, prepend=chunk.dtype.type(0))
        body = blosc.compress(
            np.ascontiguousarray(chunk),
            codec.cname.encode(),
            codec.clevel,
            _SHUFFLES[codec.shuffle],
            codec.blocksize,
        )
        encoded = body + checksum(body)
        index[number] = offset, len(encoded)
        offset += len(encoded)
        buffers.append(encoded)
    encoded_index = index.tobytes()
    buffers.append(encoded_index + checksum(encoded_index))
    return buffers
