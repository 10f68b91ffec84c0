"""What was added to a store after its conversion, each with a digest of its own."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from lazypert.store.manifest import manifest_digest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from lazypert.store.manifest import Entry

ADDED = "added"
"""Root attribute: digest of every element that was added, by its path, such as ``"obs/guide"``."""

_METADATA = ("node_type", "attributes", "shape", "data_type")


def is_within(path: str, elements: Collection[str]) -> bool:
    """Whether a file or node belongs to one of some elements."""
    parts = path.split("/", 2)
    return path in elements or "/".join(parts[:2]) in elements


def element_digest(element: str, entries: Iterable[Entry], nodes: Mapping[str, Any]) -> str:
    """SHA-256 of the values, shapes, dtypes and attributes of an element.

    Parameters
    ----------
    element
        Its path.
    entries
        Manifest entries, at least of its files.
    nodes
        Metadata of groups and arrays by path, at least of its own.
    """
    files = [entry for entry in entries if is_within(entry.key, (element,)) and not entry.key.endswith("zarr.json")]
    found = {
        path: {name: node[name] for name in _METADATA if name in node}
        for path, node in nodes.items()
        if is_within(path, (element,))
    }
    return hashlib.sha256(f"{manifest_digest(files)}\n{json.dumps(found, sort_keys=True)}".encode()).hexdigest()


def combined_digest(content: str, added: Mapping[str, str], elements: Collection[str]) -> str:
    """Return the digest of a store's content, combined with those of the added elements that are used.

    Parameters
    ----------
    content
        Digest of what was converted.
    added
        Digest of every added element.
    elements
        Elements that are used. Those that were converted are part of `content`.
    """
    used = sorted(set(elements) & set(added))
    if not used:
        return content
    return hashlib.sha256("\n".join([content, *(f"{path}\t{added[path]}" for path in used)]).encode()).hexdigest()
