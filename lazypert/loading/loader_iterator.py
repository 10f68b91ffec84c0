"""One iteration over an epoch of a loader: batches one after another, and the position that resumes it."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from lazypert.errors import StoreDamagedError
from lazypert.loading.state import Position

if TYPE_CHECKING:
    from collections.abc import Generator

    from lazypert.loading.batch import PerturbationBatch
    from lazypert.loading.loader import Loader


class LoaderIterator:
    """One iteration over an epoch. Threads may share it; each batch goes to one of them.

    `get_state` and `set_state` are what Grain expects of an iterator.
    """

    def __init__(self, loader: Loader, position: Position) -> None:
        self._loader, self._position = loader, position
        self._lock, self._process = threading.Lock(), os.getpid()
        self._batches: Generator[PerturbationBatch] | None = None

    def __iter__(self) -> LoaderIterator:
        return self

    def __next__(self) -> PerturbationBatch:
        if self._process != os.getpid():  # forked: go on with threads of this process
            self._lock, self._process, self._batches = threading.Lock(), os.getpid(), None
        with self._lock:
            if self._batches is None:
                self._loader._prepare_if_forked()
                self._batches = self._loader._batches(self._position)
            try:
                batch = next(self._batches)
            except StopIteration:
                raise
            except BaseException as error:
                self._batches = None  # the next call reads the same batch again: the storage may answer by then
                if isinstance(error, StoreDamagedError):  # as one that is deleted or replaced meanwhile seems to be
                    for store in self._loader.source.stores:
                        store.reader.check()
                raise
            self._position.step += 1
            return batch

    def __repr__(self) -> str:
        return f"LoaderIterator(epoch {self._position.epoch}, step {self._position.step} of {self._loader!r})"

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            # The loader refers to the same position if this is its latest iteration; so do their copies.
            return {"_loader": self._loader, "_position": self._position}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._batches, self._process = threading.Lock(), None, os.getpid()

    def __copy__(self) -> LoaderIterator:
        return LoaderIterator(self._loader, Position(self._position.epoch, self._position.step))

    def close(self) -> None:
        """Stop the background threads. The remaining batches are not read."""
        with self._lock:
            if self._batches is None:
                self._batches = self._loader._batches(self._position)
            self._batches.close()

    def get_state(self) -> dict[str, Any]:
        """Epoch and next step; see `Loader.state_dict`."""
        return self._loader._state(self._position)

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from where `get_state` was called."""
        restored = self._loader._restore(state)
        self.close()
        with self._lock:
            self._position.epoch, self._position.step = restored.epoch, restored.step
            self._batches = None
