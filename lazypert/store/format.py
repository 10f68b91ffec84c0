"""The store format: names, versions, grids, codecs and dtypes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from lazypert._internal.paths import is_url

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

FORMAT_VERSION = 3
"""Version 3 orders the cells of a group by a hash of their names, and declares counts as floats; versions 1 and 2,
which can be read too, sort cells by batch. Version 2 added bit-shuffled counts and cell statistics."""

MARKER = "lazypert"
"""Key of lazypert's entry in the root attributes; it marks a store as ours."""

TABLES = "obs/__lazypert__"
"""Group of lazypert's tables. AnnData ignores it, as it reads only what the ``column-order`` of ``obs`` lists."""

RAW = "raw/X"
"""Matrix of AnnData's ``raw``, which has its own genes."""

# A chunk of 65,536 elements holds about 20 cells: small enough to keep the decode amplification of a sentence
# low, large enough for the codec to run at full speed. A shard of 128 chunks keeps the number of files low.
MATRIX_CHUNK, MATRIX_SHARD = 65_536, 8_388_608

COLUMN_CHUNK, COLUMN_SHARD = 65_536, 1_048_576


Compression = Literal["fast", "compact"]
"""How the column numbers of a matrix are stored: as they are, or as differences."""


@dataclass(frozen=True, slots=True)
class Codec:
    """How the chunks of an array are compressed.

    `is_delta` says whether a chunk holds the difference of each element to the one before it, modulo the range of the
    dtype; the other fields are those of Zarr's ``blosc`` codec.
    """

    cname: str = "lz4"
    clevel: int = 5
    shuffle: str = "shuffle"
    blocksize: int = 0
    is_delta: bool = False

    def blosc(self) -> dict[str, Any]:
        """Configuration of Zarr's ``blosc`` codec, without the element size."""
        return {"cname": self.cname, "clevel": self.clevel, "shuffle": self.shuffle, "blocksize": self.blocksize}


# Measured on chunks of 65,536 counts and column numbers of a screen. Counts are mostly 1 to 3: bit shuffling
# makes them a third smaller than byte shuffling does and encodes faster, and decodes 15% slower. It makes column
# numbers no smaller and takes three times as long to decode them.
# Blosc blocks of 4,096 elements, about one cell, let a reader decode part of a chunk. They must not be split by byte
# plane (`native.never_split_blocks`): then column numbers take 1.11 bytes each and counts 0.56. With split blocks,
# which have at least 64 KiB, decoding takes 1.3 times as long, and a stretch of 16 cells decodes 14 cells that it does
# not need, instead of 2.
CODEC, NARROW_CODEC = Codec(blocksize=16_384), Codec(blocksize=8_192)
COUNTS_CODEC = Codec(shuffle="bitshuffle", blocksize=8_192)

# Differences of column numbers are small, and take 0.61 bytes each where the numbers take 1.11: with counts, 1.17
# bytes per nonzero instead of 1.67. Zstandard would bring that to 0.98, and decode at a third of the speed.
DELTA_CODEC = Codec(shuffle="bitshuffle", blocksize=16_384, is_delta=True)
NARROW_DELTA_CODEC = Codec(shuffle="bitshuffle", blocksize=8_192, is_delta=True)


