"""Root metadata of a store at a URL, which are replaced only if nothing else has replaced them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lazypert.conversion.target_claim import ROOT
from lazypert.errors import LazypertError, MachineError
from lazypert.store.format import MARKER
from lazypert.store.manifest import root_digest
from lazypert.store.object_clients import ObjectChangedError

if TYPE_CHECKING:
    from lazypert.store.object_folder import ObjectFolder


def sealed(metadata: dict[str, Any]) -> bytes:
    """Encode root metadata as `ArrayWriter.write_root` does, with their own digest."""
    metadata["attributes"][MARKER]["root_digest"] = root_digest(metadata)
    return json.dumps(metadata, indent=1).encode()


def end_of(text: bytes) -> bytes:
    """Line ends at the end of a text."""
    return text[len(text.rstrip(b"\n")) :]


def etag_of_root(objects: ObjectFolder, expected: bytes) -> str | None:
    """ETag of root metadata, if the storage has such.

    Raises
    ------
    MachineError
        If they are others than expected.
    """
    info = objects.head(ROOT)
    if info is None or _read(objects) != expected:
        raise _changed(objects)
    return info.etag


def replace_root(objects: ObjectFolder, data: bytes, etag: str | None) -> str | None:
    """Replace root metadata that have an ETag, and return that of the new ones.

    Raises
    ------
    MachineError
        If they have another one, where the storage can tell, or cannot be written.
    """
    try:
        return objects.put(ROOT, data, etag=etag)
    except (LazypertError, ObjectChangedError) as error:
        if _read(objects) == data:  # an answer was lost
            return etag_of_root(objects, data)
        if isinstance(error, ObjectChangedError):
            raise _changed(objects) from None
        raise


def _read(objects: ObjectFolder) -> bytes | None:
    try:
        return objects.get(ROOT)
    except FileNotFoundError:
        return None


def _changed(objects: ObjectFolder) -> MachineError:
    return MachineError(
        f"store: something else has replaced or deleted the root metadata of {str(objects)!r} during this update, "
        "which was given up. Check the store with lazypert.verify, then update it again."
    )
