"""The manifest: size and checksum of every file of a store, and digests that seal it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lazypert.schema import MARKER, TABLES

if TYPE_CHECKING:
    from collections.abc import Iterable

MANIFEST = f"{TABLES}/manifest"
MANIFEST_FILES = "manifest_files"
"""Root attribute: key, size and CRC-32C of the files that hold the manifest itself."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a store: its key, size in bytes and CRC-32C."""

    key: str
    size: int
    crc32c: int


def manifest_digest(entries: Iterable[Entry]) -> str:
    """SHA-256 over all entries in the order of their keys."""
    lines = sorted(f"{entry.key}\t{entry.size}\t{entry.crc32c}\n" for entry in entries)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def root_digest(metadata: dict[str, Any]) -> str:
    """SHA-256 of the parsed root metadata without the digest itself."""
    ours = {k: v for k, v in metadata["attributes"][MARKER].items() if k != "root_digest"}
    sealed = metadata | {"attributes": metadata["attributes"] | {MARKER: ours}}
    return hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()