@dataclass(frozen=True, slots=True)
class Grid:
    """Lengths of a one-dimensional array, its chunks and its shards, in elements."""

    length: int
    chunk: int
    shard: int

    @classmethod
    def matrix(cls, length: int) -> Grid:
        """Grid of a matrix's ``data`` and ``indices``."""
        return cls._fit(length, MATRIX_CHUNK, MATRIX_SHARD)

    @classmethod
    def column(cls, length: int) -> Grid:
        """Grid of an array with one element per cell."""
        return cls._fit(length, COLUMN_CHUNK, COLUMN_SHARD)

    @classmethod
    def _fit(cls, length: int, chunk: int, shard: int) -> Grid:
        # Small arrays get small shards, so that a tiny store is not mostly fill values.
        chunk = max(1, min(chunk, length))
        return cls(length, chunk, min(shard, chunk * max(1, -(-length // chunk))))

    @property
    def n_shards(self) -> int:
        """Number of shards that hold at least one element."""
        return -(-self.length // self.shard)

    def span(self, shard: int) -> tuple[int, int]:
        """First element of a shard, and one past its last."""
        return shard * self.shard, min(self.length, (shard + 1) * self.shard)


ASTYPE = "numcodecs.astype"
"""Codec that lets an array be stored with one dtype and read with another."""

DELTA = "numcodecs.delta"
"""Codec that stores the differences of neighbouring elements; it starts anew in every chunk."""


def declared_dtype(stored: np.dtype[Any], maximum: float, minimum: float) -> np.dtype[Any]:
    """Dtype that other readers get the values of a matrix in.

    Stored integers are declared as floats, because libraries compute in the dtype they are given, and unsigned
    integers wrap around: differences, variances and products would be wrong without an error. Integers beyond
    2^53 stay integers, as no float dtype is exact there.
    """
    return stored if maximum > 2**53 or minimum < -(2**53) else dense_dtype(stored, maximum, minimum)


def astype_codec(stored: np.dtype[Any], declared: np.dtype[Any]) -> dict[str, Any]:
    """Metadata of the codec that converts values when they are written, and back when they are read."""
    dtypes = {"encode_dtype": stored, "decode_dtype": declared}
    return {"name": ASTYPE, "configuration": {key: dtype.newbyteorder("<").str for key, dtype in dtypes.items()}}


def delta_codec(stored: np.dtype[Any]) -> dict[str, Any]:
    """Metadata of the codec that turns elements into differences, which wrap around in the same dtype."""
    dtype = stored.newbyteorder("<").str
    return {"name": DELTA, "configuration": {"dtype": dtype, "astype": dtype}}


class StoredElements(NamedTuple):
    """What the encoded chunks of an array hold: elements of a dtype, or their differences."""

    dtype: np.dtype[Any]
    is_delta: bool


def stored_elements(declared: np.dtype[Any], codecs: list[dict[str, Any]]) -> StoredElements:
    """Return what the encoded chunks of an array hold.

    Parameters
    ----------
    declared
        The array's own dtype.
    codecs
        Metadata of the codecs of its inner chunks.

    Raises
    ------
    ValueError
        If another codec changes the elements before they become bytes.
    """
    stored, rest = declared, codecs
    if rest[0]["name"] == ASTYPE:
        dtypes = rest[0]["configuration"]
        stored, rest = np.dtype(dtypes["encode_dtype"]).newbyteorder("="), rest[1:]
        if np.dtype(dtypes["decode_dtype"]) != declared:
            raise ValueError(f"decode_dtype: got {dtypes['decode_dtype']!r} in an array of {declared}")
    is_delta = rest[0]["name"] == DELTA
    if is_delta:
        dtypes, rest = rest[0]["configuration"], rest[1:]
        if stored.kind not in "iu" or any(np.dtype(dtypes.get(key, stored)) != stored for key in ("dtype", "astype")):
            raise ValueError(f"{DELTA}: got {dtypes!r} in an array stored as {stored}")
    if rest[0]["name"] != "bytes":
        names = [codec["name"] for codec in codecs]
        raise ValueError(f"codecs: got {names}, expected only {ASTYPE!r} and {DELTA!r}, in this order, before 'bytes'")
    return StoredElements(stored, is_delta)


def values_codec(dtype: np.dtype[Any]) -> Codec:
    """Codec of the values of a matrix."""
    return COUNTS_CODEC if dtype.kind in "iu" else CODEC


def stored_index_dtype(n_columns: int, declared: np.dtype[Any]) -> np.dtype[Any]:
    """Dtype that the column numbers of a matrix are stored with.

    Two bytes decode 1.4 times as fast as four. Other readers get signed integers as wide as the row bounds, because
    SciPy is wrong in places with anything else.
    """
    return np.dtype("u2") if n_columns <= 2**16 else declared


def index_codec(dtype: np.dtype[Any], compression: Compression) -> Codec:
    """Codec of the column numbers of a matrix."""
    if compression == "compact":
        return NARROW_DELTA_CODEC if dtype.itemsize == 2 else DELTA_CODEC
    return NARROW_CODEC if dtype.itemsize == 2 else CODEC


def default_compression(store: str | Path) -> Compression:
    """Compression of a new store, if none was chosen: decoding limits reading from disks, the network from URLs."""
    return "compact" if is_url(store) else "fast"


def dense_dtype(stored: np.dtype[Any], maximum: float, minimum: float) -> np.dtype[Any]:
    """Dtype of dense blocks: float32 where it represents the values exactly, otherwise float64.

    Counts become floats because differences of unsigned integers wrap around.
    """
    if stored.kind == "f":
        return stored
    is_exact = maximum <= 2**24 and minimum >= -(2**24)
    return np.dtype("f4") if is_exact else np.dtype("f8")


def matrix_name(layer: str | None, matrices: Container[str]) -> str:
    """Return the full name of a layer: ``"X"`` for None, and ``"raw/X"`` for "raw", "raw.X" and "raw/X".

    Parameters
    ----------
    matrices
        Full names that exist: a layer that is itself called "raw" or "raw.X" comes first.
    """
    if layer is None:
        return "X"
    name = f"layers/{layer}"
    return RAW if layer in ("raw", "raw.X", RAW) and name not in matrices else name
