"""Requests to object storage: many at a time, repeated if they fail, limited in time, and interruptible.

All run in one event loop in a daemon thread of this process. Whoever waits for them can be interrupted: Ctrl-C, a
loader that is closed, and the end of the interpreter cancel them instead of waiting for a server that hangs.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import itertools
import os
import random
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from lazypert.errors import StorageError
from lazypert.store.object_errors import may_pass, object_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

    from lazypert.store.storage_options import RequestOptions

T = TypeVar("T")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0  # seconds before a request is repeated
_MAX_TIMEOUTS = 2  # how often one request may exceed its time


class _Loop:
    """The event loop of this process, and what is under way in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._running: asyncio.AbstractEventLoop | None = None
        self.waiting: dict[int, set[concurrent.futures.Future[Any]]] = {}
        self.stopped: set[int] = set()
        self.is_closed = False

    def get(self) -> asyncio.AbstractEventLoop:
        """Return the loop, started when it is first needed; a forked process starts its own."""
        if self._pid != os.getpid():
            self._lock = threading.Lock()
            self._start()
        with self._lock:
            if self._running is None:
                self._running = asyncio.new_event_loop()
                threading.Thread(target=self._running.run_forever, name="lazypert-requests", daemon=True).start()
            return self._running


_LOOP = _Loop()


def start(work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Start requests, and return their future; it is cancelled when the calling thread is stopped."""
    if _LOOP.is_closed:
        work.close()
        raise StorageError("The read was stopped, because the interpreter is shutting down.")
    future = asyncio.run_coroutine_threadsafe(work, _LOOP.get())
    ident = threading.get_ident()
    of_thread = _LOOP.waiting.setdefault(ident, set())
    of_thread.add(future)
    future.add_done_callback(of_thread.discard)
    if ident in _LOOP.stopped:
        future.cancel()
    return future


def wait(future: concurrent.futures.Future[T]) -> T:
    """Wait for what `start` returned; a KeyboardInterrupt cancels it."""
    try:
        return future.result()
    except concurrent.futures.CancelledError:
        raise StorageError("The read was stopped before the storage answered.") from None
    except BaseException:
        future.cancel()
        raise


def run(work: Coroutine[Any, Any, T]) -> T:
    """Make requests, and wait for them."""
    return wait(start(work))


@contextlib.contextmanager
def stopping(threads: Iterable[threading.Thread]) -> Any:
    """Cancel the requests of threads that are about to be joined, and those that they make meanwhile."""
    idents = {thread.ident for thread in threads if thread.ident is not None}
    _LOOP.stopped |= idents
    try:
        for ident in idents:
            _cancel(ident)
        yield
    finally:
        _LOOP.stopped -= idents
        for ident in idents:
            _LOOP.waiting.pop(ident, None)


def _cancel(ident: int) -> None:
    for future in list(_LOOP.waiting.get(ident, ())):
        future.cancel()


def _close() -> None:
    _LOOP.is_closed = True
    for ident in list(_LOOP.waiting):
        _cancel(ident)


# Thread pools are joined before `atexit` functions run, and their threads may wait for a server that hangs.
getattr(threading, "_register_atexit", atexit.register)(_close)


class Requests:
    """Makes requests to one store. Thread-safe.

    Parameters
    ----------
    where
        URL of the store, for messages.
    options
        Limits.
    secrets
        Texts that no message may show.
    """

    def __init__(self, where: str, options: RequestOptions, secrets: tuple[str, ...]) -> None:
        self.where, self.options, self._secrets = where, options, secrets
        self._slots: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None

    async def make(self, key: str, request: Callable[[], Awaitable[T]]) -> T:
        """Make one request, and repeat it after a pause if it fails in a way that may pass.

        Raises
        ------
        StorageError
            If it fails for good; an error that says so is not chained to the library's, which may show credentials.
        FileNotFoundError
            If the request raises it.
        """
        n_timeouts = 0
        for attempt in itertools.count():
            try:
                async with self._semaphore():
                    return await asyncio.wait_for(request(), self.options.request_timeout)
            except FileNotFoundError:
                raise
            except Exception as error:  # noqa: BLE001 - each library raises types of its own
                n_timeouts += isinstance(error, TimeoutError)
                if n_timeouts >= _MAX_TIMEOUTS or attempt >= self.options.max_retries or not may_pass(error):
                    raise object_error(self.where, key, error, self._secrets) from None
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt)
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - not for cryptography
        raise AssertionError

    def _semaphore(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        if self._slots is None or self._slots[0] is not loop:  # after a fork there is another loop
            self._slots = loop, asyncio.Semaphore(self.options.max_connections)
        return self._slots[1]
