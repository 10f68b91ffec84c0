"""Clients of object storage: obstore, and fsspec for the URLs and options that obstore does not know."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TIMEOUT, _CONNECT_TIMEOUT = 60, 10  # seconds of one request
_PART_BYTES = 16 << 20  # larger objects are sent in parts

_OBSTORE_SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
_S3 = {
    "key": "access_key_id", "secret": "secret_access_key", "token": "session_token", "endpoint_url": "endpoint",
    "region_name": "region", "anon": "skip_signature", "requester_pays": "request_payer",
}  # fmt: skip
_AZURE = {
    "account_name": "account_name", "account_key": "account_key", "sas_token": "sas_key", "tenant_id": "tenant_id",
    "client_id": "client_id", "client_secret": "client_secret", "anon": "skip_signature",
}  # fmt: skip
_S3_NATIVE = ("access_key_id", "secret_access_key", "session_token", "endpoint", "region", "skip_signature",
              "virtual_hosted_style_request", "request_payer")  # fmt: skip


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
    """Requests to one bucket. Raises FileNotFoundError, FileExistsError, ObjectChangedError, and types of its own."""

    def path(self, key: str) -> str:
        """Path in the bucket of a key below the client's URL."""
        ...

    def path_of(self, url: str, key: str) -> str:
        """Path in the bucket of a key below another URL of it."""
        ...

    def put(self, path: str, data: bytes, only_new: bool) -> str | None: ...
    def get(self, path: str, start: int, stop: int | None, etag: str | None) -> bytes: ...
    def head(self, path: str) -> ObjectInfo: ...
    def list(self, prefix: str) -> list[ObjectInfo]: ...
    def delete(self, paths: Sequence[str]) -> None: ...
    def copy(self, path: str, to: str) -> None: ...
    def zarr_store(self) -> Any: ...


def open_client(url: str, options: Mapping[str, Any]) -> ObjectClient:
    """Return a client for the bucket of a URL."""
    scheme = url.partition("://")[0].lower()
    if find_spec("obstore") is not None and "?" not in url:
        kind = _OBSTORE_SCHEMES.get(scheme)
        if kind is not None:
            translated = _translated(kind, options)
            if translated is not None and (kind != "s3" or _has_credentials(translated) or not find_spec("s3fs")):
                return _Obstore(url, translated)
        elif scheme in ("http", "https") and not options:
            return _Obstore(url, {})
    return _Fsspec(url, options)


def _translated(kind: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return fsspec's options as those of obstore; None if one has no counterpart."""
    given = {name: value for name, value in options.items() if name != "client_kwargs"}
    given |= {k: v for k, v in dict(options.get("client_kwargs") or {}).items()}
    if kind == "gs":
        token = given.pop("token", None)
        if given.keys() - {"project"} or not (token is None or token == "anon" or isinstance(token, str)):
            return None
        return {} if token is None else {"skip_signature": True} if token == "anon" else {"service_account": token}
    names = {"s3": _S3 | dict.fromkeys(_S3_NATIVE, "")} if kind == "s3" else {"az": _AZURE}
    known = names[kind]
    if given.keys() - known.keys():
        return None
    return {known[name] or name: value for name, value in given.items() if value is not None and value is not False}


def _has_credentials(options: Mapping[str, Any]) -> bool:
    """Whether obstore finds credentials in the options or variables; s3fs also looks into the files of AWS's tools."""
    return bool({"access_key_id", "skip_signature"} & options.keys()) or "AWS_ACCESS_KEY_ID" in os.environ


class _Obstore:
    """Requests through obstore."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        from obstore.store import HTTPStore, from_url

        parts = urlsplit(url)
        bucket, self._is_azure = f"{parts.scheme}://{parts.netloc}", parts.scheme in ("abfs", "abfss", "az")
        self._prefix = parts.path.strip("/")
        endpoint = str(options.get("endpoint", url))
        client: Any = {"timeout": f"{_TIMEOUT}s", "connect_timeout": f"{_CONNECT_TIMEOUT}s"}
        if endpoint.startswith("http://"):
            client["allow_http"] = True
        retry: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=_TIMEOUT)}
        given: dict[str, Any] = {"client_options": client, "retry_config": retry, **options}
        if parts.scheme in ("s3", "s3a") and "endpoint" in options:
            given.setdefault("region", "us-east-1")  # servers of one's own seldom have regions

        def open_store(prefix: str) -> Any:
            if parts.scheme in ("http", "https"):
                return HTTPStore(f"{bucket}/{prefix}", **given)
            return from_url(f"{bucket.replace('s3a://', 's3://')}/{prefix}", **given)

        self._open = open_store
        self._store = open_store("")

    def path(self, key: str) -> str:
        return "/".join(part for part in (self._prefix, key) if part)

    def path_of(self, url: str, key: str) -> str:
        return f"{urlsplit(url).path.strip('/')}/{key}"

    def put(self, path: str, data: bytes, only_new: bool) -> str | None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        in_parts = len(data) > 2 * _PART_BYTES and not only_new
        mode: Any = "create" if only_new else "overwrite"
        try:
            done = obstore.put(self._store, path, data, mode=mode, use_multipart=in_parts, chunk_size=_PART_BYTES)
        except (AlreadyExistsError, PreconditionError) as error:
            raise FileExistsError(path) from error
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

    def zarr_store(self) -> Any:
        from zarr.storage import ObjectStore

        return ObjectStore(self._open(self._prefix), read_only=True)


def _info(found: Mapping[str, Any]) -> ObjectInfo:
    return ObjectInfo(found["path"], int(found["size"]), found["e_tag"], found["last_modified"])


class _Fsspec:
    """Requests through fsspec."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        from fsspec.core import url_to_fs

        self._url, self._options = url, options
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

    def put(self, path: str, data: bytes, only_new: bool) -> str | None:
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

    def zarr_store(self) -> Any:
        from zarr.storage import FsspecStore

        return FsspecStore.from_url(self._url, storage_options=dict(self._options), read_only=True)

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
