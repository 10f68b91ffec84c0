"""An update of a store at a URL that is not finished: the store is the old one, of which some objects are kept aside.

Objects cannot be renamed, and the last shard of an array has the same name before and after cells are appended. So the
objects that an update replaces are copied first; then the root metadata say that the copies count; then the objects are
replaced; and the new root metadata, which do not know the copies, make all of it the new version at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

UPDATING = "updating"
"""Root attribute: the folder of the copies, the keys of their objects, and the elements that will be written again."""

FOLDER = "update.partial-"
"""Beginning of the name of a folder of copies, which is below the store's URL."""

PLAN = "plan.json"
"""Object in it: the keys that only the new version or only the old one has."""


def updating(folder: str, objects: Sequence[str], replaced: Sequence[str]) -> dict[str, Any]:
    """Return the value of the root attribute."""
    return {"folder": folder, "objects": sorted(objects), "replaced": sorted(replaced)}


@dataclass(frozen=True, slots=True)
class KeptObjects:
    """Copies of objects, which are read in their place as long as they are there.

    Attributes
    ----------
    folder
        Where the copies are.
    keys
        Keys of the objects.
    """

    folder: str
    keys: frozenset[str]

    @classmethod
    def of(cls, attrs: Mapping[str, Any]) -> KeptObjects | None:
        """Copies that the root attributes name; None if the store is not being updated."""
        found = attrs.get(UPDATING)
        if not isinstance(found, dict):
            return None
        return cls(str(found["folder"]), frozenset(found["objects"]))

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
    now = attrs.get(UPDATING)
    return () if not isinstance(now, dict) or now == known else tuple(now["replaced"])
