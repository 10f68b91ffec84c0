"""The store's format: names, versions, grids, codecs, and the dtype rules of its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

FORMAT_VERSION = 2
"""Version 2 stores counts by bits, and what conversion noted of the cells; version 1 is read as well."""


MARKER = "lazypert"
"""Key of lazypert's own entry in the root attributes; a store without it is not ours."""


TABLES = "obs/__lazypert__"
"""Group of lazypert's tables. AnnData reads only the columns listed in ``obs``'s ``column-order``."""


# One 65,536-element chunk is 20-odd cells: small enough that a sentence decodes little it does not
# need, large enough that the codec runs at full speed. A shard of 128 chunks keeps files few.
MATRIX_CHUNK, MATRIX_SHARD = 65_536, 8_388_608


COLUMN_CHUNK, COLUMN_SHARD = 65_536, 1_048_576


@dataclass(frozen=True, slots=True)
class Codec:
    """How the chunks of an array are compressed, in the words of Zarr's ``blosc`` codec."""

    cname: str = "lz4"
    clevel: int = 5
    shuffle: str = "shuffle"
    blocksize: int = 0


# Measured on counts and column numbers of a screen, 65,536 to a chunk. Counts are mostly 1 to 3:
# by bits they shrink by a quarter more than by bytes (0.53 against 0.70 bytes each), are encoded
# twice as fast and decoded 15 % slower. Column numbers gain nothing by bits and decode at half the speed.
# Blocks of 64 KiB (Blosc's least) let a reader decode only the part of a chunk that it wants, at no cost
# in size or speed: what a sentence decodes in vain falls from a third to a tenth.
CODEC, COUNTS_CODEC = Codec(blocksize=16_384), Codec(shuffle="bitshuffle", blocksize=16_384)


@dataclass(frozen=True, slots=True)
class Grid:
    """Chunk and shard length, in elements, of a one-dimensional array of `length` elements."""

    length: int
    chunk: int
    shard: int

    @classmethod
    def matrix(cls, length: int) -> Grid:
        """Grid of a matrix's ``data`` and ``indices``."""
        return cls._fit(length, MATRIX_CHUNK, MATRIX_SHARD)

    @classmethod
    def column(cls, length: int) -> Grid:
        """Grid of anything with one element a cell."""
        return cls._fit(length, COLUMN_CHUNK, COLUMN_SHARD)

    @classmethod
    def _fit(cls, length: int, chunk: int, shard: int) -> Grid:
        # Small arrays get small shards, so that a tiny store is not mostly padding.
        chunk = max(1, min(chunk, length))
        return cls(length, chunk, min(shard, chunk * max(1, -(-length // chunk))))

    @property
    def n_shards(self) -> int:
        """Number of shards that hold at least one element."""
        return -(-self.length // self.shard)

    def span(self, shard: int) -> tuple[int, int]:
        """First element of a shard, and one past its last."""
        return shard * self.shard, min(self.length, (shard + 1) * self.shard)


def values_codec(dtype: np.dtype[Any]) -> Codec:
    """Codec of a matrix's values."""
    return COUNTS_CODEC if dtype.kind in "iu" else CODEC


def dense_dtype(stored: np.dtype[Any], maximum: float, minimum: float) -> np.dtype[Any]:
    """Dtype in which dense blocks are shown: float32 where it is exact, else float64.

    Unsigned counts are shown as floats because differences of unsigned integers wrap around.
    """
    if stored.kind == "f":
        return stored
    exact = maximum <= 2**24 and minimum >= -(2**24)
    return np.dtype("f4") if exact else np.dtype("f8")
