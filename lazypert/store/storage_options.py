"""Options of object storage: those of fsspec that users know, those of obstore, and lazypert's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lazypert.errors import ConfigError, near_matches

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """lazypert's own options among `storage_options`.

    Attributes
    ----------
    request_timeout
        Seconds that one request may take.
    max_retries
        How often a request that failed for a reason that may pass is repeated, after 0.1, 0.2, 0.4, ... seconds.
    max_connections
        Requests that one process has under way at a time.
    """

    request_timeout: float = 60.0
    max_retries: int = 5
    max_connections: int = 96


_OWN = tuple(RequestOptions.__dataclass_fields__)

# Names of fsspec's options (left) and of obstore's configuration (right); both are accepted.
_S3 = {
    "key": "access_key_id",
    "secret": "secret_access_key",
    "token": "session_token",
    "endpoint_url": "endpoint",
    "anon": "skip_signature",
    "requester_pays": "request_payer",
    "region_name": "region",
}
_S3_NATIVE = ("imdsv1_fallback", "virtual_hosted_style_request", "unsigned_payload", "s3_express", "checksum_algorithm")
_AZURE = {
    "account_name": "account_name",
    "account_key": "account_key",
    "sas_token": "sas_key",
    "tenant_id": "tenant_id",
    "client_id": "client_id",
    "client_secret": "client_secret",
    "anon": "skip_signature",
}
_AZURE_NATIVE = ("endpoint", "use_emulator", "use_fabric_endpoint", "bearer_token", "container_name")
_GOOGLE_NATIVE = ("service_account", "service_account_key", "service_account_path", "application_credentials")

# Options that only fsspec's file systems have: these then read the store.
_OF_FSSPEC = {
    "s3": (
        "profile config_kwargs s3_additional_kwargs session use_ssl username password default_block_size "
        "default_fill_cache default_cache_type version_aware cache_regions asynchronous loop max_concurrency "
        "fixed_upload_size"
    ),
    "gs": (
        "project token access consistency cache_timeout requester_pays session_kwargs loop asynchronous "
        "secure_serialize check_connection requests_timeout endpoint_url default_location"
    ),
    "az": (
        "connection_string credential location_mode account_host request_session socket_timeout blocksize "
        "default_fill_cache default_cache_type version_aware assume_container_exists"
    ),
    "http": "simple_links block_size same_scheme size_policy cache_type cache_options encoded asynchronous loop",
}
_FAMILY = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "https": "http"}


@dataclass(frozen=True, slots=True)
class ObstoreOptions:
    """What obstore is given."""

    config: dict[str, Any] = field(default_factory=dict, repr=False)
    client: dict[str, Any] = field(default_factory=dict, repr=False)
    names: tuple[str, ...] = ()

    @property
    def secrets(self) -> tuple[str, ...]:
        """Texts that no message may show."""
        return secrets_of(self.config)


def secrets_of(options: Any) -> tuple[str, ...]:
    """Texts among the values of options, however deep, that no message may show."""
    if isinstance(options, dict):
        return tuple(text for value in options.values() for text in secrets_of(value))
    if isinstance(options, list | tuple):
        return tuple(text for value in options for text in secrets_of(value))
    return (options,) if isinstance(options, str) and len(options) > 3 and "://" not in options else ()


def own_options(storage_options: Mapping[str, Any] | None) -> tuple[RequestOptions, dict[str, Any]]:
    """Separate lazypert's own options from those of the storage.

    Raises
    ------
    ConfigError
        If one has a wrong value.
    """
    options = dict(storage_options or {})
    own = {name: options.pop(name) for name in _OWN if name in options}
    for name, value in own.items():
        least = 0 if name == "max_retries" else 1 if name == "max_connections" else 0.001
        kinds = (int, float) if name == "request_timeout" else (int,)
        if isinstance(value, bool) or not isinstance(value, kinds) or value < least:
            raise ConfigError(
                f"storage_options: {name}: got {value!r}, expected "
                + ("a number of seconds." if name == "request_timeout" else f"an integer of at least {least}.")
            )
    return RequestOptions(**own), options


def for_obstore(protocol: str, options: Mapping[str, Any]) -> ObstoreOptions | None:
    """Translate options for obstore; None if they have a form that only fsspec understands.

    Raises
    ------
    ConfigError
        If neither knows an option.
    """
    family = _FAMILY.get(protocol, protocol)
    given = dict(options)
    nested = given.pop("client_kwargs", None) or {}
    given |= {name: nested[name] for name in ("endpoint_url", "region_name", "headers") if name in nested}
    if set(nested) - {"endpoint_url", "region_name", "headers"}:
        return None
    headers = given.pop("headers", None)
    given.pop("use_listings_cache", None), given.pop("skip_instance_cache", None)
    if family == "gs" and given.get("token") == "anon":
        given = {name: value for name, value in given.items() if name != "token"} | {"skip_signature": True}
    names = {"s3": _S3, "az": _AZURE}.get(family, {"anon": "skip_signature"} if family == "gs" else {})
    native = {"s3": _S3_NATIVE, "az": _AZURE_NATIVE, "gs": _GOOGLE_NATIVE}.get(family, ())
    understood = {*names, *names.values(), *native}
    unknown = sorted(set(given) - understood)
    if any(name in _OF_FSSPEC[family].split() for name in unknown):
        return None
    if unknown:
        known = sorted({*understood, *_OF_FSSPEC[family].split(), "client_kwargs", *_OWN})
        raise ConfigError(
            f"storage_options: got the option {unknown[0]!r} for {protocol!r} URLs, which have none of this name. "
            f"{near_matches(unknown[0], known)}"
        )
    config = {names.get(name, name): value for name, value in given.items() if value is not None}
    for name, value in config.items():
        if not isinstance(value, str | bool):
            raise ConfigError(
                f"storage_options: got a value of type {type(value).__name__} for {name!r}, expected text or a bool."
            )
    _require_address(config.get("endpoint"))
    for name in ("skip_signature", "request_payer"):
        if config.get(name) is False:
            del config[name]
    # The limit of a request is kept by `lazypert.store.requests`; this one only has to be longer.
    client: dict[str, Any] = {"timeout": "3600s", "pool_max_idle_per_host": "128"}
    if protocol == "http" or str(config.get("endpoint", "")).startswith("http://"):
        client["allow_http"] = True
    if headers:
        client["default_headers"] = dict(headers)
    return ObstoreOptions(config, client, tuple(options))


def _require_address(endpoint: Any) -> None:
    """Raise `ConfigError` unless the address of a server is a URL; obstore panics at some that are not."""
    try:
        parts = None if endpoint is None else urlsplit(str(endpoint))
        is_url = parts is None or (parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0)
    except ValueError:
        is_url = False
    if not is_url:  # which may hold a password
        raise ConfigError(
            "storage_options: endpoint_url: got a text that is not the URL of a server, expected one such as "
            "'https://storage.example.com:9000'."
        )
