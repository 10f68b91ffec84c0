"""The limit: decoding the chunks that lazypert's sentences touch, with the same codec, and nothing else.

Bytes lie in memory, the output goes to one buffer a thread over and over, no checksum is computed
and no cell is put together. What a loader adds to this is its own.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
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
    first, last = indptr[rows] // length, -(-indptr[np.asarray(rows) + 1] // length)
    return sorted(
        {number for start, stop in zip(first.tolist(), last.tolist(), strict=True) for number in range(start, stop)}
    )


def open_limit(job: Job, _: Genes) -> Opened:
    """Decode sentence by sentence, each thread one batch at a time."""
    import zarr
    from numcodecs import blosc

    blosc.use_threads = False  # else threads would wait for each other at the codec's global lock
    result = pipeline(job)
    root = Path(job.source)
    indptr = zarr.open_array(root / "X" / "indptr", mode="r")[:].astype(np.int64)
    parts = [Chunks.of(root / "X" / name) for name in ("data", "indices")]
    own = threading.local()

    def decode(batch: list[memoryview]) -> None:
        if not hasattr(own, "buffer"):
            own.buffer = np.empty(max(part.size for part in parts), np.uint8)
        for body in batch:
            blosc.decompress(body, own.buffer)

    def planned(number: int) -> list[tuple[int, list[memoryview]]]:
        result.train_sampler.set_epoch(number)
        batches = []
        for places in result.train_sampler:
            rows = result.train_indices[np.array(places)]
            bounds = range(0, len(rows) + 1, job.sentence_size)
            bodies = [
                part.bodies[chunk]
                for start, stop in pairwise(bounds)
                for part in parts
                for chunk in touched(rows[start:stop], indptr, part.length)
            ]
            batches.append((len(rows), bodies))
        return batches

    plan = planned(0)  # every epoch's would cost the same; none of it is decoding

    def epoch(_: int) -> Iterator[Delivery]:
        with ThreadPoolExecutor(job.threads or len(os.sched_getaffinity(0))) as pool:
            try:
                for (cells, _bodies), _done in zip(plan, pool.map(decode, (b for _, b in plan)), strict=True):
                    yield Delivery(cells)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    decoded = sum(len(bodies) for _, bodies in plan)
    return Opened(epoch, {"chunks_a_sentence": decoded / sum(c // job.sentence_size for c, _ in plan)})


def describe(notes: dict[str, Any]) -> str:
    """What the notes say, in words."""
    return f"{notes['chunks_a_sentence']:.1f} chunks decoded a sentence"
