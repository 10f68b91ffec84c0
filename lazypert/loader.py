"""Batches of sentences and matched controls as JAX arrays of static shape."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lazypert.controls import ControlPools
    from lazypert.groups import Groups
    from lazypert.rows import Rows
    from lazypert.sampler import SentencePlan


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "counts",
        "controls",
        "pert_code",
        "cell_type_code",
        "batch_code",
        "is_control",
        "is_filler",
        "row",
        "control_row",
    ],
    meta_fields=["sentence_size"],
)
@dataclass(frozen=True, slots=True)
class PerturbationBatch:
    """Sentences of cells and their controls: a JAX pytree.

    With ``B = sentences_per_batch * sentence_size`` cells, ``K = n_basal_samples`` and ``G`` features:

    Attributes
    ----------
    counts
        (B, G) float32 features of the cells; cells of one sentence lie side by side.
    controls
        (B, K, G) float32 features of each cell's matched controls.
    pert_code, cell_type_code, batch_code
        (B,) int32 label numbers, as in the source's categories.
    is_control
        (B,) bool: the cell is itself a control.
    is_filler
        (B,) bool: the cell only fills up a short sentence or batch; leave it out of averages that
        must count each cell once.
    row
        (B,) int32 (int64 with JAX's 64-bit mode) store row of each cell.
    control_row
        (B, K) store row of each control.
    sentence_size
        Cells a sentence (static).
    """

    counts: jax.Array
    controls: jax.Array
    pert_code: jax.Array
    cell_type_code: jax.Array
    batch_code: jax.Array
    is_control: jax.Array
    is_filler: jax.Array
    row: jax.Array
    control_row: jax.Array
    sentence_size: int


class Features(Protocol):
    """A source of cells' features."""

    @property
    def groups(self) -> Groups:
        """Its cells, grouped."""
        ...

    def read_features(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """(n, n_features) float32; called from several threads at once."""
        ...


class Loader:
    """Iterates over one epoch of a split; every batch has the same shapes, so jit compiles once.

    Batches are read and put on the device by background threads while the caller computes. What a
    batch holds depends on seed, epoch and number alone.

    Parameters
    ----------
    source
        Where features come from.
    rows
        The split's rows.
    plan
        The sentences.
    pools
        Where controls come from.
    n_basal_samples
        Controls a cell.
    threads
        Background threads.
    prefetch
        Batches read ahead of the caller, at most.
    """

    def __init__(
        self,
        source: Features,
        rows: Rows,
        plan: SentencePlan,
        pools: ControlPools,
        *,
        n_basal_samples: int = 1,
        threads: int = 2,
        prefetch: int = 2,
    ) -> None:
        for name, given in (("n_basal_samples", n_basal_samples), ("threads", threads), ("prefetch", prefetch)):
            if given < 1:
                raise ConfigError(f"{name}: got {given!r}, expected at least 1.")
        self.source, self.rows, self.plan, self.pools = source, rows, plan, pools
        self.n_basal_samples, self.threads, self.prefetch = n_basal_samples, threads, prefetch
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.plan)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs through."""
        if epoch < 0:
            raise ConfigError(f"epoch: got {epoch!r}, expected a non-negative integer.")
        self.epoch = epoch

    def __iter__(self) -> Iterator[PerturbationBatch]:
        epoch = self.epoch
        order = self.plan.order(epoch)
        return _read_ahead(
            lambda step: self.batch(step, epoch, order), len(self), threads=self.threads, ahead=self.prefetch
        )

    def batch(self, step: int, epoch: int, order: NDArray[np.int64] | None = None) -> PerturbationBatch:
        """Read batch `step` of an epoch."""
        places, is_filler = self._places(step, epoch, order)
        positions = self.rows.positions(places)
        groups = self.source.groups
        runs = groups.run_of(positions)
        rows = self.rows.to_rows(positions)
        control_rows = self.pools.draw(rows, runs, self.n_basal_samples, (self.plan.config.seed, epoch))
        features = self.source.read_features(rows)
        controls = self.source.read_features(control_rows.ravel())
        host: dict[str, Any] = {
            "counts": features,
            "controls": controls.reshape(*control_rows.shape, features.shape[1]),
            "pert_code": groups.codes["perturbation"][runs],
            "cell_type_code": groups.codes["cell_type"][runs],
            "batch_code": groups.codes["batch"][runs],
            "is_control": groups.is_control[runs],
            "is_filler": is_filler,
            "row": _small(rows),
            "control_row": _small(control_rows),
        }
        return PerturbationBatch(**jax.device_put(host), sentence_size=self.plan.config.sentence_size)

    def _places(
        self, step: int, epoch: int, order: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        cells, is_filler = self.plan.batch(step, epoch, order)
        short = self.plan.config.sentences_per_batch - len(cells)
        if short:  # the epoch's last batch keeps the shape of all others
            repeat = np.arange(short) % len(cells)
            cells = np.concatenate([cells, cells[repeat]])
            is_filler = np.concatenate([is_filler, np.ones_like(cells[repeat], dtype=bool)])
        return cells.ravel(), is_filler.ravel()


def _small(rows: NDArray[np.int64]) -> NDArray[np.integer]:
    return rows if jax.config.jax_enable_x64 else rows.astype(np.int32)  # type: ignore[attr-defined]


def _read_ahead(read: Any, n: int, *, threads: int, ahead: int) -> Iterator[PerturbationBatch]:
    """Yield ``read(0), ..., read(n - 1)`` in order, read by threads at most `ahead` batches early."""
    room = threading.Semaphore(max(1, ahead))
    steps: queue.SimpleQueue[int] = queue.SimpleQueue()
    for step in range(n):
        steps.put(step)
    done: dict[int, Any] = {}
    ready = threading.Condition()
    stopped = threading.Event()

    def work() -> None:
        while True:
            room.acquire()
            try:
                step = steps.get_nowait()
            except queue.Empty:
                room.release()
                return
            if stopped.is_set():
                room.release()
                return
            try:
                result: Any = (read(step), None)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                result = (None, error)
            with ready:
                done[step] = result
                ready.notify_all()

    workers = [threading.Thread(target=work, name=f"lazypert-loader-{i}", daemon=True) for i in range(max(1, threads))]
    for worker in workers:
        worker.start()
    try:
        for step in range(n):
            with ready:
                ready.wait_for(lambda step=step: step in done)  # type: ignore[misc]
                batch, error = done.pop(step)
            if error is not None:
                raise error
            room.release()
            yield batch
    finally:
        stopped.set()
        room.release()
        for worker in workers:
            worker.join()
