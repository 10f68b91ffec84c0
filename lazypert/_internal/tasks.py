"""Running many tasks as a Dask graph: on threads, on the caller's scheduler, or on a cluster."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import dask

from lazypert._internal.memory import give_back
from lazypert.progress import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lazypert.progress import Report

T = TypeVar("T")


def run(
    function: Callable[..., T],
    arguments: Sequence[tuple[Any, ...]],
    *,
    workers: int,
    phase: str,
    size: Callable[[T], int],
    report: Report | None,
) -> list[T]:
    """Call a function with each tuple of arguments, as one task each.

    Runs on the scheduler that the caller has set up (a `dask.distributed.Client`, or
    ``dask.config.set(scheduler=...)``), else on threads. Returns, or raises, only when no task of
    its own threads is running any more.

    Parameters
    ----------
    workers
        Threads, where the caller has set up nothing.
    size
        Bytes that a result stands for, for `report`.

    Returns
    -------
    The results, in the order of the arguments.
    """
    counter = Phase(phase, len(arguments), report)
    shared: dict[int, Any] = {}
    task = dask.delayed(function, pure=False)
    # Of tasks that nothing else sets apart Dask takes the last name first: so files are read from front to back.
    name = f"{phase}-{uuid4().hex}"
    tasks = [
        task(*(_once(value, shared) for value in given), dask_key_name=f"{name}-{left:09d}")
        for left, given in zip(range(len(arguments), 0, -1), arguments, strict=True)
    ]
    scheduler = dask.base.get_scheduler()
    client = getattr(scheduler, "__self__", None)
    if client is not None and hasattr(client, "submit"):
        return _on_cluster(client, tasks, counter, size)
    with _counting(counter, size, {one.key for one in tasks}):
        if scheduler is not None:
            return list(dask.compute(*tasks, optimize_graph=False))
        pool = ThreadPoolExecutor(workers)
        try:
            return list(dask.compute(*tasks, optimize_graph=False, scheduler="threads", pool=pool))
        finally:
            pool.shutdown(cancel_futures=True)
            give_back()


def _once(value: Any, shared: dict[int, Any]) -> Any:
    """Large arguments that many tasks share travel to a worker once."""
    if not hasattr(value, "__dict__") and not hasattr(value, "__slots__") and not hasattr(value, "__array__"):
        return value
    return shared.setdefault(id(value), dask.delayed(value, pure=False, traverse=False))


def _on_cluster(client: Any, tasks: list[Any], counter: Phase, size: Callable[[Any], int]) -> list[Any]:
    from distributed import as_completed

    futures = client.compute(tasks, optimize_graph=False)
    try:
        for _, result in as_completed(futures, with_results=True):
            counter.step(size(result))
        return list(client.gather(futures))
    finally:
        client.cancel(futures)


def _counting(counter: Phase, size: Callable[[Any], int], keys: set[Any]) -> Any:
    from dask.callbacks import Callback

    def posttask(key: Any, result: Any, *_: Any) -> None:
        if key in keys:
            counter.step(size(result))

    return Callback(posttask=posttask)
