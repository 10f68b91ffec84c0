"""Readers of source files in a process of their own, which a damaged file may crash or keep busy for ever."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from lazypert.conversion.reader_process import CALL, GET, OPEN, read_message, write_message
from lazypert.converter import is_object, open_source
from lazypert.errors import MachineError, SourceFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lazypert.converter import BlockSpec, ScreenReader

_CODE = "import sys; sys.path[:] = {path!r}; from lazypert.conversion.reader_process import serve; serve()"
_PIPE_BYTES = 1 << 20
_LOOK_SECONDS = 1.0  # between looks at the progress of a request that is not answered
_ENDED_BY_SYSTEM = {
    name for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGXCPU") if hasattr(signal, name)
}  # fmt: skip


class Patience:
    """When a reader process counts as stuck; without answers, all of its requests stand still.

    Attributes
    ----------
    CPU_SECONDS
        Processor time without an answer or a byte read. Waiting for a slow disk takes none.
    FILE_SIZES, SPARE_BYTES
        Bytes read without an answer: times the size of the file, and in addition.
    """

    CPU_SECONDS = 120.0
    FILE_SIZES, SPARE_BYTES = 2, 16 << 30


class ReaderProcess:
    """A process that reads source files. Thread-safe; it ends with this object, or with the calling process."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", _CODE.format(path=sys.path)]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own code
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
        except OSError as error:
            raise MachineError(
                f"isolate: another Python process, {sys.executable!r}, cannot be started ({error}). Free some memory, "
                "or convert with isolate=False. Nothing was written."
            ) from error
        self._requests, self._answers = _raw(self._process.stdin), _raw(self._process.stdout)
        self._lock, self._pending, self._numbers = (
            threading.Lock(),
            dict[int, tuple[Future[Any], str]](),
            itertools.count(),
        )
        self._progress = _Progress(self._process.pid)
        self._verdict: Exception | None = None
        weakref.finalize(self, _end, self._process)
        me = weakref.ref(self)
        threading.Thread(target=_receive, args=(me, self._answers), name="lazypert reader", daemon=True).start()

    def __repr__(self) -> str:
        return f"ReaderProcess({self._process.pid})"

    def ask(self, path: Path, what: str, kind: str, number: int, *arguments: Any) -> Any:
        """Send a request, and return what it gives, or raise what it raises.

        Parameters
        ----------
        path
            The file that is read.
        what
            What is read of it, for errors.
        kind, number, arguments
            The request; see `lazypert.conversion.reader_process`.

        Raises
        ------
        SourceFormatError
            If the process crashes, or makes no progress.
        MachineError
            If something else ends it.
        """
        future: Future[Any] = Future()
        request, where = next(self._numbers), f"{what} of {str(path)!r}"
        with self._lock:
            self._pending[request] = future, where
            if not len(self._pending) - 1:
                self._progress.mark()
        try:
            with self._lock:
                write_message(self._requests, (request, kind, number, *arguments))
        except OSError:  # the process has ended, as the future will say
            self._fail()
        try:
            while True:
                try:
                    return future.result(timeout=_LOOK_SECONDS)
                except FutureTimeoutError:
                    if future.done():
                        raise
                    self._stop_if_stuck(path)
        finally:
            with self._lock:
                self._pending.pop(request, None)

    def kill(self) -> None:
        """End the process now; whatever it was asked fails."""
        self._process.kill()

    def _stop_if_stuck(self, path: Path) -> None:
        if (how := self._progress.why_stuck(path)) is not None:
            self._verdict = SourceFormatError(
                f"{{where}} cannot be read: the library that reads it {how}. The file is damaged in a way that the "
                "library does not notice; get it again. No store was made."
            )
            self.kill()

    def answered(self, request: int, is_value: bool, value: Any) -> None:
        """Take an answer."""
        self._progress.mark()
        with self._lock:
            future, _ = self._pending.pop(request, (None, ""))
        if future is not None:
            (future.set_result if is_value else future.set_exception)(value)

    def ended(self) -> None:
        """Fail all requests, because the process has ended."""
        self._fail()

    def _fail(self) -> None:
        status = self._process.wait()
        with self._lock:
            failed, self._pending = list(self._pending.values()), {}
        for future, where in failed:
            if not future.done():
                future.set_exception(self._error(status, where))

    def _error(self, status: int, where: str) -> Exception:
        if self._verdict is not None:
            return type(self._verdict)(str(self._verdict).format(where=where))
        name = signal.Signals(-status).name if -status in {*signal.Signals} else f"exit status {status}"
        if name in _ENDED_BY_SYSTEM:
            return MachineError(
                f"{where} was being read when the process that reads it was ended from outside ({name}), by the system "
                "if memory ran out. The file may be intact. Free some memory, or lower memory_limit, and run the same "
                "conversion again."
            )
        return SourceFormatError(
            f"{where} cannot be read: the library that reads it crashed ({name}). The file is damaged in a way that "
            "the library does not notice; get it again. No store was made."
        )


