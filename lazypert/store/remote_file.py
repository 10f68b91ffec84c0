"""A file at a URL, in place of a `pathlib.Path`: it is read by ranges, and always the version that was opened."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from lazypert._internal.paths import shown_url
from lazypert.errors import SourceFormatError, SourceMissingError
from lazypert.store.object_clients import ObjectChangedError
from lazypert.store.object_folder import ObjectFolder
from lazypert.store.range_cache import RangeCache

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lazypert.store.object_clients import ObjectInfo


_ROOTS_OF_ZARR = ("zarr.json", ".zgroup")


class RemoteFile:
    """A file, or a Zarr store, at a URL. Picklable and thread-safe.

    Parameters
    ----------
    url
        Its URL, which may have a query, such as a signature.
    storage_options
        See `ObjectFolder`.

    Attributes
    ----------
    name
        Last part of the URL.
    size, etag, mtime_ns
        What the server says of it; 0 and None for a folder. Another file that takes its place is not read.

    Raises
    ------
    SourceMissingError
        If there is nothing.
    ConfigError, MachineError
        If the options are wrong, or the server does not answer.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.url, self._options = url, dict(storage_options or {})
        address, mark, query = url.partition("?")
        parent, _, last = address.rstrip("/").rpartition("/")
        self.name, self._key = unquote(last), last + mark + query
        self.objects = ObjectFolder(url, self._options)
        self._parent = ObjectFolder(parent, self._options) if not query else self.objects
        info = self._head()
        self._is_folder = info is None
        if info is None and (query or not any(self.objects.head(name) for name in _ROOTS_OF_ZARR)):
            raise SourceMissingError(
                f"{shown_url(url)!r} does not exist. Check the bucket and the path. Nothing was written."
            )
        self._keys: frozenset[str] | None = None
        self.size = 0 if info is None else info.size
        self.etag = None if info is None else info.etag
        self.mtime_ns = int(info.modified.timestamp() * 1e9) if info is not None and info.modified else 0

    def _head(self) -> ObjectInfo | None:
        return self._parent.head("" if self._parent is self.objects else self._key)

    def __repr__(self) -> str:
        return f"RemoteFile({str(self)!r})"

    def __str__(self) -> str:
        return shown_url(self.url)

    @property
    def stem(self) -> str:
        """Name without its last suffix."""
        return self.name.rpartition(".")[0] or self.name

    @property
    def suffix(self) -> str:
        """Last suffix of the name, such as ``".h5ad"``."""
        stem, dot, suffix = self.name.rpartition(".")
        return dot + suffix if stem else ""

    def is_file(self) -> bool:
        """Whether it is one file."""
        return not self._is_folder

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return self._is_folder

    def exists(self) -> bool:
        """Whether it existed when it was opened."""
        return True

    def resolve(self) -> RemoteFile:
        """Return the file itself."""
        return self

    def stamp(self) -> tuple[int, int]:
        """Size in bytes and time of the last change (ns)."""
        return self.size, self.mtime_ns

    def open(self, mode: str = "rb") -> io.RawIOBase:
        """Open the file for reading."""
        assert mode == "rb", mode
        return _OpenedFile(self)

    def keys(self) -> frozenset[str]:
        """Keys of the objects of a Zarr store, listed once."""
        if self._keys is None:
            self._keys = frozenset(self.objects.list())
        return self._keys

    def zarr_store(self) -> Any:
        """Open a Zarr store for reading."""
        return self.objects.zarr_store()

    def check_unchanged(self) -> None:
        """Raise `SourceFormatError` if another file is at the URL now."""
        info = None if self._is_folder else self._head()
        if info is not None and (info.size, info.etag) != (self.size, self.etag):
            raise self._changed()

    def read(self, start: int, stop: int, *, is_kept: bool = True) -> bytes:
        """Read from one offset to another.

        Parameters
        ----------
        is_kept
            Whether to keep what is read on the local disk, because it will be read again.
        """
        if is_kept:
            return self._cache().read(start, stop)
        return self.fetch(start, min(stop, self.size))

    @property
    def version(self) -> tuple[Any, ...]:
        """What tells this file from others, and from others that were at its URL."""
        return self.url, self.etag, *self.stamp()

    def _cache(self) -> RangeCache:
        with _CACHES_LOCK:
            cache = _CACHES.pop(self.version, None) or RangeCache(self.fetch, self.size)
            _CACHES[self.version] = cache  # the last in order
            while len(_CACHES) > _MOST_CACHES:
                del _CACHES[next(iter(_CACHES))]
            return cache

    def fetch(self, start: int, stop: int) -> bytes:
        """Ask the server for the bytes from one offset to another.

        Raises
        ------
        SourceFormatError
            If the file has changed since it was opened.
        """
        key = "" if self._parent is self.objects else self._key
        try:
            data = self._parent.get(key, start, stop, etag=self.etag)
        except (ObjectChangedError, FileNotFoundError):
            raise self._changed() from None
        if len(data) != stop - start:
            raise self._changed()
        return data

    def _changed(self) -> SourceFormatError:
        return SourceFormatError(
            f"{str(self)!r} changed while it was being converted, and the store would mix its old and new "
            "content. Convert it again when nothing is writing to it. No store was made."
        )


def as_remote(path: object) -> RemoteFile | None:
    """Return what stands in place of a path if it is a remote file, otherwise None."""
    return path if isinstance(path, RemoteFile) else None


_MOST_CACHES = 8
_CACHES: dict[tuple[Any, ...], RangeCache] = {}
"""What was read of the files used last: readers that are sent to another process share it there, task after task."""

_CACHES_LOCK = threading.Lock()


def forget(files: Iterable[Any]) -> None:
    """Delete what was kept of files on the local disk; other files and paths are left alone."""
    with _CACHES_LOCK:
        for file in files:
            if isinstance(file, RemoteFile):
                _CACHES.pop(file.version, None)


class _OpenedFile(io.RawIOBase):
    """A remote file that is open."""

    def __init__(self, file: RemoteFile) -> None:
        self._remote, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._remote.size}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, out: Any) -> int:
        view = memoryview(out).cast("B")
        data = self._remote.read(self._at, self._at + len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
