"""Clients of object storage: obstore, and fsspec for the URLs and options that obstore does not know."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from lazypert.store.object_store import open_object_store
from lazypert.store.storage_options import for_obstore, own_options, secrets_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lazypert.store.storage_options import ObstoreOptions, RequestOptions

_PART_BYTES = 16 << 20  # larger objects are sent in parts
_NOT_IMPLEMENTED = re.compile(r"501 Not Implemented|<Code>NotImplemented")
"""What servers say of conditions that they do not know."""


class ObjectChangedError(OSError):
    """An object is not the one that was opened."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a server says about an object.

    Attributes
    ----------
    path
        Its path in the bucket.
    etag
        What tells it from others that had its path, if the server says so.
    modified
        When it was written, if the server says so.
    """

    path: str
    size: int
    etag: str | None
    modified: datetime | None


class ObjectClient(Protocol):
    """Requests to one bucket. Raises FileNotFoundError, FileExistsError, ObjectChangedError, and types of its own.

    Attributes
    ----------
    secrets
        Texts that no message may show.
    attempts
        How often a request is made that fails for a reason that may pass.
    """

    secrets: tuple[str, ...]
    attempts: int

    def path(self, key: str) -> str:
        """Path in the bucket of a key below the client's URL."""
        ...

    def path_of(self, url: str, key: str) -> str:
        """Path in the bucket of a key below another URL of it."""
        ...

    def put(self, path: str, data: bytes, only_new: bool, etag: str | None) -> str | None:
        """Write an object, and return its ETag if it is known.

        With an `etag`, only in the place of an object that has it, where the library and the storage can make sure.
        """
        ...

    def get(self, path: str, start: int, stop: int | None, etag: str | None) -> bytes:
        """Read an object or a part of it, if it has this ETag."""
        ...

    def head(self, path: str) -> ObjectInfo:
        """Describe an object."""
        ...

    def list(self, prefix: str) -> list[ObjectInfo]:
        """Describe all objects whose path begins with a prefix."""
        ...

    def delete(self, paths: Sequence[str]) -> None:
        """Delete objects, if they exist."""
        ...

    def copy(self, path: str, to: str) -> None:
        """Copy an object within the bucket."""
        ...


def open_client(url: str, storage_options: Mapping[str, Any]) -> ObjectClient:
    """Return a client for the bucket of a URL.

    Raises
    ------
    ConfigError
        If the URL or an option is refused.
    """
    own, options = own_options(storage_options)
    if "?" not in url and not hasattr(open_object_store(url, storage_options), "fs"):
        translated = for_obstore(url.partition("://")[0].lower(), options)
        if translated is not None:
            return _Obstore(url, translated, own)
    return _Fsspec(url, options, own)


class _Obstore:
    """Requests through obstore."""

    def __init__(self, url: str, options: ObstoreOptions, own: RequestOptions) -> None:
        from obstore.store import from_url

        parts = urlsplit(url)
        scheme = {"s3a": "s3", "gcs": "gs"}.get(parts.scheme, parts.scheme)
        self.secrets, self.attempts = options.secrets, own.max_retries + 1
        self._prefix = parts.path.strip("/")
        self._has_etags = scheme != "gs"  # Google's conditions are numbers of generations
        limits: Any = {"timeout": f"{own.request_timeout:g}s", "connect_timeout": f"{min(own.request_timeout, 10):g}s"}
        given: dict[str, Any] = {"config": options.config, "client_options": options.client | limits}
        retries: Any = {"max_retries": 0}  # requests are repeated by `ObjectFolder`
        self._store: Any = from_url(f"{scheme}://{parts.netloc}", retry_config=retries, **given)

    def path(self, key: str) -> str:
        return "/".join(part for part in (self._prefix, key) if part)

    def path_of(self, url: str, key: str) -> str:
        return f"{urlsplit(url).path.strip('/')}/{key}"

    def put(self, path: str, data: bytes, only_new: bool, etag: str | None) -> str | None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        is_matched = etag is not None and self._has_etags and not etag.startswith("W/")
        in_parts = len(data) > 2 * _PART_BYTES and not only_new and not is_matched
        mode: Any = "create" if only_new else {"e_tag": etag} if is_matched else "overwrite"
        try:
            done = obstore.put(self._store, path, data, mode=mode, use_multipart=in_parts, chunk_size=_PART_BYTES)
        except (AlreadyExistsError, PreconditionError) as error:
            if is_matched:
                raise ObjectChangedError(path) from error
            raise FileExistsError(path) from error
        except BaseError as error:
            if is_matched and _NOT_IMPLEMENTED.search(str(error)):
                return self.put(path, data, only_new, None)
            raise
        return done["e_tag"]

    def get(self, path: str, start: int, stop: int | None, etag: str | None) -> bytes:
        import obstore
        from obstore.exceptions import PreconditionError

        options: Any = {}
        if stop is not None:
            options["range"] = (start, stop)
        elif start:
            options["range"] = {"offset": start}
        if etag is not None:
            options["if_match"] = etag
        try:
            return obstore.get(self._store, path, options=options).bytes().to_bytes()
        except PreconditionError as error:
            raise ObjectChangedError(path) from error

    def head(self, path: str) -> ObjectInfo:
        import obstore

        return _info(obstore.head(self._store, path))

    def list(self, prefix: str) -> list[ObjectInfo]:
        import obstore

        return [_info(found) for batch in obstore.list(self._store, prefix.strip("/")) for found in batch]

    def delete(self, paths: Sequence[str]) -> None:
        import obstore

        if paths:
            obstore.delete(self._store, list(paths))

    def copy(self, path: str, to: str) -> None:
        import obstore

        obstore.copy(self._store, path, to)


