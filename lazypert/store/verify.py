"""Checking a store against its manifest, which detects every changed bit."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from lazypert._internal.files import crc32
from lazypert._internal.memory import cpu_count
from lazypert._internal.validation import named_options
from lazypert.errors import StoreDamagedError
from lazypert.store.format import MARKER
from lazypert.store.manifest import MANIFEST, MANIFEST_FILES, Entry, manifest_digest, root_digest
from lazypert.store.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from lazypert.store.byte_reader import ByteReader

_BYTES_AT_ONCE = 8 * 1024**2
_MAX_LISTED = 10


@named_options
def verify(store: str | Path, *, storage_options: dict[str, Any] | None = None) -> int:
    """Read every file of a store and compare it with the manifest.

    If something is added to the store meanwhile, the new version is checked.

    Parameters
    ----------
    store
        Path or URL of a finished store.
    storage_options
        Passed to fsspec for URLs.

    Returns
    -------
    Number of files checked.

    Raises
    ------
    StoreNotFoundError
        If there is no finished store.
    StoreDamagedError
        If a file is missing, cut short, swapped or changed; the message lists them.
    """
    while True:
        opened = Store(store, storage_options)
        try:
            return _verify(opened)
        except StoreDamagedError:
            if Store(store, storage_options).attrs == opened.attrs:
                raise


def _verify(opened: Store) -> int:
    try:
        metadata = json.loads(opened.reader.read("zarr.json", 0, opened.reader.size("zarr.json") or 0))
        manifest_entries = [Entry(*fields) for fields in opened.attrs[MANIFEST_FILES]]
        if problems := [found for entry in manifest_entries if (found := _problem(opened.reader, entry))]:
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
    with ThreadPoolExecutor(cpu_count()) as pool:
        problems += filter(None, pool.map(lambda entry: _problem(opened.reader, entry), entries))
    if problems:
        raise _damaged(opened.path, problems)
    return len(entries)


def _problem(reader: ByteReader, entry: Entry) -> str | None:
    size = reader.size(entry.key)
    if size is None:
        return f"{entry.key}: missing"
    if size != entry.size:
        return f"{entry.key}: got {size:,} bytes, expected {entry.size:,}"
    crc = 0
    for offset in range(0, size, _BYTES_AT_ONCE):
        crc = crc32(reader.read(entry.key, offset, min(_BYTES_AT_ONCE, size - offset)), crc)
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
