"""The limit: only decoding the chunks that lazypert's sentences touch, with the same codec.

The compressed bytes are in memory, each thread decodes into a single buffer, no checksum is computed, and no
batch is assembled. A chunk is decoded once per block of batches, and always completely; lazypert skips
the parts of chunks that it does not need, so lazypert could exceed this limit.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.loaders.base import Batch, Genes, Job, Opened
from benchmarks.loaders.lazypert import pipeline
from lazypert.store.format import ASTYPE, DELTA, stored_elements

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

ENTRY, CHECKSUM = 16, 4  # bytes of an entry of a shard's index, and of the checksum after chunks and indexes


@dataclass(frozen=True, slots=True)
class Chunks:
    """The compressed chunks of a sharded one-dimensional Zarr array.

    Attributes
    ----------
    length
        Elements per chunk.
    size
        Bytes per decoded chunk.
    bodies
        Compressed bytes of each chunk, as views of the mapped files.
    """

    length: int
    size: int
    bodies: Sequence[memoryview]

    @classmethod
    def of(cls, array: Path) -> Chunks:
        """Map the files of an array into memory."""
        metadata = json.loads((array / "zarr.json").read_text())
        (sharding,) = metadata["codecs"]
        options = sharding["configuration"]
        names = [codec["name"] for codec in options["codecs"] if codec["name"] not in (ASTYPE, DELTA)]
        if names != ["bytes", "blosc", "crc32c"] or options.get("index_location", "end") != "end":
            raise ValueError(
                f"{array.name}: got codecs {names}, expected ['bytes', 'blosc', 'crc32c'] "
                "in shards with the index at the end"
            )
        (length,), (shard,) = options["chunk_shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"]
        (total,) = metadata["shape"]
        bodies: list[memoryview] = []
        for number in range(-(-total // shard)):
            with (array / "c" / str(number)).open("rb") as file:
                # MAP_POPULATE avoids page faults while decoding.
                mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
            entries = shard // length
            index = np.frombuffer(mapped, "<u8", 2 * entries, len(mapped) - CHECKSUM - ENTRY * entries).reshape(-1, 2)
            written = -(-min(shard, total - number * shard) // length)
            view = memoryview(mapped)
            bodies += [
                view[offset : offset + size - CHECKSUM] for offset, size in index[:written].astype(np.int64).tolist()
            ]
        dtype, _ = stored_elements(np.dtype(metadata["data_type"]), options["codecs"])
        return cls(length, length * dtype.itemsize, bodies)


def touched(rows: NDArray[np.integer], indptr: NDArray[np.integer], length: int) -> list[int]:
    """Numbers of the chunks that hold elements of the rows, without repetition."""
    rows = np.asarray(rows)
    first, stop = indptr[rows], indptr[rows + 1]
    has_values = stop > first
    spans = zip((first[has_values] // length).tolist(), (-(-stop[has_values] // length)).tolist(), strict=True)
    return sorted({number for begin, end in spans for number in range(begin, end)})


def open_limit(job: Job, _: Genes) -> Opened:
    """Decode the chunks of each block of batches, one block per thread at a time."""
    import zarr
    from numcodecs import blosc

    blosc.use_threads = False  # otherwise threads wait for the codec's global lock
    result = pipeline(job)
    root = Path(job.source)
    indptr = zarr.open_array(root / "X" / "indptr", mode="r")[:].astype(np.int64)
    arrays = [Chunks.of(root / "X" / name) for name in ("data", "indices")]
    local = threading.local()

    def decode(bodies: list[memoryview]) -> None:
        if not hasattr(local, "buffer"):
            local.buffer = np.empty(max(array.size for array in arrays), np.uint8)
        for body in bodies:
            blosc.decompress(body, local.buffer)

    # Cells and chunks of each block; planned once, since every epoch costs the same and planning is not decoding.
    plan: list[tuple[int, list[memoryview]]] = []
    batches = list(result.train_sampler)
    per_block = result.train_sampler.plan.batches_per_block
    for start in range(0, len(batches), per_block):
        block = batches[start : start + per_block]
        rows = np.concatenate([result.train_indices[np.array(split_index)] for split_index in block])
        chunks = [array.bodies[number] for array in arrays for number in touched(rows, indptr, array.length)]
        plan.append((len(rows), chunks))

    def epoch(_: int) -> Iterator[Batch]:
        with ThreadPoolExecutor(job.threads or len(os.sched_getaffinity(0))) as pool:
            try:
                for (cells, _bodies), _done in zip(plan, pool.map(decode, (b for _, b in plan)), strict=True):
                    yield Batch(cells)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    return Opened(epoch, {"chunks_per_batch": sum(len(bodies) for _, bodies in plan) / len(batches)})


def describe(notes: dict[str, Any]) -> str:
    """Describe the notes for the report."""
    return f"{notes['chunks_per_batch']:.1f} chunks decoded per batch"
