"""Checking a store against its manifest, which detects every changed bit."""

from __future__ import annotations

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from lazypert._internal.files import crc32
from lazypert._internal.memory import cpu_count
from lazypert._internal.validation import named_options
from lazypert.errors import StoreDamagedError
from lazypert.progress import Bar, Phase
from lazypert.store.format import MARKER
from lazypert.store.manifest import MANIFEST, MANIFEST_FILES, Entry, manifest_digest, root_digest
from lazypert.store.requests import stopping
from lazypert.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zarr.abc.store import Store as ZarrStore

    from lazypert.progress import Progress, Report
    from lazypert.store.byte_reader import ByteReader

_BYTES_AT_ONCE = 8 * 1024**2
_MAX_LISTED = 10
_REMOTE_THREADS = 16  # they wait for the storage most of the time, and hold 8 MiB each


@named_options
def verify(
    store: str | Path | ZarrStore,
    *,
    storage_options: dict[str, Any] | None = None,
    progress: Callable[[Progress], None] | bool | None = None,
) -> int:
    """Read every file of a store and compare it with the manifest.

    If something is added to the store meanwhile, the new version is checked.

    Parameters
    ----------
    store
        Path or URL of a finished store, or a Zarr store that holds it.
    storage_options
        Options for URLs; `lazypert.open` explains them.
    progress
        Called with a `lazypert.progress.Progress` after every file. None shows a bar if stderr is a terminal; True
        shows one in any case that a bar can be shown; False shows none.

    Returns
    -------
    Number of files checked.

    Raises
    ------
    StoreNotFoundError
        If there is no finished store.
    StoreDamagedError
        If a file is missing, cut short, swapped or changed; the message lists them.
    StorageError
        If object storage does not answer, or refuses access.
    """
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(Bar()) if progress is None or progress is True else progress or None
        while True:
            opened = Store(store, storage_options)
            try:
                return _verify(opened, report)
            except StoreDamagedError:
                if Store(store, storage_options).attrs == opened.attrs:
                    raise


def _verify(opened: Store, report: Report | None) -> int:
    reader = opened.reader.fresh()
    try:
        metadata = json.loads(reader.read("zarr.json", 0, reader.size("zarr.json") or 0))
        manifest_entries = [Entry(*fields) for fields in opened.attrs[MANIFEST_FILES]]
        if problems := [found for entry in manifest_entries if (found := _problem(reader, entry))]:
            raise _damaged(opened.path, problems)
        entries = opened.read_manifest()
    except StoreDamagedError:
        raise
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _damaged(opened.path, [f"the manifest cannot be read ({error})"]) from error
    problems = []
    if root_digest(metadata) != metadata["attributes"][MARKER].get("root_digest"):
        problems.append("zarr.json: changed since it was written")
    if manifest_digest(entries) != opened.attrs["manifest_digest"]:
        problems.append(f"{MANIFEST}: changed since it was written")
    problems += _problems(opened, reader, entries, report)
    if problems:
        raise _damaged(opened.path, problems)
    return len(entries)


def _problems(opened: Store, reader: ByteReader, entries: list[Entry], report: Report | None) -> list[str]:
    """Check files in threads, which an interruption does not wait for."""
    phase = Phase("verifying", len(entries), report)
    pool = ThreadPoolExecutor(_REMOTE_THREADS if opened.is_remote else cpu_count())
    found = []
    try:
        for entry, problem in zip(entries, pool.map(lambda entry: _problem(reader, entry), entries), strict=True):
            phase.step(entry.size)
            found += [] if problem is None else [problem]
    except BaseException:
        with stopping(pool._threads):
            pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()
    return found


def _problem(reader: ByteReader, entry: Entry) -> str | None:
    crc = size = 0
    while len(data := reader.read(entry.key, size, min(_BYTES_AT_ONCE, entry.size + 1 - size))):
        crc, size = crc32(data, crc), size + len(data)
        if size >= entry.size + 1 or (size == entry.size and len(data) < _BYTES_AT_ONCE):
            break
    if size != entry.size or not size:
        found = reader.size(entry.key)
        if found is None:
            return f"{entry.key}: missing"
        if found != entry.size:
            return f"{entry.key}: got {found:,} bytes, expected {entry.size:,}"
    if crc != entry.crc32:
        return f"{entry.key}: its bytes changed since it was written"
    return None


def _damaged(store: str, problems: list[str]) -> StoreDamagedError:
    more = f"\n  and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
    return StoreDamagedError(
        f"The store {store!r} is damaged:\n  "
        + "\n  ".join(problems[:_MAX_LISTED])
        + more
        + "\nRestore these files from a copy, or convert the source again."
    )
