"""Progress of long jobs: events for programs, a bar for people."""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self, TextIO

    Report = Callable[["Progress"], None]

_DELAY = 1.0  # seconds before a bar appears: shorter jobs need none
_FORMAT = "{desc}: {percentage:3.0f}% |{bar}| {remaining} left{postfix}"


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a long job after one of its tasks has completed.

    Attributes
    ----------
    phase
        What is being done, such as ``"X: reading and sorting"``.
    done, total
        Number of completed tasks, and of all tasks, in this phase.
    n_bytes
        Bytes written in this phase so far.
    seconds
        Time since this phase started.
    """

    phase: str
    done: int
    total: int
    n_bytes: int
    seconds: float


class Phase:
    """Counts the completed tasks of one phase and reports each of them."""

    def __init__(self, name: str, total: int, report: Report | None) -> None:
        self._name, self._total, self._callback = name, total, report
        self._done = self._bytes = 0
        self._start = time.perf_counter()
        self._report()

    def __repr__(self) -> str:
        return f"<Phase {self._name!r}: {self._done} of {self._total} tasks>"

    def step(self, n_bytes: int) -> None:
        """Count one more completed task, which wrote `n_bytes`."""
        self._done, self._bytes = self._done + 1, self._bytes + n_bytes
        self._report()

    def _report(self) -> None:
        if self._callback is not None:
            seconds = time.perf_counter() - self._start
            self._callback(Progress(self._name, self._done, self._total, self._bytes, seconds))


class Bar:
    """Progress bar for terminals and Jupyter: phase, percentage, remaining time, bytes and rate.

    Use it as a context manager, and call it with each `Progress`. It appears after a second, disappears
    at the end, and prints nothing if the output is neither a terminal nor a notebook.

    Parameters
    ----------
    file
        Where to print on a terminal. Default: stderr.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = sys.stderr if file is None else file
        self._visible = self._file.isatty() or (file is None and _in_notebook())
        self._bar: Any = None
        self._phase = ""
        self._start = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __repr__(self) -> str:
        return f"<Bar: {self._phase or 'not started'}>"

    def __call__(self, progress: Progress) -> None:
        """Show the state of the job."""
        if not self._visible or time.perf_counter() - self._start < _DELAY:
            return
        size = f"{progress.n_bytes / 1e6:,.0f} MB"
        rate = f", {progress.n_bytes / progress.seconds / 1e6:,.0f} MB/s" if progress.n_bytes else ""
        if self._bar is None:
            self._bar = _tqdm()(
                desc=progress.phase,
                total=max(1, progress.total),
                file=self._file,
                leave=False,
                bar_format=_FORMAT,
                dynamic_ncols=True,
                smoothing=0,
            )
        self._bar.set_postfix_str(size + rate, refresh=False)
        is_new = progress.phase != self._phase
        if is_new:
            self._phase = progress.phase
            self._bar.set_description_str(progress.phase, refresh=False)
            self._bar.reset(total=max(1, progress.total))
            self._bar.start_t -= progress.seconds  # the phase may have started before the bar appeared
        self._bar.update(progress.done - self._bar.n)
        if is_new or progress.done == progress.total:  # `update` skips most of the steps
            self._bar.refresh()


def _in_notebook() -> bool:
    """Whether this process is a Jupyter kernel, as tqdm detects it."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = get_ipython() if get_ipython is not None else None
    return "IPKernelApp" in getattr(shell, "config", ())


def _tqdm() -> Any:
    """Return tqdm's bar for this environment: a widget in Jupyter if ipywidgets is installed, otherwise text."""
    from tqdm import TqdmWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # it asks the user to install ipywidgets
        from tqdm.auto import tqdm
    return tqdm