def _info(found: Mapping[str, Any]) -> ObjectInfo:
    return ObjectInfo(found["path"], int(found["size"]), found["e_tag"], found["last_modified"])


class _Fsspec:
    """Requests through fsspec."""

    def __init__(self, url: str, options: Mapping[str, Any], own: RequestOptions) -> None:
        from fsspec.core import url_to_fs

        self.secrets, self.attempts = secrets_of(dict(options)), own.max_retries + 1
        self._is_http = url.startswith(("http://", "https://"))
        self._files, self._prefix = url_to_fs(url, **{"use_listings_cache": False, **options})
        self._prefix = self._prefix.rstrip("/")

    def path(self, key: str) -> str:
        if not self._is_http:
            return "/".join(part for part in (self._prefix, key) if part)
        address, mark, query = self._prefix.partition("?")
        return "/".join(part for part in (address.rstrip("/"), key) if part) + mark + query

    def path_of(self, url: str, key: str) -> str:
        return f"{self._files._strip_protocol(url).rstrip('/')}/{key}"

    def put(self, path: str, data: bytes, only_new: bool, etag: str | None) -> str | None:  # noqa: ARG002 - fsspec has no such condition
        if only_new:
            if self._files.exists(path):
                raise FileExistsError(path)
            try:
                self._files.pipe_file(path, data, mode="create")
            except (TypeError, NotImplementedError, ValueError):  # this kind of storage has no such condition
                self._files.pipe_file(path, data)
        else:
            self._files.pipe_file(path, data)
        return None

    def get(self, path: str, start: int, stop: int | None, etag: str | None) -> bytes:  # noqa: ARG002
        whole = stop is None and not start
        return bytes(self._files.cat_file(path) if whole else self._files.cat_file(path, start=start, end=stop))

    def head(self, path: str) -> ObjectInfo:
        return self._described(path, self._files.info(path))

    def list(self, prefix: str) -> list[ObjectInfo]:
        found = self._files.find(prefix.rstrip("/"), withdirs=False, detail=True)
        return [self._described(path, info) for path, info in found.items()]

    def delete(self, paths: Sequence[str]) -> None:
        present = [path for path in paths if self._files.exists(path)]
        if present:
            self._files.rm(present)

    def copy(self, path: str, to: str) -> None:
        self._files.cp_file(path, to)

    def _described(self, path: str, info: Mapping[str, Any]) -> ObjectInfo:
        if info.get("type") == "directory" or info.get("size") is None:
            raise FileNotFoundError(path)
        modified = next(
            (info[name] for name in ("LastModified", "mtime", "last_modified", "created") if name in info), None
        )
        if isinstance(modified, int | float):
            modified = datetime.fromtimestamp(modified, UTC)
        etag = info.get("ETag") or info.get("etag")
        return ObjectInfo(path, int(info["size"]), etag, modified if isinstance(modified, datetime) else None)
