"""What object storage answers when something is wrong, as errors that say what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from lazypert.errors import ConfigError, LazypertError, MachineError

_LONGEST = 200  # characters of a server's words that an error repeats

_NO_BUCKET = re.compile(r"NoSuchBucket|bucket does not exist|ContainerNotFound", re.IGNORECASE)
_REGION = re.compile(r"PermanentRedirect|AuthorizationHeaderMalformed|IllegalLocationConstraint|301 Moved")
_DENIED = re.compile(
    r"\b40[13]\b|AccessDenied|Access Denied|Forbidden|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|"
    r"InvalidToken|Unauthori[sz]ed|NoCredentials|Unable to locate credentials|AuthenticationFailed|169\.254\.169\.254|"
    r"metadata\.google\.internal|Anonymous caller",
    re.IGNORECASE,
)

_REFUSED = re.compile(r"UnknownConfigurationKey|must be specified|Unable to recognise URL")


def shown_url(url: str) -> str:
    """Return a URL without what may be secret: a user and password, and its query, which may be a signature."""
    scheme, separator, rest = url.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    is_container = scheme.lower() in ("abfs", "abfss", "wasb", "wasbs")  # container@account
    return scheme + separator + (host if is_container else host.rpartition("@")[2]) + slash + path


def storage_error(name: str, url: str, error: BaseException, options: Mapping[str, Any]) -> Exception:
    """Return the error for a request that failed.

    Parameters
    ----------
    name
        The option that holds the URL.
    url
        What was asked for.
    error
        What the client library raised.
    options
        The storage options, of which no value is shown.
    """
    if isinstance(error, LazypertError | MemoryError):
        return error
    text, where = _text(error), repr(shown_url(url))
    said = f" ({_redacted(_first_line(error), options)})"
    if _NO_BUCKET.search(text):
        bucket = urlsplit(url).netloc.partition("@")[0]
        return ConfigError(
            f"{name}: got {where}, but there is no bucket {bucket!r}{said}. Correct the name, or create the bucket. If "
            "it is on another server, pass its address in storage_options."
        )
    if _REGION.search(text):
        return ConfigError(
            f"{name}: got {where}, whose bucket is in another region{said}. Pass the region in storage_options."
        )
    if isinstance(error, PermissionError) or _DENIED.search(text) or "Credential" in type(error).__name__:
        return ConfigError(
            f"{name}: access to {where} was refused{said}. Check the credentials in storage_options, or those of the "
            "environment, and what they permit. For public data, ask without credentials: "
            "storage_options={'anon': True}."
        )
    if isinstance(error, ImportError):
        return ConfigError(f"{name}: got {where}, which needs a package that is not installed: {error}.")
    if isinstance(error, TypeError | ValueError | KeyError | AttributeError) or _REFUSED.search(text):
        return ConfigError(
            f"{name}: got {where} with the storage options {sorted(options)}, which are refused{said}. Correct their "
            "names and values, or the URL."
        )
    return MachineError(
        f"{where} cannot be reached now{said}. Check the network, the address and the server, then try again."
    )


def _text(error: BaseException) -> str:
    """What an error says and is, with its causes."""
    parts: list[str] = []
    found: BaseException | None = error
    while found is not None and len(parts) < 8:
        parts.append(f"{type(found).__name__}: {found}")
        found = found.__cause__ or found.__context__
    return "\n".join(parts)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    code = re.search(r"<Code>(\w+)</Code>", str(error))
    text = f"{code[1]}" if code else text
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def _redacted(text: str, options: Mapping[str, Any]) -> str:
    for value in _texts(options):
        text = text.replace(value, "***")
    return re.sub(r"\?[^\s'\")]+", "?...", text)


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        if len(value) > 3 and "://" not in value:
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
