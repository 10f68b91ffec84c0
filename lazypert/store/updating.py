"""An update of a store at a URL that is not finished: the store is the old one, of which some objects are kept aside.

Objects cannot be renamed, and the last shard of an array has the same name before and after cells are appended. So the
objects that an update replaces are copied first; then the root metadata say that the copies count; then the objects are
replaced; and the new root metadata, which do not know the copies, make all of it the new version at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lazypert.store.content_checks import contradiction
from lazypert.store.format import MARKER
from lazypert.store.unfinished import CLAIM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

UPDATING = "updating"
"""Root attribute: the folder of the copies, the keys of their objects, and the elements that will be written again."""

FOLDER = "update.partial-"
"""Beginning of the name of a folder of copies, which is below the store's URL."""

GRACE, FRESH = 1.0, 0.5
"""Seconds that an update waits between new root metadata and what they permit to replace or delete; and for how long a
reader that has read them need not look whether there are others."""

PLAN = "plan.json"
"""Object in it: the keys that only the new version or only the old one has."""

_FOLDER = re.compile(rf"({re.escape(FOLDER)}[0-9a-f]{{12}})/")


def update_record(folder: str, objects: Sequence[str], replaced: Sequence[str]) -> dict[str, Any]:
    """Return the value of the root attribute."""
    return {"folder": folder, "objects": sorted(objects), "replaced": sorted(replaced)}


def folder_of(key: str) -> str | None:
    """Name of the folder of copies that an object is in, if it is in one."""
    found = _FOLDER.match(key)
    return None if found is None else found[1]


@dataclass(frozen=True, slots=True)
class KeptObjects:
    """Copies of objects, which are read in their place as long as they are there.

    Attributes
    ----------
    folder
        Where the copies are.
    keys
        Keys of the objects.
    replaced
        Elements that will be written again.
    """

    folder: str
    keys: frozenset[str]
    replaced: tuple[str, ...]

    @classmethod
    def of(cls, attrs: Mapping[str, Any]) -> KeptObjects | None:
        """Copies that the root attributes name; None if the store is not being updated.

        Raises
        ------
        StoreDamagedError
            If they do not name a folder of copies, or keys that are not within the store.
        """
        found = attrs.get(UPDATING)
        if found is None:
            return None
        fields = found if isinstance(found, dict) else {}
        folder, keys, replaced = fields.get("folder"), _keys(fields.get("objects")), _keys(fields.get("replaced"))
        if not isinstance(folder, str) or folder_of(f"{folder}/") != folder or keys is None or replaced is None:
            raise contradiction(
                "zarr.json",
                f"attribute {MARKER}/{UPDATING}: got {str(found)[:60]!r}, expected a 'folder' {FOLDER!r}<id>, and the "
                "lists 'objects' and 'replaced' of keys in the store",
            )
        return cls(folder, frozenset(keys), tuple(replaced))

    def place(self, key: str) -> str | None:
        """Key of the copy of an object, if there is one."""
        return f"{self.folder}/{key}" if key in self.keys else None


def overwritten_elements(attrs: Mapping[str, Any], known: Any) -> tuple[str, ...]:
    """Return the elements that may hold new values already, which do not fit the metadata of a reader.

    Parameters
    ----------
    attrs
        Root attributes of the store as they are now.
    known
        What they said of an update when the reader was opened: it reads the copies then.
    """
    now = KeptObjects.of(attrs)
    return () if now is None or attrs[UPDATING] == known else now.replaced


def _keys(found: Any) -> list[str] | None:
    """Return what should be a list of keys of a store, other than of the objects that tell its state; else None."""
    is_list = isinstance(found, list) and all(
        isinstance(key, str)
        and key not in ("zarr.json", CLAIM)
        and not key.startswith(FOLDER)
        and not {"", ".", ".."} & set(key.split("/"))
        for key in found
    )
    return found if is_list else None
