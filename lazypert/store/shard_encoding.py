"""Encoding the shards of one-dimensional Zarr v3 arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numcodecs import blosc

from lazypert.store.chunk_kernels import checksum
from lazypert.store.format import CODEC, Codec, Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
