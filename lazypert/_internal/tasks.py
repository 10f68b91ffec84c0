"""Run many tasks as a Dask graph: on threads, on the caller's scheduler, or on a cluster."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import dask

from lazypert._internal.cluster import active_client, call_checked, cluster_errors
from lazypert._internal.memory import release_memory
from lazypert.progress import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lazypert._internal.cluster import Needs
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
    needs: Needs | None = None,
) -> list[T]:
    """Call a function with each tuple of arguments, as one task per call.

    Tasks run on the caller's scheduler (a `dask.distributed.Client`, or ``dask.config.set(scheduler=...)``)
    if there is one, and on threads otherwise. The threads have finished when this function returns or raises.

    Parameters
    ----------
    arguments
        Arguments of each call.
    workers
        Number of threads, if the caller has not set up a scheduler.
    phase
        Name of this phase of the job, for `report`.
    size
        Returns the number of bytes that a result represents, for `report`.
    report
        Called with a `Progress` after each task.
    needs
        What workers of a cluster must have, which they check before their first task.

    Returns
    -------
    Results in the order of `arguments`.

    Raises
    ------
    ClusterError
        If the cluster is lost, or a worker lacks what it needs.
    """
    counter, client = Phase(phase, len(arguments), report), active_client()
    shared: dict[int, Any] = {}
    task = dask.delayed(function, pure=False)
    if client is not None and needs is not None:
        task = dask.delayed(call_checked, pure=False)
        arguments = [(needs, function, *values) for values in arguments]
    # Dask runs otherwise equal tasks in descending order of their names; numbering them downwards
    # therefore reads files from front to back.
    name = f"{phase}-{uuid4().hex}"
    tasks = [
        task(*(share(value, shared) for value in values), dask_key_name=f"{name}-{remaining:09d}")
        for remaining, values in zip(range(len(arguments), 0, -1), arguments, strict=True)
    ]
    if client is not None:
        return _on_cluster(client, tasks, counter, size)
    scheduler = dask.base.get_scheduler()
    with _counting(counter, size, {task.key for task in tasks}):
        if scheduler is not None:
            return list(dask.compute(*tasks, optimize_graph=False))
        pool = ThreadPoolExecutor(workers)
        try:
            return list(dask.compute(*tasks, optimize_graph=False, scheduler="threads", pool=pool))
        finally:
            pool.shutdown(cancel_futures=True)
            release_memory()


def uses_processes() -> bool:
    """Whether the caller's scheduler runs tasks in other processes, or may do so."""
    scheduler = dask.base.get_scheduler()
    if scheduler is None:
        return False
    return hasattr(scheduler, "__self__") or "multiprocessing" in getattr(scheduler, "__module__", "")


def share(value: Any, shared: dict[int, Any]) -> Any:
    """Wrap a large argument so that it is sent to each worker only once, however many tasks share it.

    Parameters
    ----------
    shared
        What was wrapped so far, by its ``id``.
    """
    if not hasattr(value, "__dict__") and not hasattr(value, "__slots__") and not hasattr(value, "__array__"):
        return value
    return shared.setdefault(id(value), dask.delayed(value, pure=False, traverse=False))


def _on_cluster(client: Any, tasks: list[Any], counter: Phase, size: Callable[[Any], int]) -> list[Any]:
    from distributed import CancelledError, as_completed

    results: dict[Any, Any] = {}
    with cluster_errors():
        futures = client.compute(tasks, optimize_graph=False)
        try:
            for future, result in as_completed(futures, with_results=True):
                if isinstance(result, CancelledError):  # the cluster was closed
                    raise result
                results[future.key] = result
                counter.step(size(result))
        finally:
            if client.status == "running":
                client.cancel(futures)
    return [results[future.key] for future in futures]


def _counting(counter: Phase, size: Callable[[Any], int], keys: set[Any]) -> Any:
    from dask.callbacks import Callback

    def posttask(key: Any, result: Any, *_: Any) -> None:
        if key in keys:
            counter.step(size(result))

    return Callback(posttask=posttask)
