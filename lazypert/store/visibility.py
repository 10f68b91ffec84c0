"""Whether the workers of a cluster see the stores that the client has opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lazypert._internal.cluster import Needs, check_workers
from lazypert.errors import LazypertError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lazypert.store.byte_reader import ByteReader

_ROOT = "zarr.json"


@dataclass(frozen=True, eq=False)
class OpenedStore:
    """A store that the client has opened, by the reader of its files."""

    reader: ByteReader

    def problem(self) -> str | None:
        """Return why the store cannot be read on this machine."""
        try:
            found = self.reader.size(_ROOT)
        except LazypertError as error:
            return f"cannot read the store: {str(error).rstrip('.')}"
        return f"cannot see the store of {self.reader!r}" if found is None else None


def check_stores(readers: Iterable[ByteReader]) -> None:
    """Check that every worker of the active client, if there is one, can read stores.

    Raises
    ------
    ClusterError
        If one cannot; it is named.
    """
    needs = [OpenedStore(reader) for reader in readers]
    advice = "Put the store on storage that every worker mounts at the same path, or stop that worker."
    check_workers(Needs.of(*needs, advice=advice))
