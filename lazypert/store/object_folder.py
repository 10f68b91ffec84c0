"""Objects below a URL, such as ``s3://bucket/screens``: put, get ranges of, list, copy and delete them.

obstore is used where it serves the URL and the options; fsspec otherwise.
"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from lazypert._internal.paths import shown_url
from lazypert.errors import ConfigError
from lazypert.store.object_clients import ObjectChangedError, ObjectInfo, open_client
from lazypert.store.object_errors import is_missing_bucket, may_pass, object_error
from lazypert.store.object_store import open_object_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from lazypert.store.object_clients import ObjectClient

T = TypeVar("T")

_FIRST_PAUSE = 0.25  # seconds; doubled after every failure
_AT_ONCE = 1000  # objects that one request deletes


class ObjectFolder:
    """Objects below a URL. Picklable and thread-safe; requests that fail are repeated a few times.

    Parameters
    ----------
    url
        ``scheme://bucket/prefix``.
    storage_options
        Credentials, addresses and other options, as fsspec or obstore name them. No error and no repr shows them.

    Raises
    ------
    ConfigError
        In the first request, if no installed package serves such URLs, or the options are refused.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.url, self._options = url.rstrip("/"), dict(storage_options or {})
        self._lock = threading.Lock()
        self._opened: ObjectClient | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.url, self._options)

    def __repr__(self) -> str:
        return f"ObjectFolder({shown_url(self.url)!r})"

    def __str__(self) -> str:
        return shown_url(self.url)

    def sibling(self, suffix: str) -> ObjectFolder:
        """Return the folder beside this one whose name has a suffix."""
        return ObjectFolder(self.url + suffix, self._options)

    def put(self, key: str, data: bytes, *, only_new: bool = False, etag: str | None = None) -> str | None:
        """Write an object at once: it appears complete or not at all; return its ETag if the server says it.

        Raises
        ------
        FileExistsError
            If `only_new`, and it exists.
        ObjectChangedError
            If the ETag of what it would replace is another one than `etag`, where the server can tell.
        """
        return self._request(key, lambda client, path: client.put(path, data, only_new, etag), verb="written")

    def get(self, key: str, start: int = 0, stop: int | None = None, *, etag: str | None = None) -> bytes:
        """Read an object, or a part of it.

        Raises
        ------
        FileNotFoundError
            If there is none.
        ObjectChangedError
            If its ETag is another one than `etag`, where the server can tell.
        """
        return self._request(key, lambda client, path: client.get(path, start, stop, etag))

    def head(self, key: str) -> ObjectInfo | None:
        """Describe an object; None if there is none."""
        try:
            return self._request(key, lambda client, path: client.head(path))
        except FileNotFoundError:
            return None

    def list(self) -> dict[str, ObjectInfo]:
        """Describe all objects below the URL, by their keys."""
        try:
            found = self._request("", lambda client, path: client.list(f"{path}/"))
        except FileNotFoundError:
            return {}
        n_skipped = len(self._client().path("")) + 1
        return {info.path[n_skipped:]: info for info in found if len(info.path) > n_skipped}

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that do not exist are left out."""
        paths = [self._client().path(key) for key in keys]
        for first in range(0, len(paths), _AT_ONCE):
            batch = paths[first : first + _AT_ONCE]
            self._request("", lambda client, _, batch=batch: client.delete(batch), verb="written")  # type: ignore[misc]

    def copy(self, key: str, to: ObjectFolder) -> None:
        """Copy an object to the same key of another folder of the bucket, within the storage."""
        self._request(key, lambda client, path: client.copy(path, client.path_of(to.url, key)), verb="written")

    def zarr_store(self) -> Any:
        """Return a Zarr store of the objects, for reading."""
        return open_object_store(self.url, self._options)

    def _client(self) -> ObjectClient:
        with self._lock:
            if self._opened is None:
                self._opened = open_client(self.url, self._options)
            return self._opened

    def _request(self, key: str, request: Callable[[ObjectClient, str], T], *, verb: str = "read") -> T:
        """Run a request, again after a pause if it failed for a reason that may pass."""
        client, pause = self._client(), _FIRST_PAUSE
        path = client.path(key)
        for attempt in range(client.attempts):
            try:
                return request(client, path)
            except (FileExistsError, ObjectChangedError):
                raise
            except Exception as error:  # noqa: BLE001 - each library raises types of its own
                found = object_error(str(self), key, error, client.secrets, verb=verb)
                is_absent = isinstance(error, FileNotFoundError) and verb == "read" and not is_missing_bucket(error)
                if is_absent or not may_pass(error) or attempt == client.attempts - 1:
                    raise FileNotFoundError(key) if is_absent else found from None  # the cause may show credentials
            time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - so that clients do not come back all at once
            pause *= 2
        raise AssertionError(path)


def _reopened(url: str, options: dict[str, Any]) -> ObjectFolder:
    return ObjectFolder(url, options)


def require_object_url(name: str, url: str) -> None:
    """Raise `ConfigError` unless a URL names something inside of a bucket."""
    _, _, rest = url.partition("://")
    bucket, _, key = rest.partition("?")[0].partition("/")
    if not bucket or not key.strip("/"):
        raise ConfigError(
            f"{name}: got {shown_url(url)!r}, expected the URL of something in a bucket, such as "
            "'s3://bucket/screen.zarr'. Nothing was written."
        )
