"""Reading ahead: threads turn blocks into batches while the caller computes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


def read_ahead(
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

    Each block is read by one thread, each batch made by one; several are under way at once. What comes
    out does not depend on which thread does what. Threads start with the first batch asked for, and
    have ended when the iterator is exhausted, closed or collected.

    Parameters
    ----------
    read_block, make_batch
        Called from several threads at once. What they raise is raised in place of the batch.
    steps
        Consecutive.
    per_block
        Batches of a block.
    threads
        Threads.
    ahead
        Batches that may be finished before they are asked for.
    n_blocks
        Blocks that may be in memory.
    """
    feed = _Feed(read_block, make_batch, steps, per_block, ahead, n_blocks)
    workers = [
        threading.Thread(target=feed.work, name=f"lazypert-loader-{number}", daemon=True) for number in range(threads)
    ]
    try:
        for worker in workers:
            worker.start()
        for step in steps:
            yield feed.take(step)
    finally:
        feed.stop()
        for worker in workers:
            if worker.ident is not None and worker is not threading.current_thread():
                worker.join()


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
        lock = threading.Lock()
        self._job_there, self._batch_there = threading.Condition(lock), threading.Condition(lock)
        self._stopped = False

    def take(self, step: int) -> Any:
        """Wait for a batch."""
        with self._batch_there:
            self._taken = step
            self._job_there.notify()
            self._batch_there.wait_for(lambda: step in self._batches)
            batch, error = self._batches.pop(step)
        if error is not None:
            raise error
        return batch

    def stop(self) -> None:
        with self._job_there:
            self._stopped = True
            self._job_there.notify_all()

    def work(self) -> None:
        """Do what is most urgent until there is nothing left to do."""
        while (job := self._job()) is not None:
            job()
            del job  # or a waiting thread would hold on to its last batch

    def _job(self) -> Callable[[], None] | None:
        with self._job_there:
            while True:
                if self._stopped or (self._next_batch >= self._end and self._next_block >= self._end_block):
                    return None
                block = self._next_batch // self._per_block
                if (
                    self._next_batch < self._end
                    and self._next_batch <= self._taken + self._ahead
                    and block in self._blocks
                ):
                    step, self._next_batch = self._next_batch, self._next_batch + 1
                    return lambda: self._make(step, block)
                oldest = min(self._unmade, default=self._next_block)
                if self._next_block < self._end_block and self._next_block < oldest + self._n_blocks:
                    number, self._next_block = self._next_block, self._next_block + 1
                    first = max(number * self._per_block, self._next_batch)
                    self._unmade[number] = min((number + 1) * self._per_block, self._end) - first
                    return lambda: self._read(number)
                self._job_there.wait()

    def _read(self, number: int) -> None:
        try:
            block: Any = self._read_block(number)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            block = error
        with self._job_there:
            self._blocks[number] = block
            self._job_there.notify_all()

    def _make(self, step: int, number: int) -> None:
        block = self._blocks[number]
        try:
            if isinstance(block, BaseException):
                raise block
            result: tuple[Any, BaseException | None] = (self._make_batch(block, step), None)
        except BaseException as error:  # noqa: BLE001
            result = (None, error)
        del block
        with self._batch_there:
            self._batches[step] = result
            if step == self._taken:
                self._batch_there.notify()
            self._unmade[number] -= 1
            if not self._unmade[number]:
                del self._unmade[number], self._blocks[number]
                self._job_there.notify_all()
