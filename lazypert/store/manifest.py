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

    Not CRC-32C: every chunk and index of a shard ends in its own CRC-32C, and over data followed by
    its own checksum a CRC is the same whatever the data are. It would tell no two shards apart.
    """

    key: str
    size: int
    crc32: int


def match_files(folder: Path, entries: Iterable[Entry]) -> bool:
    """Whether files of a folder are there with the bytes they had when they were written."""
    return all(crc32_of(folder / entry.key) == (entry.size, entry.crc32) for entry in entries)


def manifest_digest(entries: Iterable[Entry]) -> str:
    """SHA-256 over all entries in the order of their keys."""
    lines = sorted(f"{entry.key}\t{entry.size}\t{entry.crc32}\n" for entry in entries)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def root_digest(metadata: dict[str, Any]) -> str:
    """SHA-256 of the parsed root metadata without the digest itself."""
    ours = {k: v for k, v in metadata["attributes"][MARKER].items() if k != "root_digest"}
    sealed = metadata | {"attributes": metadata["attributes"] | {MARKER: ours}}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()
