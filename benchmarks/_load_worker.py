"""One measured run of a loader, in its own process: prints one JSON line.

``python -m benchmarks._load_worker JOB [device|compute]``, with the job as JSON. Given a kind of step, it
measures the overlap of such steps with lazypert's loading. Also runs in interpreters without lazypert.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from benchmarks.loaders import RIVALS
from benchmarks.loaders.base import Batch, Genes, Job, Opened, fingerprints
from benchmarks.loaders.lazypert import overlap
from benchmarks.measure import Meter

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


def main(job: Job) -> dict[str, Any]:
    """Measure loading, then fingerprint the last batch, which is not measured."""
    rival, genes, meter = RIVALS[job.rival], Genes.load(job.genes), Meter()
    start = time.perf_counter()
    rival.load()
    import_seconds = time.perf_counter() - start
    with ExitStack() as later, meter:
        start = time.perf_counter()
        opened = rival.open(job, genes)
        batches = _batches(opened, once=job.once)
        later.callback(batches.close)  # the loader's processes must be alive when the meter stops
        measured, last = _run(batches, start, job)
    weights = genes.weights_of(job.form)
    return {
        "import_seconds": import_seconds,
        **meter.used,
        **measured,
        "notes": opened.notes,
        "rows": [] if last.values is None else fingerprints(last.values, weights),
        "control_rows": [] if last.controls is None else fingerprints(last.controls, weights),
    }


def _batches(opened: Opened, *, once: bool) -> Generator[Batch]:
    for number in itertools.count():
        empty = True
        for batch in opened.epoch(number):
            empty = False
            yield batch
        if empty:
            raise RuntimeError(f"epoch {number} has no batches")
        if once:
            return


def _run(batches: Iterator[Batch], start: float, job: Job) -> tuple[dict[str, Any], Batch]:
    """Time the first batch, then the batches until the time is up; return the last batch too.

    A single epoch (`Job.once`) is timed from opening and includes the first batch: by then, a loader that
    reads far ahead has read much of the epoch.
    """
    last = next(batches)
    first = now = time.perf_counter()
    begin, number, cells, padding = (start, 1, last.cells, last.padding or 0) if job.once else (first, 0, 0, 0)
    for last in batches:
        now = time.perf_counter()
        number, cells, padding = number + 1, cells + last.cells, padding + (last.padding or 0)
        if now - first >= job.seconds:
            break
    return {
        "first_batch_seconds": first - start,
        "measured_seconds": now - begin,
        "batches": number,
        "cells": cells,
        "cells_per_s": cells / (now - begin),
        "padding_share": None if last.padding is None else padding / cells,
    }, last


if __name__ == "__main__":
    given, *kind = sys.argv[1:]
    if kind:
        task = Job(**json.loads(given))
        RIVALS[task.rival].load()
        print(json.dumps(overlap(task, Genes.load(task.genes), *kind)))
    else:
        print(json.dumps(main(Job(**json.loads(given)))))
