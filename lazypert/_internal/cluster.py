"""Clusters of dask.distributed: which client is active, and whether its workers have what tasks need.

Workers that lack something are named before any work begins. Workers that join later are checked by the first task
that they get.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import dask

from lazypert.errors import ClusterError, LazypertError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


class Need(Protocol):
    """Something that a worker must have. Picklable and hashable."""

    def problem(self) -> str | None:
        """Return what is wrong on this machine, as the end of a sentence that begins with the worker, or None."""
        ...


@dataclass(frozen=True, slots=True)
class Needs:
    """What all tasks of a job need on a worker.

    Attributes
    ----------
    needs
        Files, folders or stores.
    advice
        What to do if a worker lacks one of them.
    lazypert
        The client's version.
    """

    needs: tuple[Need, ...]
    advice: str
    lazypert: str

    @classmethod
    def of(cls, *needs: Need, advice: str) -> Needs:
        """Needs of this process's version of lazypert."""
        return cls(needs, advice, version("lazypert"))

    def problem(self) -> str | None:
        """Return the first thing that this process lacks."""
        if (found := version("lazypert")) != self.lazypert:
            return f"has lazypert {found}, and the client {self.lazypert}"
        return next((problem for need in self.needs if (problem := need.problem()) is not None), None)


def active_client() -> Any | None:
    """Return the client on which Dask would run tasks now, or None if it would use threads or other processes.

    Raises
    ------
    ClusterError
        If the client has lost its cluster.
    """
    client = getattr(dask.base.get_scheduler(), "__self__", None)
    if client is None or not hasattr(client, "submit"):
        return None
    if client.status != "running":
        raise ClusterError(
            f"The active Dask client is {client.status!r}, expected 'running': its cluster cannot be reached. Close it "
            "(client.close()) to use threads, or connect to a running cluster."
        )
    return client


def check_workers(needs: Needs) -> None:
    """Check every worker of the active client, if there is one.

    Raises
    ------
    ClusterError
        If a worker lacks something; it is named.
    """
    client = active_client()
    if client is None:
        return
    with cluster_errors():
        answers = client.run(needs.problem, on_error="return")
    # A worker that has just died does not matter: its tasks go to others, and if it comes back, its first task checks.
    alive = {worker: answer for worker, answer in answers.items() if not isinstance(answer, OSError)}
    answers = alive or answers
    problems = {worker: _in_words(answer) for worker, answer in answers.items() if answer is not None}
    if problems:
        worker, problem = next(iter(problems.items()))
        others = f" So do {len(problems) - 1} of the {len(answers) - 1} other workers." if len(problems) > 1 else ""
        raise _worker_lacks(repr(worker), problem, others, needs)


def _in_words(answer: str | Exception) -> str:
    if isinstance(answer, str):
        return answer
    if isinstance(answer, ImportError | AttributeError):
        return f"cannot import lazypert {version('lazypert')} ({answer})"
    return f"cannot be reached ({answer!r})"


def _worker_lacks(worker: str, problem: str, others: str, needs: Needs) -> ClusterError:
    return ClusterError(f"The Dask worker {worker} {problem}.{others} {needs.advice}")


def call_checked(needs: Needs, function: Callable[..., T], *arguments: Any) -> T:
    """Run a task on a worker, which may have joined after `check_workers`, or lost what it had.

    Raises
    ------
    ClusterError
        If the worker lacks something.
    """
    _require_here(needs)
    try:
        return function(*arguments)
    except OSError:
        _require_here.__wrapped__(needs)
        raise


@lru_cache(maxsize=16)  # an exception is not cached
def _require_here(needs: Needs) -> None:
    if (problem := needs.problem()) is not None:
        raise _worker_lacks(this_worker() or "of this process", problem, "", needs)


def this_worker() -> str | None:
    """Address and name of the worker that runs this task; None outside of a cluster's tasks."""
    if "distributed.worker" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:
        return None
    return repr(worker.address) if worker.name == worker.address else f"{worker.address!r} (name {worker.name!r})"


@contextlib.contextmanager
def cluster_errors() -> Iterator[None]:
    """Turn what distributed raises for a lost cluster into a `ClusterError`; errors of tasks stay as they are."""
    from distributed import CancelledError, KilledWorker
    from distributed.comm import CommClosedError

    try:
        yield
    except LazypertError:
        raise
    except KilledWorker as error:
        raise ClusterError(
            f"Several Dask workers died while they ran one task: {error} They may have had too little memory: give "
            "them more, or fewer threads each. What is finished is kept: run the same call again."
        ) from error
    except (CancelledError, CommClosedError) as error:
        raise ClusterError(
            f"The Dask cluster was lost ({type(error).__name__}: {error}). What is finished is kept: run the same call "
            "again, with a running cluster or without one."
        ) from error
