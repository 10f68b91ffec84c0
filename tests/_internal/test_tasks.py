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
def test_results_come_in_order_whatever_runs_them(scheduler):
    seen = []
    with dask.config.set(scheduler=scheduler) if scheduler else dask.config.set({}):
        found = run(double, [(i, SHARED) for i in range(9)], workers=3, phase="p", size=lambda n: n, report=seen.append)
    assert found == [2 * i + 1 for i in range(9)]
    assert [event.done for event in seen] == list(range(10))
    assert seen[-1].n_bytes == sum(found)


@pytest.mark.slow
def test_a_cluster_counts_too():
    distributed = pytest.importorskip("distributed")
    seen = []
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        arguments = [(i, SHARED) for i in range(5)]
        found = run(double, arguments, workers=1, phase="p", size=lambda n: n, report=seen.append)
    assert found == [1, 3, 5, 7, 9]
    assert [event.done for event in seen] == list(range(6))


def test_tasks_are_begun_in_order():
    begun = []
    run(begun.append, [(i,) for i in range(50)], workers=1, phase="p", size=lambda _: 1, report=None)
    assert begun == list(range(50))


def test_no_tasks():
    assert run(double, [], workers=2, phase="p", size=lambda n: n, report=None) == []


def test_after_an_error_nothing_runs_any_more():
    running, ended = threading.Event(), []

    def task(number):
        if number == 0:
            running.wait(5)
            raise ValueError("zero")
        running.set()
        time.sleep(0.2)
        ended.append(number)
        return number

    with pytest.raises(ValueError, match="zero"):
        run(task, [(i,) for i in range(20)], workers=2, phase="p", size=lambda n: n, report=None)
    seen = list(ended)
    assert 1 <= len(seen) < 19, "the rest was called off"
    time.sleep(0.4)
    assert ended == seen


def test_workers_are_as_many_as_asked():
    lock, now, most = threading.Lock(), [0], [0]

    def task(_):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1

    run(task, [(i,) for i in range(12)], workers=3, phase="p", size=lambda _: 0, report=None)
    assert most[0] == 3
