"""Reading byte ranges of objects: few requests, many at a time; small objects are kept, others optionally on disk."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import re
import threading
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any

from lazypert.store import requests
from lazypert.store.object_errors import is_missing_bucket, object_error, words_of
from lazypert.store.storage_options import RequestOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lazypert.store.byte_reader import ByteRange
    from lazypert.store.disk_cache import DiskCache
    from lazypert.store.updating import KeptObjects

_ROOT = "zarr.json"

_HELD_BYTES = 64 * 1024**2
"""Bytes of small objects that a reader keeps."""

LARGEST_REQUEST = 8 * 1024**2
"""Longer ranges are read by several requests at a time."""


_BEYOND = re.compile(r"\b416\b|range ?not ?satisfiable|InvalidRange|Range started at", re.IGNORECASE)
"""What servers say of a range that begins beyond the end of an object."""


def _open(store: Any) -> None:
    from zarr.storage import StorePath

    requests.run(StorePath.open(store, ""))


class RemoteReader:
    """Objects of any Zarr store: object storage, memory, ZIP files, sessions of Icechunk. Thread-safe and picklable.

    Parameters
    ----------
    store
        The Zarr store.
    where
        Its URL, for messages.
    options
        Limits of requests.
    secrets
        Texts that no message may show.
    cache
        Keeps what was read on disk; None for no cache.
    kept
        Objects of which an unfinished update keeps copies, which are read in their place.
    """

    coalescing_gap = 256 * 1024  # a request's latency equals the transfer time of a few hundred kilobytes

    def __init__(
        self,
        store: Any,
        where: str = "",
        options: RequestOptions | None = None,
        secrets: tuple[str, ...] = (),
        cache: DiskCache | None = None,
        kept: KeptObjects | None = None,
    ) -> None:
        self.store, self.where, self.cache, self.kept = store, where, cache, kept
        self._arguments = store, where, options, secrets, cache, kept
        _open(store)  # stores open themselves at their first request, but not if several come at once
        self._requests = requests.Requests(where, options or RequestOptions(), secrets)
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteReader, self._arguments

    def __repr__(self) -> str:
        return f"RemoteReader({self.where or type(self.store).__name__!r})"

    # What every reader does.

    @property
    def has_files(self) -> bool:
        """Whether objects are kept in local files, which can be opened."""
        return self.cache is not None

    @property
    def file_offset(self) -> int:
        """Offset of an object's bytes in the file that `open_files` opens."""
        return 0 if self.cache is None else self.cache.HEADER

    def size(self, key: str) -> int | None:
        """Size of an object in bytes, or None."""
        is_held, body = self._lookup(key)
        if is_held:
            return None if body is None else len(body)
        for place in self._places(key):
            with contextlib.suppress(FileNotFoundError):
                return int(requests.run(self._requests.make(key, partial(self.store.getsize, place))))
        return None

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Read part of an object."""
        out = bytearray(length)
        (n_read,) = self.read_ranges([(key, offset, length)], memoryview(out))
        return bytes(out[:n_read])

    def read_tails(self, keys: Sequence[str], length: int) -> list[tuple[bytes | None, int | None]]:
        """Last bytes of objects, all read at once."""
        found: dict[str, tuple[bytes | None, int | None]] = {}
        for key in keys:
            is_held, body = self._lookup(key)
            if is_held:
                found[key] = (None, None) if body is None else (body[-length:], len(body))
        missing = [key for key in keys if key not in found]
        if missing:
            from zarr.abc.store import SuffixByteRequest

            tails = requests.run(self._gather([(key, SuffixByteRequest(length)) for key in missing]))
            for key, tail in zip(missing, tails, strict=True):
                found[key] = tail, None
        return [found[key] for key in keys]

    def kept_tails(self, keys: Sequence[str]) -> dict[str, bytes]:
        """Return the last bytes of those objects whose cache has them."""
        if self.cache is None:
            return {}
        return {key: tail for key in keys if (tail := self.cache.load(f"{key}#tail")) is not None}

    def keep_tails(self, tails: dict[str, bytes]) -> None:
        """Keep the last bytes of objects in the cache, after a check that they are of the version that was opened."""
        if self.cache is not None:
            for key, tail in tails.items():
                self.cache.save(f"{key}#tail", tail)

    def read_ranges(self, ranges: Sequence[ByteRange], out: memoryview) -> list[int]:
        """Read parts of objects, all at once."""
        waiting = [self.start(one) for one in ranges]
        counts, at = [], 0
        try:
            for future, (_, _, length) in zip(waiting, ranges, strict=True):
                body = (requests.wait(future) or b"")[:length]
                out[at : at + len(body)] = body
                counts.append(len(body))
                at += length
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
        return counts

    def start(self, byte_range: ByteRange) -> concurrent.futures.Future[bytes | None]:
        """Start to read part of an object: None if it does not exist."""
        key, offset, length = byte_range
        is_held, body = self._lookup(key)
        if not is_held:
            return requests.start(self._range(*byte_range))
        known: concurrent.futures.Future[bytes | None] = concurrent.futures.Future()
        known.set_result(None if body is None else body[offset : offset + length])
        return known

    def open_files(self, keys: Sequence[str], ranges: Sequence[ByteRange] = ()) -> list[int]:
        """Read ranges into the cache, and open its files; the caller closes the descriptors."""
        if self.cache is None:
            raise NotImplementedError(f"keys: got {list(keys[:1])!r}, expected files. Objects cannot be opened.")
        return self.cache.open_files(keys, ranges, self._fetch_many)

    def _fetch_many(self, ranges: Sequence[ByteRange]) -> list[bytes | None]:
        async def fetch() -> list[bytes | None]:
            return await asyncio.gather(*(self._range(*one) for one in ranges))

        return requests.run(fetch())

    # Small objects.

    def hold(self, keys: Sequence[str]) -> list[str]:
        """Read whole objects with one request each, all at once, and keep them in memory.

        Returns
        -------
        Keys of those that were requested, for `save_held` after a check that they are of the version that was opened.
        """
        missing = self.not_held(keys)
        if self.cache is not None:
            for key in missing:
                if (kept := self.cache.load(key)) is not None:
                    self._keep(key, kept)
            missing = self.not_held(missing)
        if not missing:
            return []
        for key, body in zip(missing, requests.run(self._gather([(key, None) for key in missing])), strict=True):
            if body is not None:
                self._keep(key, body)
        return missing

    def save_held(self, keys: Sequence[str]) -> None:
        """Keep objects in the cache that are kept in memory."""
        if self.cache is not None:
            for key in keys:
                _, body = self._lookup(key)
                if body is not None:
                    self.cache.save(key, body)

    def forget(self, keys: Sequence[str]) -> None:
        """Keep some objects no more in memory: they may not be those of the store that was opened."""
        with self._lock:
            for key in keys:
                self._held_bytes -= len(self._held.pop(key, b""))

    def not_held(self, keys: Sequence[str]) -> list[str]:
        """Return those of some objects that are not kept in memory."""
        with self._lock:
            return [key for key in keys if key not in self._held]

    def provide(self, bodies: dict[str, bytes]) -> None:
        """Keep small objects that were read together with others."""
        for key, body in bodies.items():
            self._keep(key, body)

    def fetch_whole(self, key: str) -> bytes | None:
        """Read an object as it is now, whatever is kept."""
        body: bytes | None = requests.run(self._gather([(key, None)]))[0]
        return body

    def _keep(self, key: str, body: bytes) -> bytes:
        with self._lock:
            if key not in self._held:
                self._held[key] = body
                self._held_bytes += len(body)
            while self._held_bytes > _HELD_BYTES and len(self._held) > 1:
                _, dropped = self._held.popitem(last=False)
                self._held_bytes -= len(dropped)
        return body

    def _lookup(self, key: str) -> tuple[bool, bytes | None]:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return True, self._held[key]
        return False, None

    # Requests.

    async def _gather(self, wanted: Sequence[tuple[str, Any]]) -> list[bytes | None]:
        return await asyncio.gather(*(self._get(key, byte_range) for key, byte_range in wanted))

    async def _range(self, key: str, offset: int, length: int) -> bytes | None:
        """Part of an object: fewer bytes at its end, None if it does not exist; long ones by several requests."""
        from zarr.abc.store import RangeByteRequest

        if length <= 0:
            return b""
        starts = range(offset, offset + length, LARGEST_REQUEST)
        parts = await self._gather(
            [(key, RangeByteRequest(at, min(at + LARGEST_REQUEST, offset + length))) for at in starts]
        )
        if len(parts) == 1:
            return parts[0]
        return None if parts[0] is None else b"".join(part or b"" for part in parts)

    def _places(self, key: str) -> list[str]:
        """Where an object is: first its copy, which is there until an unfinished update is complete or undone."""
        copy = None if self.kept is None else self.kept.place(key)
        return [key] if copy is None else [copy, key]

    async def _get(self, key: str, byte_range: Any) -> bytes | None:
        from zarr.core.buffer import default_buffer_prototype

        async def get(place: str) -> Any:
            try:
                if not self.store._is_open:  # a ZIP file; zarr has no public name for it
                    await self.store._open()
                return await self.store.get(place, default_buffer_prototype(), byte_range=byte_range)
            except FileNotFoundError:
                return None
            except Exception as error:
                if byte_range is not None and _BEYOND.search(words_of(error)):
                    return default_buffer_prototype().buffer.from_bytes(b"")
                raise

        for place in self._places(key):
            found = await self._requests.make(key, partial(get, place))
            if found is not None:
                return found.to_bytes()
        return None

    # What zarr reads.

    async def get(self, key: str, byte_range: Any) -> bytes | None:
        """Read an object or part of it, from what is kept if possible."""
        is_held, body = self._lookup(key)
        if is_held and body is not None:
            from lazypert.store.reader_store import part_of

            return part_of(body, byte_range)
        return await self._get(key, byte_range)

    async def keys(self, prefix: str) -> list[str]:
        """List objects."""

        async def list_all() -> list[str]:
            return [key async for key in self.store.list_prefix(prefix)]

        return await self._requests.make(prefix or "/", list_all)

    # Versions of the store.

    def check(self) -> None:
        """Objects alone do not know."""

    def fresh(self) -> RemoteReader:
        """Return a reader that keeps nothing."""
        store, where, options, secrets, _, kept = self._arguments
        return RemoteReader(store, where, options, secrets, kept=kept)

    def root_identity(self) -> Any:
        """Return what tells versions of the root metadata apart, or None; it does not read them if possible."""
        opened = self._of_obstore()
        if opened is None:
            return self.fetch_whole("zarr.json")
        import obstore

        try:
            return _identity(requests.run(self._requests.make(_ROOT, lambda: obstore.head_async(opened, _ROOT))))
        except FileNotFoundError:
            return None

    def root_metadata(self) -> bytes | None:
        """Read the root metadata as they are now."""
        return self.read_root()[0]

    def read_root(self) -> tuple[bytes | None, Any]:
        """Read the root metadata as they are now, with what `root_identity` returns of them.

        Raises
        ------
        StorageError
            If they cannot be read, or there is no such bucket.
        """
        opened = self._of_obstore()
        if opened is None:
            body = self.fetch_whole(_ROOT)
            return body, body
        import obstore

        async def get() -> tuple[bytes, Any]:
            found = await obstore.get_async(opened, _ROOT)
            return (await found.bytes_async()).to_bytes(), _identity(found.meta)

        try:
            return requests.run(self._requests.make(_ROOT, get))
        except FileNotFoundError as error:
            if is_missing_bucket(error):
                raise object_error(self.where, _ROOT, error) from None
            return None, None

    def _of_obstore(self) -> Any:
        from zarr.storage import ObjectStore

        return self.store.store if isinstance(self.store, ObjectStore) else None


def _identity(meta: Any) -> Any:
    return meta["e_tag"] or (str(meta["last_modified"]), meta["size"])
