"""Prefetching: background threads read blocks and collate batches ahead of the caller."""

from __future__ import annotations

import atexit
import threading
import weakref
from typing import TYPE_CHECKING, Any

from lazypert.store.requests import stopping

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence


_POLL_SECONDS = 1
"""How often a waiting thread checks whether it should stop: it misses the notification if a garbage collection
stops the prefetcher just before the thread starts to wait."""


def divide_steps(steps: range, batches_per_block: int) -> list[range]:
    """Divide steps into parts of blocks that are read at once.

    What is left of the first block is divided into parts of 1, 1, 2, 4, ... batches, so that the first batch does not
    wait for all of it and several threads read it together. Every other block is one part.
    """
    parts: list[range] = []
    start, size = steps.start, 1
    while start < steps.stop:
        end_of_block = (start // batches_per_block + 1) * batches_per_block
        stop = min(start + size, end_of_block, steps.stop)
        parts.append(range(start, stop))
        size = batches_per_block if stop == end_of_block else max(1, stop - steps.start)
        start = stop
    return parts


def prefetch(
    read: Callable[[range], Any],
    collate: Callable[[Any, int], Any],
    parts: Sequence[range],
    *,
    threads: int,
    batches_ahead: int,
    n_blocks: int,
) -> Generator[Any]:
    """Yield ``collate(read(part), n)`` for the `n`-th step of each part, in order.

    Some threads read and others collate batches, so that a batch never waits for a long read to end. The
    results do not depend on the assignment of work to threads. Threads start when the first batch is
    requested, and have ended when the generator is exhausted, closed or garbage-collected.

    Parameters
    ----------
    read, collate
        Called from several threads at once. An exception is raised in the caller in place of its batch.
    parts
        Consecutive steps, divided into what is read at once: blocks, or parts of blocks.
    threads
        Threads that read. As many again collate, but at most `batches_ahead` + 1.
    batches_ahead
        Batches that may be ready before they are requested.
    n_blocks
        Parts that may be in memory.
    """
    if not parts:
        return
    prefetcher = _Prefetcher(read, collate, parts, batches_ahead, n_blocks)
    _running.add(prefetcher)
    try:
        n_collators = min(threads, batches_ahead + 1)
        prefetcher.start([prefetcher.read_parts] * threads + [prefetcher.collate_batches] * n_collators)
        for step in range(parts[0].start, parts[-1].stop):
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
    """State shared by the threads: which parts and batches are pending, in progress and done."""

    def __init__(
        self,
        read: Callable[[range], Any],
        collate: Callable[[Any, int], Any],
        parts: Sequence[range],
        batches_ahead: int,
        n_blocks: int,
    ) -> None:
        self._read, self._collate, self._parts = read, collate, parts
        self._batches_ahead, self._n_blocks = batches_ahead, n_blocks
        self._next_part = 0  # to be read
        self._collated_part, self._next_batch = 0, parts[0].start  # to be collated
        self._requested = parts[0].start - 1  # the step that the caller waits for or works on
        self._blocks: dict[int, Any] = {}  # what was read, by part, while it has batches left to collate
        self._batches_left: dict[int, int] = {}  # number of these batches, by part
        self._batches: dict[int, tuple[Any, BaseException | None]] = {}
        # Reentrant, because a garbage collection may call stop() while this thread holds the lock.
        lock = threading.RLock()
        self._part_wanted, self._batch_wanted, self._batch_ready = (threading.Condition(lock) for _ in range(3))
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
        with self._part_wanted:
            self._stopped = True
            for condition in (self._part_wanted, self._batch_wanted, self._batch_ready):
                condition.notify_all()
        if not self._workers:
            return  # stopped before; at exit, modules may be gone by now
        if threading.current_thread() in self._workers:
            return  # a garbage collection in a worker: the others may wait for a lock that it holds
        with stopping(self._workers):  # they may wait for a server that does not answer
            for worker in self._workers:
                worker.join()
        self._workers.clear()

    def read_parts(self) -> None:
        """Read parts until none is left."""
        while (number := self._claim_part()) is not None:
            try:
                block: Any = self._read(self._parts[number])
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                block = error
            with self._batch_wanted:
                self._blocks[number] = block
                self._batch_wanted.notify_all()
            del block  # otherwise this thread would keep it in memory until it has read the next one

    def _claim_part(self) -> int | None:
        """Wait until another part may be in memory, and return its number; None if none is left."""
        with self._part_wanted:
            while not self._stopped and self._next_part < len(self._parts):
                number = self._next_part
                if number < min(self._batches_left, default=number) + self._n_blocks:
                    self._next_part += 1
                    self._batches_left[number] = len(self._parts[number])
                    return number
                self._part_wanted.wait(_POLL_SECONDS)
            return None

    def collate_batches(self) -> None:
        """Collate batches until none is left."""
        while (claim := self._claim_batch()) is not None:
            number, step, block = claim
            try:
                if isinstance(block, BaseException):
                    raise block
                result: tuple[Any, BaseException | None] = (
                    self._collate(block, step - self._parts[number].start),
                    None,
                )
            except BaseException as error:  # noqa: BLE001
                result = (None, error)
            del claim, block
            self._publish(number, step, result)
            del result

    def _claim_batch(self) -> tuple[int, int, Any] | None:
        """Wait until another batch may be collated, and return its part, step and block; None if none is left."""
        with self._batch_wanted:
            while not self._stopped and self._collated_part < len(self._parts):
                number, step = self._collated_part, self._next_batch
                if step <= self._requested + self._batches_ahead and number in self._blocks:
                    self._next_batch += 1
                    self._collated_part += self._next_batch == self._parts[number].stop
                    return number, step, self._blocks[number]
                self._batch_wanted.wait(_POLL_SECONDS)
            return None

    def _publish(self, number: int, step: int, result: tuple[Any, BaseException | None]) -> None:
        """Make a result available to the caller, and free what its part has read after the last batch."""
        with self._batch_ready:
            self._batches[step] = result
            if step == self._requested:
                self._batch_ready.notify()
            self._batches_left[number] -= 1
            if not self._batches_left[number]:
                del self._batches_left[number], self._blocks[number]
                self._part_wanted.notify_all()
