"""The process in which source files are read, if a conversion isolates its readers; see `isolated_reader`.

It answers requests from its standard input on its standard output, several at a time. Arrays are sent as they are in
memory, so no copy of a block is made here.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import signal
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO

from lazypert._internal.memory import cpu_count, release_memory
from lazypert.errors import SourceFormatError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OPEN, CALL, GET = "open", "call", "get"
"""Kinds of requests: open a file, call a method of its reader, get an attribute of it."""

_HEAD, _LENGTH = struct.Struct("<QI"), struct.Struct("<Q")
_LARGE = 8 << 20  # bytes of an answer after which freed memory goes back to the system
_ORPHAN_SECONDS, _BEAT_SECONDS = 1_800, 60
_SHOWN_ATTRIBUTES = ("path", "n_obs", "n_vars", "obs_columns", "matrices", "obsm", "not_carried")


def write_message(file: BinaryIO, value: Any) -> int:
    """Write a value; the bytes of its arrays are not copied. Returns their number."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    file.write(_HEAD.pack(len(body), len(views)))
    for view in views:
        file.write(_LENGTH.pack(view.nbytes))
    file.write(body)
    for view in views:
        while len(view):  # one call writes at most as much as fits into the pipe
            view = view[file.write(view) :]
    return sum(buffer.raw().nbytes for buffer in buffers)


def read_message(file: BinaryIO, allocate: Callable[[int], Any]) -> Any:
    """Read a value that `write_message` wrote; arrays are received into buffers that `allocate` makes.

    Raises
    ------
    EOFError
        If the other process has ended.
    """
    length, n_buffers = _HEAD.unpack(_exactly(file, bytearray(_HEAD.size)))
    sizes = [_LENGTH.unpack(_exactly(file, bytearray(_LENGTH.size)))[0] for _ in range(n_buffers)]
    body = _exactly(file, bytearray(length))
    return pickle.loads(body, buffers=[_exactly(file, allocate(size)) for size in sizes])  # noqa: S301 - from our own process


def _exactly(file: BinaryIO, out: Any) -> Any:
    view = memoryview(out).cast("B")
    while len(view):
        n = file.readinto(view)  # type: ignore[attr-defined]  # raw files have it
        if not n:
            raise EOFError
        view = view[n:]
    return out


def serve() -> None:
    """Answer requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches this process too; the other one decides
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print must not get among the answers
    threading.Thread(target=_end_if_orphaned, daemon=True).start()
    server, pool = _Server(answers), ThreadPoolExecutor(cpu_count())
    try:
        while True:
            pool.submit(server.answer, *read_message(requests, bytearray))
    except EOFError:
        os._exit(0)  # a thread may be in a loop of a library, and would keep the process alive


def _end_if_orphaned() -> None:
    """End the process some time after a library has begun to loop while it holds the interpreter's lock.

    The other process ends it much sooner, unless it was killed.
    """
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        while True:
            faulthandler.dump_traceback_later(_ORPHAN_SECONDS, exit=True, file=nowhere)
            threading.Event().wait(_BEAT_SECONDS)


class _Server:
    """The readers that are open, by number."""

    def __init__(self, answers: BinaryIO) -> None:
        self._answers, self._lock, self._readers = answers, threading.Lock(), {}  # type: ignore[var-annotated]

    def answer(self, request: int, kind: str, number: int, *arguments: Any) -> None:
        """Carry out one request, and write what it gives or raises."""
        try:
            value = getattr(self, f"_{kind}")(number, *arguments)
            answer: tuple[int, bool, Any] = (request, True, value)
        except BaseException as error:  # noqa: BLE001 - raised in the other process
            answer = (request, False, error)
        with self._lock:
            try:
                n_bytes = write_message(self._answers, answer)
            except (pickle.PicklingError, TypeError, AttributeError) as error:
                n_bytes = write_message(self._answers, (request, False, _unpicklable(answer[2], error)))
        del answer
        if n_bytes > _LARGE:
            release_memory()

    def _open(self, number: int, path: Path) -> tuple[dict[str, Any], list[str], list[str]]:
        """Open a file: attributes that are asked for often, and the names of the other attributes and of methods."""
        from lazypert.converter import open_source

        reader = self._readers[number] = open_source(path)
        known = {name: getattr(reader, name) for name in _SHOWN_ATTRIBUTES}
        names = [name for name in dir(reader) if not name.startswith("_") and name not in known]
        methods = [name for name in names if callable(getattr(reader, name))]
        return known, sorted({*names} - {*methods}), methods

    def _call(self, number: int, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return getattr(self._readers[number], name)(*args, **options)

    def _get(self, number: int, name: str) -> Any:
        return getattr(self._readers[number], name)


def _unpicklable(value: Any, error: Exception) -> Exception:
    if isinstance(value, BaseException):
        return SourceFormatError(f"{type(value).__name__}: {value}")
    return TypeError(f"a reader returned {type(value).__name__}, which cannot be sent to another process ({error})")
