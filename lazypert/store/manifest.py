"""The manifest: size and checksum of every file of a store, and digests that seal it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lazypert._internal.files import crc32_of
from lazypert.store.format import MARKER, TABLES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MANIFEST = f"{TABLES}/manifest"
MANIFEST_FILES = "manifest_files"
"""Root attribute: key, size and CRC-32 of the files that hold the manifest itself."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a store: its key, size in bytes and CRC-32.

    CRC-32 rather than CRC-32C: every chunk and shard index ends in its own CRC-32C, and the CRC of data
    followed by its own checksum is a constant, which would not distinguish two shards.
    """

    key: str
    size: int
    crc32: int


def match_files(folder: Path, entries: Iterable[Entry]) -> bool:
    """Whether the files of a folder exist and have the recorded sizes and checksums."""
    return all(crc32_of(folder / entry.key) == (entry.size, entry.crc32) for entry in entries)


def manifest_digest(entries: Iterable[Entry]) -> str:
    """SHA-256 of all entries, sorted by key."""
    lines = sorted(f"{entry.key}\t{entry.size}\t{entry.crc32}\n" for entry in entries)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def root_digest(metadata: dict[str, Any]) -> str:
    """SHA-256 of the parsed root metadata without its own digest."""
    ours = {k: v for k, v in metadata["attributes"][MARKER].items() if k != "root_digest"}
    sealed = metadata | {"attributes": metadata["attributes"] | {MARKER: ours}}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()
