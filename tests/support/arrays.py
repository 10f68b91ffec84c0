"""One-dimensional sharded arrays, written by lazypert and by zarr-python."""

from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from lazypert._internal.files import write_atomic
from lazypert.store.byte_reader import LocalReader
from lazypert.store.format import CODEC, delta_codec
from lazypert.store.shard_encoding import encode_shard
from lazypert.store.sharded_array import ShardedArray
from lazypert_zarr import Delta


def values_of(length, dtype="u2", seed=0):
    values = np.random.default_rng(seed).integers(0, 200, length).astype(dtype)
    return values * np.dtype(dtype).type(1.5) if np.dtype(dtype).kind == "f" else values


def write_ours(root, values, grid, codec=CODEC):
    for shard in range(grid.n_shards):
        start, stop = grid.span(shard)
        (Path(root) / "a/c").mkdir(parents=True, exist_ok=True)
        write_atomic(Path(root) / f"a/c/{shard}", encode_shard(values[start:stop], grid, codec))
    return ShardedArray(LocalReader(Path(root)), "a", values.dtype, grid, is_delta=codec.is_delta)


def zarr_array(root, values, grid, codec=CODEC):
    array = zarr.create_array(
        root,
        name="a",
        shape=(grid.length,),
        dtype=values.dtype,
        chunks=(grid.chunk,),
        shards=(grid.shard,),
        filters=[Delta.from_dict(delta_codec(values.dtype))] if codec.is_delta else None,
        compressors=[BloscCodec(**codec.blosc()), Crc32cCodec()],
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    array[...] = values
    return array
