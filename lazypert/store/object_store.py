"""Object storage as a Zarr store, opened by URL with obstore, or with fsspec where obstore does not serve."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazypert._internal.paths import shown_url
from lazypert.errors import ConfigError, near_matches
from lazypert.store.instance_credentials import require_credentials
from lazypert.store.storage_options import ObstoreOptions, for_obstore, own_options

if TYPE_CHECKING:
    from collections.abc import Mapping

_OBSTORE_PROTOCOLS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https")
_PACKAGES = dict.fromkeys(("s3", "s3a"), "s3fs") | dict.fromkeys(("gs", "gcs"), "gcsfs")
_PACKAGES |= dict.fromkeys(("az", "abfs", "abfss"), "adlfs") | dict.fromkeys(("http", "https"), "aiohttp")


def open_object_store(url: str, storage_options: Mapping[str, Any] | None = None, *, read_only: bool = True) -> Any:
    """Open a folder of object storage as a Zarr store; no request is made to it.

    Parameters
    ----------
    url
        Such as ``"s3://bucket/folder"``.
    storage_options
        Options of fsspec or of obstore; `lazypert.store.storage_options` lists those that both understand.
    read_only
        Refuse to write.

    Returns
    -------
    `zarr.storage.ObjectStore` if obstore is installed and knows the protocol and the options; its attribute ``store``
    is obstore's own. Otherwise `zarr.storage.FsspecStore`.

    Raises
    ------
    ConfigError
        If an option is unknown or has a wrong value, the protocol is unknown, or a package is missing.
    AccessDeniedError
        If there are no credentials for S3.
    """
    protocol = url.partition("://")[0].lower()
    _, options = own_options(storage_options)
    if protocol in _OBSTORE_PROTOCOLS and importlib.util.find_spec("obstore") is not None:
        translated = for_obstore(protocol, options)
        if translated is not None and not _needs_aws_files(protocol, translated):
            return _open_obstore(url, translated, read_only)
    return _open_fsspec(url, protocol, options, read_only)


def _needs_aws_files(protocol: str, options: ObstoreOptions) -> bool:
    """Whether credentials are in the files of the AWS command line, which s3fs reads and obstore does not."""
    if not protocol.startswith("s3") or importlib.util.find_spec("s3fs") is None:
        return False
    if options.config.get("skip_signature") or "access_key_id" in options.config or "AWS_ACCESS_KEY_ID" in os.environ:
        return False
    files = os.environ.get("AWS_SHARED_CREDENTIALS_FILE"), os.environ.get("AWS_CONFIG_FILE"), "~/.aws/credentials"
    return "AWS_PROFILE" in os.environ or any(Path(name).expanduser().exists() for name in files if name)


def _open_obstore(url: str, options: ObstoreOptions, read_only: bool) -> Any:
    from obstore.exceptions import BaseError
    from obstore.store import from_url
    from zarr.storage import ObjectStore

    scheme, _, rest = url.partition("://")
    if scheme.lower().startswith("s3"):
        require_credentials(shown_url(url), options.config)
    aliases = {"gcs": "gs", "s3a": "s3"}
    address = f"{aliases.get(scheme.lower(), scheme.lower())}://{rest}"
    try:
        opened = from_url(  # type: ignore[call-overload]
            address,
            config=options.config,
            client_options=options.client,
            retry_config={"max_retries": 0},  # requests are repeated by `lazypert.store.requests`
        )
    except (BaseError, ValueError, TypeError) as error:
        from lazypert.store.object_errors import plain

        raise ConfigError(
            f"store: got {shown_url(url)!r}, which cannot be opened with the storage_options {sorted(options.names)}: "
            f"{plain(error, options.secrets)}. Correct the URL or the options."
        ) from None  # the cause may show credentials
    return ObjectStore(opened, read_only=read_only)


def _open_fsspec(url: str, protocol: str, options: dict[str, Any], read_only: bool) -> Any:
    if importlib.util.find_spec("fsspec") is None:
        raise ConfigError(_missing(url, protocol, "fsspec"))
    import fsspec
    from zarr.storage import FsspecStore

    first = protocol.split("::")[0]
    known = {*fsspec.available_protocols(), *fsspec.registry}
    if first not in known:
        raise ConfigError(
            f"store: got {shown_url(url)!r}, whose protocol {first!r} is unknown. {near_matches(first, known)} "
            "Local stores are given by their path."
        )
    try:
        _require_known(url, protocol, options)
        return FsspecStore.from_url(url, storage_options=options, read_only=read_only)
    except ImportError:
        raise ConfigError(_missing(url, protocol, _PACKAGES.get(first, f"fsspec[{first}]"))) from None
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"store: got {shown_url(url)!r}, which cannot be opened with the storage_options {sorted(options)}: "
            f"{type(error).__name__}. Correct the names and types of the options. The store is not damaged."
        ) from None


def _require_known(url: str, protocol: str, options: dict[str, Any]) -> None:
    """Refuse options that a file system has not, where its signature says so and it would swallow them."""
    import inspect

    import fsspec

    if "::" in url:
        return  # options are given by protocol
    parameters = inspect.signature(fsspec.get_filesystem_class(protocol).__init__).parameters
    common = {"use_listings_cache", "listings_expiry_time", "max_paths", "skip_instance_cache", "asynchronous", "loop"}
    known = {*parameters, *common, "batch_size"} - {"self", "args", "kwargs"}
    if protocol in ("memory", "file", "local"):
        known |= {"auto_mkdir"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(
            f"storage_options: got the option {unknown[0]!r} for {shown_url(url)!r}, which it does not have. "
            f"{near_matches(unknown[0], sorted(known))}"
        )


def _missing(url: str, protocol: str, package: str) -> str:
    has_obstore = importlib.util.find_spec("obstore") is not None
    if has_obstore and protocol in _OBSTORE_PROTOCOLS:
        return (
            f"storage_options: {shown_url(url)!r} was given options that only {package} understands, which is not "
            f"installed. Install it: pip install {package}."
        )
    choice = f"obstore or {package}" if protocol in _OBSTORE_PROTOCOLS else package
    return (
        f"store: got {shown_url(url)!r}; reading {protocol!r} URLs needs {choice}, which is not installed. Install it: "
        f"pip install {choice.partition(' ')[0]}."
    )