def _raw(file: Any) -> BinaryIO:
    with contextlib.suppress(ImportError, OSError, AttributeError):  # only Linux has it
        import fcntl

        fcntl.fcntl(file.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    raw: BinaryIO = file
    return raw


def _receive(process: weakref.ref[ReaderProcess], answers: BinaryIO) -> None:
    """Take answers until the process ends; its object may be gone before."""
    while True:
        try:
            answer = read_message(answers, lambda size: np.empty(size, np.uint8))
        except (EOFError, OSError, ValueError):
            break
        if (alive := process()) is None:
            return
        alive.answered(*answer)
        del alive, answer
    if (alive := process()) is not None:
        alive.ended()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for file in (process.stdin, process.stdout):
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


class _Progress:
    """What a process has read and computed since it last answered."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        self.mark()

    def mark(self) -> None:
        """Begin to count: a request was answered, or is the only one."""
        self._answered = self._seen = self._measure()

    def why_stuck(self, path: Path) -> str | None:
        """Say how the process makes no progress; None if it may."""
        n_read, seconds = self._measure()
        if n_read > self._seen[0]:
            self._seen = n_read, seconds
        if seconds - self._seen[1] > Patience.CPU_SECONDS:
            return f"computed for {Patience.CPU_SECONDS:.0f} s without reading anything"
        size = path.stat().st_size if path.is_file() else 0
        if n_read - self._answered[0] > Patience.FILE_SIZES * size + Patience.SPARE_BYTES:
            return f"read {n_read - self._answered[0]:,} bytes of a file of {size:,} bytes without an end"
        return None

    def _measure(self) -> tuple[int, float]:
        """Bytes read, and processor time in seconds; where the system does not say, 0 and the time."""
        try:
            counters = dict(line.split(": ") for line in (self._folder / "io").read_text().splitlines())
            times = (self._folder / "stat").read_text().rpartition(")")[2].split()[11:13]
            return int(counters["rchar"]), sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, KeyError):
            return 0, time.monotonic()


class IsolatedReader:
    """A `ScreenReader` whose file is opened in a reader process. Picklable: another process starts one of its own.

    Parameters
    ----------
    path
        The file.
    process
        Where to open it; None starts a process.
    """

    path: Path
    n_obs: int
    n_vars: int
    obs_columns: tuple[str, ...]
    matrices: dict[str, int]
    obsm: dict[str, int]
    not_carried: tuple[str, ...]

    def __init__(self, path: Path, process: ReaderProcess | None = None) -> None:
        self._process, self._number, self._source = process or ReaderProcess(), next(_numbers), path
        opened = self._process.ask(path, "the structure", OPEN, self._number, path)
        self._known, self._attributes, self._methods = opened
        self.__dict__.update(self._known)

    def __reduce__(self) -> tuple[Any, ...]:
        return IsolatedReader, (self._source,)

    def __repr__(self) -> str:
        return f"IsolatedReader({str(self._source)!r}, {self.n_obs:,} cells)"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while it is unpickled
            raise AttributeError(name)
        if name in self._methods:
            return functools.partial(self._call, name)
        if name in self._attributes:
            return self._process.ask(self._source, name, GET, self._number, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def blocks(self, matrix: str, max_bytes: int) -> list[BlockSpec]:
        """Blocks of half the size, because both processes hold a block while it is sent."""
        found: list[BlockSpec] = self._call("blocks", matrix, max(1, max_bytes // 2))
        return found

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        return self._process.ask(self._source, _described(name, args), CALL, self._number, name, args, options)


_numbers = itertools.count()


def _described(method: str, args: tuple[Any, ...]) -> str:
    """What a method of a reader reads, for errors."""
    if method == "read_block":
        spec = args[0]
        return f"{spec.matrix} ({spec.start:,} to {spec.stop:,})"
    name = str(args[0]) if args else ""
    known = {
        "obs_names": "the names of cells",
        "obs_column": f"obs/{name}",
        "var": "var",
        "raw_var": "raw/var",
        "read_obsm": f"obsm/{name}",
        "obsm_column": f"obsm/{name}",
    }
    return known.get(method, name or method)


def open_isolated(sources: Sequence[Any]) -> list[ScreenReader]:
    """Open files in one reader process; and what is in the memory of this one, here."""
    process = ReaderProcess()
    return [
        open_source(one) if is_object(one) or str(one).startswith("memory:") else IsolatedReader(one, process)
        for one in sources
    ]


@contextlib.contextmanager
def ended_by_interrupt(readers: list[Any]) -> Iterator[None]:
    """End the processes of isolated readers at once on Ctrl-C: tasks that wait for them would delay it."""
    processes = [reader._process for reader in readers if isinstance(reader, IsolatedReader)]
    before = signal.getsignal(signal.SIGINT)
    if not processes or not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupted(number: int, frame: Any) -> None:
        for process in processes:
            process.kill()
        before(number, frame)

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
