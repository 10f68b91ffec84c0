"""Where the files of a store that is being written go: into a folder, or into object storage.

Tasks take this to other processes, and write their shards where they belong.
"""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lazypert._internal.files import crc32, write_atomic
from lazypert.errors import MachineError
from lazypert.store.manifest import Entry, match_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from lazypert.store.object_folder import ObjectFolder

UPLOADS = 8
"""Objects that are sent, copied or asked for at the same time."""

_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


class StoreFiles(Protocol):
    """Writes files of a store; each appears complete or not at all. Picklable and thread-safe."""

    def write(self, key: str, buffers: Iterable[Any]) -> Entry:
        """Write one file, and return its size and checksum."""
        ...

    def holds(self, entries: Iterable[Entry]) -> bool:
        """Whether files that were written before are there and intact."""
        ...

    def take(self, folder: Path, *, is_taken: Callable[[str], bool]) -> list[Entry]:
        """Take files out of a folder, and return their sizes and checksums; nothing if they belong there."""
        ...


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """Files in a folder."""

    root: Path

    def write(self, key: str, buffers: Iterable[Any]) -> Entry:
        """Write one file."""
        return Entry(key, *write_atomic(self.root / key, buffers))

    def holds(self, entries: Iterable[Entry]) -> bool:
        """Whether the files have these sizes and checksums; they are read."""
        return match_files(self.root, entries)

    def take(self, folder: Path, *, is_taken: Callable[[str], bool]) -> list[Entry]:  # noqa: ARG002
        """Nothing: the folder is where files stay."""
        return []


@dataclass(frozen=True, slots=True)
class ObjectFiles:
    """Objects below a URL."""

    objects: ObjectFolder

    def write(self, key: str, buffers: Iterable[Any]) -> Entry:
        """Send one object, and compare what arrived."""
        data = b"".join(buffers)
        with_etag = self.objects.put(key, data)
        found = _MD5.fullmatch(with_etag or "")
        # Servers that encrypt give other ETags than the MD5: then only reading it again tells.
        is_same = found is None or found[1] == hashlib.md5(data, usedforsecurity=False).hexdigest()
        if not is_same and self.objects.get(key) != data:
            raise MachineError(
                f"{str(self.objects)!r}: {key} arrived with other bytes than were sent. Check the network, and run the "
                "same conversion again to resume."
            )
        return Entry(key, len(data), crc32(data))

    def holds(self, entries: Iterable[Entry]) -> bool:
        """Whether objects of these sizes exist: nobody else has written here, so their content is what was sent."""
        with ThreadPoolExecutor(UPLOADS) as pool:
            found = pool.map(lambda entry: (self.objects.head(entry.key), entry.size), entries)
            return all(info is not None and info.size == size for info, size in found)

    def take(self, folder: Path, *, is_taken: Callable[[str], bool]) -> list[Entry]:
        """Send files, and delete those of values from the folder."""
        keys = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())

        def send(key: str) -> Entry:
            entry = self.write(key, [(folder / key).read_bytes()])
            if not key.endswith("zarr.json"):  # small, and the root metadata repeat them
                (folder / key).unlink()
            return entry

        with ThreadPoolExecutor(UPLOADS) as pool:
            return list(pool.map(send, filter(is_taken, keys)))
