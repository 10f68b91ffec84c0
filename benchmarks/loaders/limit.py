"""The limit: decoding the chunks that lazypert's sentences touch, with the same codec, and nothing else.

Bytes lie in memory, the output goes to one buffer a thread over and over, no checksum is computed
and no cell is put together. A chunk is decoded once for the batches that lazypert reads together, and
always as a whole: lazypert leaves out blocks of chunks that it doesn't need, and so could be faster.
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

from benchmarks.loaders.base import Delivery, Genes, Job, Opened
from benchmarks.loaders.lazypert import pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

ENTRY, CHECKSUM = 16, 4  # bytes of a chunk in a shard's index, and of what is appended to chunks and indexes


@dataclass(frozen=True, slots=True)
class Chunks:
    """The compressed chunks of a sharded one-dimensional Zarr array.

    Attributes
    ----------
    length
        Elements of a chunk.
    size
        Bytes of a decoded chunk.
    bodies
        Each chunk's bytes, where they lie.
    """

    length: int
    size: int
    bodies: Sequence[memoryview]

    @classmethod
    def of(cls, array: Path) -> Chunks:
        """Map the files of an array into memory."""
        stated = json.loads((array / "zarr.json").read_text())
        (sharding,) = stated["codecs"]
        options = sharding["configuration"]
        names = [codec["name"] for codec in options["codecs"]]
        if names != ["bytes", "blosc", "crc32c"] or options.get("index_location", "end") != "end":
            raise ValueError(f"{array.name}: got the codecs {names}, expected bytes, blosc, crc32c in shards")
        (length,), (shard,) = options["chunk_shape"], stated["chunk_grid"]["configuration"]["chunk_shape"]
        (total,) = stated["shape"]
        bodies: list[memoryview] = []
        for number in range(-(-total // shard)):
            with (array / "c" / str(number)).open("rb") as file:
                # Populated: a page that is first touched while it is decoded would cost a fault then.
                held = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
            entries = shard // length
            index = np.frombuffer(held, "<u8", 2 * entries, len(held) - CHECKSUM - ENTRY * entries).reshape(-1, 2)
            written = -(-min(shard, total - number * shard) // length)
            view = memoryview(held)
            bodies += [view[at : at + size - CHECKSUM] for at, size in index[:written].astype(np.int64).tolist()]
        return cls(length, length * np.dtype(stated["data_type"]).itemsize, bodies)


def touched(rows: NDArray[np.integer], indptr: NDArray[np.integer], length: int) -> list[int]:
    """Numbers of the chunks that hold elements of rows, each once."""
    rows = np.asarray(rows)
    first, stop = indptr[rows], indptr[rows + 1]
    filled = stop > first
    spans = zip((first[filled] // length).tolist(), (-(-stop[filled] // length)).tolist(), strict=True)
    return sorted({number for begin, end in spans for number in range(begin, end)})


def open_limit(job: Job, _: Genes) -> Opened:
    """Decode what is read together, each thread one such block at a time."""
    import zarr
    from numcodecs import blosc

    blosc.use_threads = False  # else threads would wait for each other at the codec's global lock
    result = pipeline(job)
    root = Path(job.source)
    indptr = zarr.open_array(root / "X" / "indptr", mode="r")[:].astype(np.int64)
    parts = [Chunks.of(root / "X" / name) for name in ("data", "indices")]
    own = threading.local()

    def decode(bodies: list[memoryview]) -> None:
        if not hasattr(own, "buffer"):
            own.buffer = np.empty(max(part.size for part in parts), np.uint8)
        for body in bodies:
            blosc.decompress(body, own.buffer)

    # Cells and chunks of each block. Every epoch's would cost the same; none of this is decoding.
    plan: list[tuple[int, list[memoryview]]] = []
    batches = list(result.train_sampler)
    together = result.train_sampler.config.batches_per_block
    for start in range(0, len(batches), together):
        rows = np.concatenate([result.train_indices[np.array(places)] for places in batches[start : start + together]])
        chunks = [part.bodies[number] for part in parts for number in touched(rows, indptr, part.length)]
        plan.append((len(rows), chunks))

    def epoch(_: int) -> Iterator[Delivery]:
        with ThreadPoolExecutor(job.threads or len(os.sched_getaffinity(0))) as pool:
            try:
                for (cells, _bodies), _done in zip(plan, pool.map(decode, (b for _, b in plan)), strict=True):
                    yield Delivery(cells)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    return Opened(epoch, {"chunks_a_batch": sum(len(bodies) for _, bodies in plan) / len(batches)})


def describe(notes: dict[str, Any]) -> str:
    """What the notes say, in words."""
    return f"{notes['chunks_a_batch']:.1f} chunks decoded a batch"
