"""Reading ahead: threads turn blocks into batches while the caller computes."""

from __future__ import annotations

import atexit
import threading
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


_PATIENCE = 1
"""Seconds after which a waiting thread looks again whether it is wanted: a garbage collection that stops a
feed while its thread is about to wait would else not be heard."""


def prefetch(
    read_block: Callable[[int], Any],
    make_batch: Callable[[Any, int], Any],
    steps: range,
    *,
    per_block: int,
    threads: int,
    ahead: int,
    n_blocks: int,
) -> Generator[Any]:
    """Yield ``make_batch(read_block(step // per_block), step)`` for each step, in order.

    Blocks are read by some threads and batches made by others, so that a batch never waits for a long
    read to end. What comes out does not depend on which thread does what. Threads start with the first
    batch asked for, and have ended when the iterator is exhausted, closed or collected.

    Parameters
    ----------
    read_block, make_batch
        Called from several threads at once. What they raise is raised in place of the batch.
    steps
        Consecutive.
    per_block
        Batches of a block.
    threads
        Threads that read; and as many that make batches, but no more than there are batches to make at a time.
    ahead
        Batches that may be finished before they are asked for.
    n_blocks
        Blocks that may be in memory.
    """
    if not steps:
        return
    feed = _Feed(read_block, make_batch, steps, per_block, ahead, n_blocks)
    _running.add(feed)
    try:
        feed.start([feed.read_blocks] * threads + [feed.make_batches] * min(threads, ahead + 1))
        for step in steps:
            yield feed.take(step)
    finally:
        feed.stop()


_running: weakref.WeakSet[_Feed] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """End all threads while the interpreter still stands: they work in memory that it is about to free."""
    for feed in list(_running):
        feed.stop()


class _Feed:
    """What threads share: which blocks and batches are wanted, under way and done."""

    def __init__(
        self,
        read_block: Callable[[int], Any],
        make_batch: Callable[[Any, int], Any],
        steps: range,
        per_block: int,
        ahead: int,
        n_blocks: int,
    ) -> None:
        self._read_block, self._make_batch, self._per_block = read_block, make_batch, per_block
        self._ahead, self._n_blocks = ahead, n_blocks
        self._end = steps.stop
        self._end_block = -(-steps.stop // per_block)
        self._next_batch, self._next_block = steps.start, steps.start // per_block
        self._taken = steps.start - 1  # the step that the caller waits for or works on
        self._blocks: dict[int, Any] = {}  # read, with batches still to make
        self._unmade: dict[int, int] = {}  # batches of each block that are not made yet
        self._batches: dict[int, tuple[Any, BaseException | None]] = {}
        # Reentrant: a garbage collection may stop this feed in the midst of anything.
        lock = threading.RLock()
        self._block_wanted, self._batch_wanted, self._batch_there = (threading.Condition(lock) for _ in range(3))
        self._stopped = False
        self._workers: list[threading.Thread] = []

    def start(self, tasks: list[Callable[[], None]]) -> None:
        """Work on tasks, each in a thread."""
        for number, task in enumerate(tasks):
            worker = threading.Thread(target=task, name=f"lazypert-loader-{number}", daemon=True)
            worker.start()
            self._workers.append(worker)

    def take(self, step: int) -> Any:
        """Wait for a batch."""
        with self._batch_there:
            self._taken = step
            self._batch_wanted.notify()
            self._batch_there.wait_for(lambda: step in self._batches or self._stopped)
            batch, error = self._batches.pop(step, (None, RuntimeError("the interpreter is shutting down")))
        if error is not None:
            raise error
        return batch

    def stop(self) -> None:
        """End the threads, and wait until they have ended."""
        with self._block_wanted:
            self._stopped = True
            for changed in (self._block_wanted, self._batch_wanted, self._batch_there):
                changed.notify_all()
        if threading.current_thread() in self._workers:
            return  # a garbage collection in one of them: the others may wait for what it holds
        for worker in self._workers:
            worker.join()

    def read_blocks(self) -> None:
        """Read blocks until there are no more."""
        while (number := self._next_to_read()) is not None:
            try:
                block: Any = self._read_block(number)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                block = error
            with self._batch_wanted:
                self._blocks[number] = block
                self._batch_wanted.notify_all()
            del block  # or this thread would keep it until it has read the next one

    def _next_to_read(self) -> int | None:
        with self._block_wanted:
            while not self._stopped and self._next_block < self._end_block:
                number = self._next_block
                if number < min(self._unmade, default=number) + self._n_blocks:
                    self._next_block += 1
                    first = max(number * self._per_block, self._next_batch)
                    self._unmade[number] = min((number + 1) * self._per_block, self._end) - first
                    return number
                self._block_wanted.wait(_PATIENCE)
            return None

    def make_batches(self) -> None:
        """Make batches until there are no more."""
        while (job := self._next_to_make()) is not None:
            step, block = job
            try:
                if isinstance(block, BaseException):
                    raise block
                result: tuple[Any, BaseException | None] = (self._make_batch(block, step), None)
            except BaseException as error:  # noqa: BLE001
                result = (None, error)
            del job, block
            self._made(step, result)
            del result

    def _next_to_make(self) -> tuple[int, Any] | None:
        with self._batch_wanted:
            while not self._stopped and self._next_batch < self._end:
                step = self._next_batch
                if step <= self._taken + self._ahead and step // self._per_block in self._blocks:
                    self._next_batch += 1
                    return step, self._blocks[step // self._per_block]
                self._batch_wanted.wait(_PATIENCE)
            return None

    def _made(self, step: int, result: tuple[Any, BaseException | None]) -> None:
        number = step // self._per_block
        with self._batch_there:
            self._batches[step] = result
            if step == self._taken:
                self._batch_there.notify()
            self._unmade[number] -= 1
            if not self._unmade[number]:
                del self._unmade[number], self._blocks[number]
                self._block_wanted.notify_all()
