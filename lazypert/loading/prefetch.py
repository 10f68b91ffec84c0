"""Prefetching: background threads read blocks and collate batches ahead of the caller."""

from __future__ import annotations

import atexit
import threading
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


_POLL_SECONDS = 1
"""How often a waiting thread checks whether it should stop: it misses the notification if a garbage collection
stops the prefetcher just before the thread starts to wait."""


def prefetch(
    read_block: Callable[[int], Any],
    collate: Callable[[Any, int], Any],
    steps: range,
    *,
    batches_per_block: int,
    threads: int,
    batches_ahead: int,
    n_blocks: int,
) -> Generator[Any]:
    """Yield ``collate(read_block(step // batches_per_block), step)`` for each step, in order.

    Some threads read blocks and others collate batches, so that a batch never waits for a long read to
    end. The results do not depend on the assignment of work to threads. Threads start when the first batch
    is requested, and have ended when the generator is exhausted, closed or garbage-collected.

    Parameters
    ----------
    read_block, collate
        Called from several threads at once. An exception is raised in the caller in place of its batch.
    steps
        Consecutive steps.
    batches_per_block
        Batches per block.
    threads
        Threads that read. As many again collate, but at most `batches_ahead` + 1.
    batches_ahead
        Batches that may be ready before they are requested.
    n_blocks
        Blocks that may be in memory.
    """
    if not steps:
        return
    prefetcher = _Prefetcher(read_block, collate, steps, batches_per_block, batches_ahead, n_blocks)
    _running.add(prefetcher)
    try:
        n_collators = min(threads, batches_ahead + 1)
        prefetcher.start([prefetcher.read_blocks] * threads + [prefetcher.collate_batches] * n_collators)
        for step in steps:
            yield prefetcher.take(step)
    finally:
        prefetcher.stop()


_running: weakref.WeakSet[_Prefetcher] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """Stop all threads before the interpreter frees the memory that they work in."""
    for prefetcher in list(_running):
        prefetcher.stop()


class _Prefetcher:
    """State shared by the threads: which blocks and batches are pending, in progress and done."""

    def __init__(
        self,
        read_block: Callable[[int], Any],
        collate: Callable[[Any, int], Any],
        steps: range,
        batches_per_block: int,
        batches_ahead: int,
        n_blocks: int,
    ) -> None:
        self._read_block, self._collate, self._batches_per_block = read_block, collate, batches_per_block
        self._batches_ahead, self._n_blocks = batches_ahead, n_blocks
        self._end = steps.stop
        self._end_block = -(-steps.stop // batches_per_block)
        self._next_batch, self._next_block = steps.start, steps.start // batches_per_block
        self._requested = steps.start - 1  # the step that the caller waits for or works on
        self._blocks: dict[int, Any] = {}  # blocks in memory that have batches left to collate
        self._batches_left: dict[int, int] = {}  # number of these batches, by block
        self._batches: dict[int, tuple[Any, BaseException | None]] = {}
        # Reentrant, because a garbage collection may call stop() while this thread holds the lock.
        lock = threading.RLock()
        self._block_wanted, self._batch_wanted, self._batch_ready = (threading.Condition(lock) for _ in range(3))
        self._workers: list[threading.Thread] = []
        self._stopped = False

    def start(self, tasks: list[Callable[[], None]]) -> None:
        """Run each task in its own thread."""
        for number, task in enumerate(tasks):
            worker = threading.Thread(target=task, name=f"lazypert-loader-{number}", daemon=True)
            worker.start()
            self._workers.append(worker)

    def take(self, step: int) -> Any:
        """Wait for the batch of a step, and return it."""
        with self._batch_ready:
            self._requested = step
            self._batch_wanted.notify()
            self._batch_ready.wait_for(lambda: step in self._batches or self._stopped)
            batch, error = self._batches.pop(step, (None, RuntimeError("the interpreter is shutting down")))
        if error is not None:
            raise error
        return batch

    def stop(self) -> None:
        """Stop the threads, and wait until they have ended."""
        with self._block_wanted:
            self._stopped = True
            for condition in (self._block_wanted, self._batch_wanted, self._batch_ready):
                condition.notify_all()
        if threading.current_thread() in self._workers:
            return  # a garbage collection in a worker: the others may wait for a lock that it holds
        for worker in self._workers:
            worker.join()

    def read_blocks(self) -> None:
        """Read blocks until none is left."""
        while (number := self._claim_block()) is not None:
            try:
                block: Any = self._read_block(number)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                block = error
            with self._batch_wanted:
                self._blocks[number] = block
                self._batch_wanted.notify_all()
            del block  # otherwise this thread would keep it in memory until it has read the next one

    def _claim_block(self) -> int | None:
        """Wait until another block may be in memory, and return its number; None if none is left."""
        with self._block_wanted:
            while not self._stopped and self._next_block < self._end_block:
                number = self._next_block
                if number < min(self._batches_left, default=number) + self._n_blocks:
                    self._next_block += 1
                    first = max(number * self._batches_per_block, self._next_batch)
                    self._batches_left[number] = min((number + 1) * self._batches_per_block, self._end) - first
                    return number
                self._block_wanted.wait(_POLL_SECONDS)
            return None

    def collate_batches(self) -> None:
        """Collate batches until none is left."""
        while (claim := self._claim_batch()) is not None:
            step, block = claim
            try:
                if isinstance(block, BaseException):
                    raise block
                result: tuple[Any, BaseException | None] = (self._collate(block, step), None)
            except BaseException as error:  # noqa: BLE001
                result = (None, error)
            del claim, block
            self._publish(step, result)
            del result

    def _claim_batch(self) -> tuple[int, Any] | None:
        """Wait until another batch may be collated, and return its step and block; None if none is left."""
        with self._batch_wanted:
            while not self._stopped and self._next_batch < self._end:
                step = self._next_batch
                if step <= self._requested + self._batches_ahead and step // self._batches_per_block in self._blocks:
                    self._next_batch += 1
                    return step, self._blocks[step // self._batches_per_block]
                self._batch_wanted.wait(_POLL_SECONDS)
            return None

    def _publish(self, step: int, result: tuple[Any, BaseException | None]) -> None:
        """Make a result available to the caller, and free its block after the last batch."""
        number = step // self._batches_per_block
        with self._batch_ready:
            self._batches[step] = result
            if step == self._requested:
                self._batch_ready.notify()
            self._batches_left[number] -= 1
            if not self._batches_left[number]:
                del self._batches_left[number], self._blocks[number]
                self._block_wanted.notify_all()
