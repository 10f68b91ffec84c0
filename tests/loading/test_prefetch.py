"""Batches are yielded in order and errors in their place, memory is bounded, and threads always end."""

import gc
import threading
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazypert.loading import prefetch as module
from lazypert.loading.prefetch import divide_steps, prefetch

TIMEOUT = 5  # seconds, for what should happen at once


def alive():
    return [thread for thread in threading.enumerate() if thread.name.startswith("lazypert-loader")]


@pytest.fixture(autouse=True)
def no_threads_are_left():
    yield
    if alive():
        gc.collect()  # generators that tests have left
    assert not alive()


class Work:
    """Makes blocks and batches that can be told apart, and counts how many exist at a time."""

    def __init__(self, per_block, *, slow_block=None, bad_block=None, bad_batch=None):
        self.per_block, self.slow_block, self.bad_block, self.bad_batch = per_block, slow_block, bad_block, bad_batch
        self.read, self.made, self.taken = Counter(), Counter(), -1
        self.most_ahead = self.most_blocks = 0
        self.lock = threading.Lock()

    def block(self, part):
        number = part.start // self.per_block
        assert (part.stop - 1) // self.per_block == number
        if number == self.slow_block:
            time.sleep(0.05)
        with self.lock:
            self.read.update(part)
            self.most_blocks = max(self.most_blocks, number + 1 - (self.taken + 1) // self.per_block)
        if number == self.bad_block:
            raise OSError("the disk is gone")
        return part

    def batch(self, block, nth):
        step = block[nth]
        with self.lock:
            self.made[step] += 1
            self.most_ahead = max(self.most_ahead, step - self.taken - 1)
        if step == self.bad_batch:
            raise ValueError("a bad batch")
        return step

    def __call__(self, steps, *, threads=2, ahead=2, n_blocks=2):
        return prefetch(
            self.block,
            self.batch,
            divide_steps(steps, self.per_block),
            threads=threads,
            batches_ahead=ahead,
            n_blocks=n_blocks,
        )


@given(start=st.integers(0, 300), length=st.integers(0, 300), per_block=st.integers(1, 70))
def test_parts_cover_the_steps_and_stay_within_blocks(start, length, per_block):
    parts = divide_steps(range(start, start + length), per_block)
    assert [step for part in parts for step in part] == list(range(start, start + length))
    assert all(part and part.start // per_block == (part.stop - 1) // per_block for part in parts)
    in_first_block = [part for part in parts if part.start // per_block == start // per_block]
    for nth, part in enumerate(in_first_block):  # 1, 1, 2, 4, ...: as many as before, until the block ends
        assert len(part) == max(1, 2 ** (nth - 1)) or (part is in_first_block[-1] and len(part) < 2 ** (nth - 1))
    others = parts[len(in_first_block) :]
    assert all(len(part) == per_block for part in others[:-1])
    assert len({part.start // per_block for part in others}) == len(others)


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("per_block", [1, 3, 100])
@pytest.mark.parametrize("steps", [range(0), range(1), range(20), range(7, 20), range(19, 20)])
def test_every_batch_is_yielded_once_and_in_order(threads, per_block, steps):
    work = Work(per_block, slow_block=1)
    assert list(work(steps, threads=threads)) == list(steps)
    assert work.made == Counter(steps)
    assert work.read == Counter(steps)


@pytest.mark.parametrize("ahead", [1, 3])
@pytest.mark.parametrize("n_blocks", [2, 4])
def test_blocks_and_batches_in_memory_are_bounded(ahead, n_blocks):
    work = Work(4)
    for step in work(range(60), threads=8, ahead=ahead, n_blocks=n_blocks):
        work.taken = step
        if step % 7 == 0:
            time.sleep(0.01)  # let the threads get as far ahead as they can
    # `taken` is updated a moment after the batch was taken.
    assert work.most_ahead <= ahead + 1
    assert work.most_blocks <= n_blocks + 1


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("which", ["bad_block", "bad_batch"])
def test_errors_are_raised_in_place_of_their_batch(which, threads):
    work = Work(3, **{which: 2 if which == "bad_block" else 6})
    batches, seen = work(range(30), threads=threads), []
    with pytest.raises((OSError, ValueError), match=r"the disk is gone|a bad batch"):
        seen.extend(batches)
    assert not alive()
    assert seen == list(range(6))
    assert next(batches, "exhausted") == "exhausted"


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("taken", [1, 5, 30])
def test_threads_end_when_the_generator_is_closed_or_deleted(threads, taken):
    for delete in (False, True):
        batches = Work(3, slow_block=2)(range(30), threads=threads)
        for _ in range(taken):
            next(batches)
        assert alive() or taken == 30
        start = time.perf_counter()
        if delete:
            del batches
            gc.collect()
        else:
            batches.close()
        assert not alive()
        assert time.perf_counter() - start < TIMEOUT


def test_an_exception_in_the_consumer_ends_the_threads():
    def train():
        for step in Work(3)(range(30)):
            if step == 4:
                raise KeyError("a bug in the model")

    with pytest.raises(KeyError, match="a bug in the model"):
        train()
    gc.collect()
    assert not alive()


def test_threads_start_with_the_first_batch():
    batches = Work(3)(range(30))
    assert not alive()
    next(batches)
    assert len(alive()) == 4  # two that read, two that collate
    batches.close()


def test_a_batch_does_not_wait_for_a_long_read():
    """Batches of a block in memory are collated while the only reading thread is busy."""
    release, reading = threading.Event(), threading.Event()

    def block(part):
        if part.start == 10:
            reading.set()
            assert release.wait(TIMEOUT)
        return part

    batches = prefetch(
        block, lambda part, nth: part[nth], [range(10), range(10, 20)], threads=1, batches_ahead=2, n_blocks=2
    )
    assert next(batches) == 0
    assert reading.wait(TIMEOUT)
    assert [next(batches) for _ in range(9)] == list(range(1, 10))
    release.set()
    assert list(batches) == list(range(10, 20))


def test_batches_are_released_once_they_are_taken():
    import weakref

    class Batch:
        pass

    batches = prefetch(
        lambda n: n, lambda *_: Batch(), divide_steps(range(9), 3), threads=2, batches_ahead=2, n_blocks=2
    )
    taken = [weakref.ref(batch) for batch in batches]
    gc.collect()
    assert [ref() for ref in taken if ref() is not None] == []


def test_closing_after_the_threads_were_stopped_at_exit_needs_no_module(monkeypatch):
    batches = prefetch(lambda part: part, lambda block, step: step, [range(4)], threads=1, batches_ahead=1, n_blocks=1)
    assert next(batches) == 0
    module._stop_all()  # as at exit, after which the interpreter clears modules
    monkeypatch.setattr(module, "threading", None)
    batches.close()
