"""How far a long job is: an event for programs, a bar for people."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Report = Callable[["Progress"], None]

_PATIENCE = 1.0  # seconds before a bar shows: what is done by then needs none


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of a long job.

    Attributes
    ----------
    phase
        What is being done, such as ``"X: reading and sorting"``.
    done, total
        Tasks of this phase.
    n_bytes
        Bytes written in this phase so far.
    seconds
        Since this phase began.
    """

    phase: str
    done: int
    total: int
    n_bytes: int
    seconds: float


class Phase:
    """Counts the tasks of one phase and reports each."""

    def __init__(self, name: str, total: int, report: Report | None) -> None:
        self._name, self._total, self._report = name, total, report
        self._done = self._bytes = 0
        self._start = time.perf_counter()
        self._tell()

    def step(self, n_bytes: int) -> None:
        """One more task is done."""
        self._done, self._bytes = self._done + 1, self._bytes + n_bytes
        self._tell()

    def _tell(self) -> None:
        if self._report is not None:
            seconds = time.perf_counter() - self._start
            self._report(Progress(self._name, self._done, self._total, self._bytes, seconds))


class Bar:
    """A bar on a terminal with phase, share, bytes, rate and remaining time; silent elsewhere.

    Use as a context manager; call it with every `Progress`.
    """

    def __init__(self, file: Any = None) -> None:
        self._file = sys.stderr if file is None else file
        self._bars: Any = None
        self._task: Any = None
        self._phase = ""
        self._start = time.perf_counter()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, progress: Progress) -> None:
        """Show where the job is."""
        if not self._file.isatty() or time.perf_counter() - self._start < _PATIENCE:
            return
        if self._bars is None:
            self._bars = _bars(self._file)
            self._bars.start()
        if self._phase != progress.phase:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._phase = progress.phase
            self._task = self._bars.add_task(progress.phase, total=max(1, progress.total), size=0, rate="")
        rate = f"{progress.n_bytes / progress.seconds / 1e6:,.0f} MB/s" if progress.n_bytes else ""
        size = f"{progress.n_bytes / 1e6:,.0f} MB"
        self._bars.update(self._task, completed=progress.done, size=size, rate=rate)


def _bars(file: Any) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[size]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(file=file),
        transient=True,
    )
