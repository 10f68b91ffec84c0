"""A Zarr store over a reader: what zarr reads then takes the same requests, and what is kept takes none."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest

from lazypert.store import requests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from lazypert.store.remote_reader import RemoteReader


class ReaderStore(Store):
    """The objects of a `RemoteReader`, read-only."""

    supports_writes = supports_deletes = False
    supports_partial_writes = False
    supports_listing = True

    def __init__(self, reader: RemoteReader) -> None:
        super().__init__(read_only=True)
        self.reader = reader

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReaderStore) and other.reader is self.reader

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return self.reader.where

    def __repr__(self) -> str:
        return f"ReaderStore({self.reader!r})"

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Read an object or part of it."""
        # zarr has an event loop of its own.
        body = await asyncio.wrap_future(requests.start(self.reader.get(key, byte_range)))
        return None if body is None else prototype.buffer.from_bytes(body)

    async def get_partial_values(self, prototype: Any, key_ranges: Iterable[tuple[str, Any]]) -> list[Any]:
        """Read parts of objects at once."""
        return await asyncio.gather(*(self.get(key, prototype, byte_range) for key, byte_range in key_ranges))

    async def exists(self, key: str) -> bool:
        """Whether an object exists."""
        return await asyncio.to_thread(self.reader.size, key) is not None

    async def set(self, key: str, value: Any) -> None:
        """Not possible."""
        raise NotImplementedError(f"{key}: the store is read-only.")

    async def delete(self, key: str) -> None:
        """Not possible."""
        raise NotImplementedError(f"{key}: the store is read-only.")

    async def set_partial_values(self, key_start_values: Any) -> None:
        """Not possible."""
        raise NotImplementedError("The store is read-only.")

    async def list(self) -> AsyncIterator[str]:
        """List all objects."""
        for key in await self._list(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """List objects whose keys start with a prefix."""
        for key in await self._list(prefix):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """List the members of a group."""
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        for name in dict.fromkeys(key[len(start) :].partition("/")[0] for key in await self._list(start)):
            yield name

    async def _list(self, prefix: str) -> Iterable[str]:
        return await asyncio.wrap_future(requests.start(self.reader.keys(prefix)))


def part_of(body: bytes, byte_range: Any) -> bytes:
    """Return the part of an object that Zarr asks for."""
    if isinstance(byte_range, RangeByteRequest):
        return body[byte_range.start : byte_range.end]
    if isinstance(byte_range, OffsetByteRequest):
        return body[byte_range.offset :]
    if isinstance(byte_range, SuffixByteRequest):
        return body[-byte_range.suffix :]
    return body
