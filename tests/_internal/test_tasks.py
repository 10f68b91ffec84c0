import threading
import time

import dask
import numpy as np
import pytest

from lazypert._internal.tasks import run


def double(value, shared):
    return value * 2 + int(shared[0])


SHARED = np.array([1])


@pytest.mark.parametrize(
    "scheduler", [None, "threads", "synchronous", pytest.param("processes", marks=pytest.mark.slow)]
)
def test_results_are_in_the_order_of_the_arguments_on_every_scheduler(scheduler):
    seen = []
    with dask.config.set(scheduler=scheduler) if scheduler else dask.config.set({}):
        results = run(
            double, [(i, SHARED) for i in range(9)], workers=3, phase="p", size=lambda n: n, report=seen.append
        )
    assert results == [2 * i + 1 for i in range(9)]
    assert [event.done for event in seen] == list(range(10))
    assert seen[-1].n_bytes == sum(results)


@pytest.mark.slow
def test_progress_is_reported_on_a_cluster():
    distributed = pytest.importorskip("distributed")
    seen = []
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0") as cluster,
        distributed.Client(cluster),
    ):
        arguments = [(i, SHARED) for i in range(5)]
        results = run(double, arguments, workers=1, phase="p", size=lambda n: n, report=seen.append)
    assert results == [1, 3, 5, 7, 9]
    assert [event.done for event in seen] == list(range(6))


def test_tasks_start_in_the_order_of_the_arguments():
    started = []
    run(started.append, [(i,) for i in range(50)], workers=1, phase="p", size=lambda _: 1, report=None)
    assert started == list(range(50))


def test_no_arguments_give_no_results():
    assert run(double, [], workers=2, phase="p", size=lambda n: n, report=None) == []


def test_no_task_runs_after_an_error_was_raised():
    running, finished = threading.Event(), []

    def task(number):
        if number == 0:
            running.wait(5)
            raise ValueError("zero")
        running.set()
        time.sleep(0.2)
        finished.append(number)
        return number

    with pytest.raises(ValueError, match="zero"):
        run(task, [(i,) for i in range(20)], workers=2, phase="p", size=lambda n: n, report=None)
    seen = list(finished)
    assert 1 <= len(seen) < 19, "the remaining tasks are cancelled"
    time.sleep(0.4)
    assert finished == seen


def test_as_many_tasks_run_at_once_as_there_are_workers():
    lock, current, most = threading.Lock(), [0], [0]

    def task(_):
        with lock:
            current[0] += 1
            most[0] = max(most[0], current[0])
        time.sleep(0.02)
        with lock:
            current[0] -= 1

    run(task, [(i,) for i in range(12)], workers=3, phase="p", size=lambda _: 0, report=None)
    assert most[0] == 3
