"""One measured run of a loader, in a process of its own: prints one JSON line.

``python -m benchmarks._load_worker JOB [device|compute]``, the job as JSON; with a kind of step, its
overlap with lazypert's loading. Runs in interpreters that have the rival but not lazypert.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from benchmarks.loaders import RIVALS
from benchmarks.loaders.base import Delivery, Genes, Job, Opened, fingerprints
from benchmarks.loaders.lazypert import overlap
from benchmarks.measure import Meter

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


def main(job: Job) -> dict[str, Any]:
    """Load for a while, then look at the last batch, outside of the measuring."""
    rival, genes, meter = RIVALS[job.rival], Genes.load(job.genes), Meter()
    start = time.perf_counter()
    rival.load()
    import_seconds = time.perf_counter() - start
    with ExitStack() as later, meter:
        start = time.perf_counter()
        opened = rival.open(job, genes)
        batches = _batches(opened, once=job.once)
        later.callback(batches.close)  # later: processes that load must live to be measured
        seen, last = _run(batches, start, job)
    weights = genes.weights_of(job.form)
    return {
        "import_seconds": import_seconds,
        **meter.used,
        **seen,
        "notes": opened.notes,
        "rows": [] if last.values is None else fingerprints(last.values, weights),
        "control_rows": [] if last.controls is None else fingerprints(last.controls, weights),
    }


def _batches(opened: Opened, *, once: bool) -> Generator[Delivery]:
    for number in itertools.count():
        empty = True
        for batch in opened.epoch(number):
            empty = False
            yield batch
        if empty:
            raise RuntimeError(f"epoch {number} has no batch")
        if once:
            return


def _run(batches: Iterator[Delivery], start: float, job: Job) -> tuple[dict[str, Any], Delivery]:
    """Time the first batch, then what comes until the time is up; return the last one too.

    An epoch that ends (`Job.once`) counts from the opening, with its first batch: a loader that reads
    far ahead has by then read a good part of it.
    """
    last = next(batches)
    first = now = time.perf_counter()
    begin, number, cells, fillers = (start, 1, last.cells, last.fillers or 0) if job.once else (first, 0, 0, 0)
    for last in batches:
        now = time.perf_counter()
        number, cells, fillers = number + 1, cells + last.cells, fillers + (last.fillers or 0)
        if now - first >= job.seconds:
            break
    return {
        "first_batch_seconds": first - start,
        "measured_seconds": now - begin,
        "batches": number,
        "cells": cells,
        "cells_per_s": cells / (now - begin),
        "filler_share": None if last.fillers is None else fillers / cells,
    }, last


if __name__ == "__main__":
    given, *kind = sys.argv[1:]
    if kind:
        task = Job(**json.loads(given))
        RIVALS[task.rival].load()
        print(json.dumps(overlap(task, Genes.load(task.genes), *kind)))
    else:
        print(json.dumps(main(Job(**json.loads(given)))))
