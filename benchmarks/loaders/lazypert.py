"""lazypert's loader, and how well it overlaps with the steps of a model."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.loaders.base import BATCH, CELL_TYPE, CONTROL, CSR, PERTURBATION, Batch, Genes, Job, Opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

DEVICE, COMPUTE = "device", "compute"
STEPS = (DEVICE, COMPUTE)
QUEUED = 4  # steps that wait on the device; JAX itself dispatches dozens ahead


def pipeline(job: Job) -> Any:
    """A pipeline with all cells in the training split."""
    from lazypert import PerturbationPipeline, PerturbationPipelineConfig

    config = PerturbationPipelineConfig(
        pert_col=PERTURBATION,
        cell_type_col=CELL_TYPE,
        batch_col=BATCH,
        control_pert=CONTROL,
        output_space="all",
        sentence_size=job.sentence_size,
        sentences_per_batch=job.sentences_per_batch,
        train_frac=1.0,
        valid_frac=0.0,
    )
    return PerturbationPipeline(config).setup(job.source)


def _loader(job: Job, genes: Genes) -> Any:
    return pipeline(job).loader(
        "train",
        n_basal_samples=int(job.controls),
        layout="csr" if job.form == CSR else "dense",
        genes=np.array(genes.names)[genes.hvg].tolist() if job.form == "hvg" else None,
        to="numpy" if job.form == CSR else "jax",
        threads=job.threads,
    )


def open_lazypert(job: Job, genes: Genes) -> Opened:
    """Sentences of all groups, each cell once per epoch."""
    loader = _loader(job, genes)

    def epoch(number: int) -> Iterator[Batch]:
        loader.set_epoch(number)
        for batch in loader:
            _wait(batch)
            is_padding = np.asarray(batch.is_padding)
            yield Batch(len(is_padding), batch.counts, batch.controls, int(is_padding.sum()))

    return Opened(epoch)


def _wait(batch: Any) -> None:
    import jax

    jax.block_until_ready((batch.counts, batch.controls))  # NumPy arrays are always ready


def overlap(job: Job, genes: Genes, kind: str) -> dict[str, Any]:
    """Seconds of complete epochs alone, of one model step per batch alone, and of both together.

    A step takes as long as loading a batch. `DEVICE` leaves the CPU to the loader, as an accelerator does, and
    is dispatched asynchronously like JAX: a few more steps wait while one runs. `COMPUTE` is compiled and keeps
    one core busy. CPU seconds show what no loader could hide: work for more cores than there are.
    """
    loader = _loader(job, genes)
    _epoch(loader)  # warm-up: compiling and opening are not measured
    start, epochs, batches = _now(), 0, 0
    while not epochs or (_now() - start)[0] < job.seconds:
        epochs, batches = epochs + 1, batches + _epoch(loader)
    load, load_cpu = _now() - start
    step = {DEVICE: _Device, COMPUTE: _Compute}[kind](load / batches)
    start = _now()
    for _ in range(batches):
        step()
    step.finish()
    steps, steps_cpu = _now() - start
    start = _now()
    for _ in range(epochs):
        _epoch(loader, step)
    both, _ = _now() - start
    return {
        "epochs": epochs,
        "batches": batches,
        "load_seconds": load,
        "step_seconds": steps,
        "both_seconds": both,
        "cpu_seconds_each_core": (load_cpu + steps_cpu) / len(os.sched_getaffinity(0)),
    }


def _now() -> NDArray[np.float64]:
    """Wall-clock seconds and CPU seconds of this process."""
    return np.array([time.perf_counter(), time.process_time()])


def _epoch(loader: Any, step: _Device | _Compute | None = None) -> int:
    batches = 0
    for batch in loader:
        _wait(batch)
        batches += 1
        if step is not None:
            step()
    if step is not None:
        step.finish()
    return batches


class _Device:
    """Steps on a device other than the CPU: one runs, and `QUEUED` more wait."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._free_at = seconds, 0.0

    def __call__(self) -> None:
        start = max(self._free_at, time.perf_counter())
        self._free_at = start + self._seconds
        _sleep_until(start - (QUEUED - 1) * self._seconds)

    def finish(self) -> None:
        _sleep_until(self._free_at)


class _Compute:
    """Steps on one CPU core."""

    def __init__(self, seconds: float) -> None:
        import jax

        # Small enough for XLA to run it on one core.
        self._run = jax.jit(lambda x, n: jax.lax.fori_loop(0, n, lambda _, y: y * 0.999 + 0.001, x))
        self._iterations = 1000
        self._timed()  # compiles
        for _ in range(8):  # calibrate with as many iterations as a step will have
            took = min(self._timed(), self._timed(), self._timed())
            self._iterations = max(1, round(self._iterations * seconds / took))

    def __call__(self) -> None:
        self._run(np.ones(256, np.float32), self._iterations).block_until_ready()

    def finish(self) -> None:
        pass

    def _timed(self) -> float:
        start = time.perf_counter()
        self()
        return time.perf_counter() - start


def _sleep_until(deadline: float) -> None:
    time.sleep(max(0.0, deadline - time.perf_counter()))
