"""Errors of object storage: each kind says what happened and what to do; none shows credentials."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lazypert.errors import AccessDeniedError, ConfigError, LazypertError, StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_LONGEST = 300  # characters of a library's message

_ADDRESS = re.compile(r"(\w+://[^\s/:?]+)[^\s\"')]*")
_DURATION = re.compile(r"\b\d+(\.\d+)?\s?([mnuµ]?s|seconds?)\b")  # such as "in 301.9µs"

_NO_CREDENTIALS = re.compile(
    r"no ?credentials|unable to locate credentials|169\.254\.169\.254|metadata\.google|InstanceCredential"
    r"|failed to get credentials|default credentials|MissingAuthentication|Anonymous caller",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\b40[13]\b|forbidden|unauthori[sz]ed|access ?denied|InvalidAccessKeyId|SignatureDoesNotMatch|permission"
    r"|InvalidToken|ExpiredToken|authenticat",
    re.IGNORECASE,
)
_NO_BUCKET = re.compile(r"NoSuchBucket|bucket does not exist|ContainerNotFound|bucket is not found", re.IGNORECASE)
_REGION = re.compile(r"PermanentRedirect|AuthorizationHeaderMalformed|\b301\b|wrong region|BareRedirect", re.IGNORECASE)
_UNREACHABLE = re.compile(
    r"connection refused|could not connect|cannot connect|failed to lookup|name or service|dns error|unreachable"
    r"|error trying to connect|tcp connect error|EndpointConnection|connect call failed|nodename|ConnectError",
    re.IGNORECASE,
)
_SLOW = re.compile(r"timed? ?out|deadline|too slow", re.IGNORECASE)
_BUSY = re.compile(
    r"\b5\d\d\b|slow ?down|internal ?error|service ?unavailable|too many requests|\b429\b|reset by peer|connection"
    r"|closed|incomplete|body|broken pipe|disconnected|error sending request|eof|payload|HTTP error|bytes read"
    r"|SendRequest|InternalServer",
    re.IGNORECASE,
)


def plain(error: BaseException, secrets: Sequence[str] = ()) -> str:
    """Return the message of a library's error: one line, short, without credentials and signed URLs."""
    texts = [f"{type(cause).__name__}: {_message(cause)}" for cause in _causes(error)[:4]]
    text = " ".join("; ".join(texts).split())
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    text = re.sub(r"(https?://[^\s?\"')]+)\?[^\s\"')]*", r"\1", text)
    text = re.sub(r"(://)[^/@\s]+@", r"\1***@", text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def may_pass(error: BaseException) -> bool:
    """Whether a request that failed like this may succeed when it is repeated."""
    if isinstance(error, LazypertError | MemoryError | FileNotFoundError | TypeError | AttributeError):
        return False
    text = words_of(error)
    if _NO_CREDENTIALS.search(text) or _NO_BUCKET.search(text) or _REGION.search(text):
        return False
    if isinstance(error, PermissionError) or (_DENIED.search(text) and not re.search(r"\b5\d\d\b", text)):
        return False
    is_network = isinstance(error, TimeoutError | ConnectionError | EOFError)
    return is_network or bool(_SLOW.search(text) or _BUSY.search(text) or _UNREACHABLE.search(text))


def is_missing_bucket(error: BaseException) -> bool:
    """Whether storage says that there is no such bucket."""
    return bool(_NO_BUCKET.search(words_of(error)))


def object_error(
    where: str, key: str, error: Exception, secrets: Sequence[str] = (), *, verb: str = "read"
) -> Exception:
    """Return the error for an object that cannot be read or written now, whatever the reason.

    Parameters
    ----------
    where
        URL of the store.
    key
        The object.
    error
        What the library raised.
    secrets
        Texts that the message must not show.
    verb
        What was attempted: ``"read"`` or ``"written"``.
    """
    if isinstance(error, LazypertError | MemoryError):
        return error
    text, said = words_of(error), plain(error, secrets)
    name = f"{key!r} of {where!r}" if where else repr(key)
    if isinstance(error, TypeError):
        return ConfigError(
            f"storage_options: {where!r} refuses them: {said}. Correct their names and types. The store is not damaged."
        )
    if _NO_BUCKET.search(text) or (verb == "written" and isinstance(error, FileNotFoundError)):
        return StorageError(f"{name} cannot be {verb}: there is no such bucket. Correct the URL. ({said})")
    if _NO_CREDENTIALS.search(text):
        return AccessDeniedError(
            f"{name} cannot be {verb}: no credentials were found. Pass storage_options={{'key': ..., 'secret': ...}}, "
            "set the storage's environment variables (AWS_ACCESS_KEY_ID, ...), or pass {'anon': True} if it is public. "
            f"({said})"
        )
    if _REGION.search(text):
        return StorageError(
            f"{name} cannot be {verb}: the bucket is in another region. Pass "
            f"storage_options={{'region': ...}}. ({said})"
        )
    if isinstance(error, PermissionError) or (_DENIED.search(text) and not re.search(r"\b5\d\d\b", text)):
        return AccessDeniedError(
            f"{name} cannot be {verb}: access is denied (403 or 401). Check the credentials in storage_options or the "
            "environment, and that they permit this; pass {'requester_pays': True} if readers pay, and "
            f"{{'anon': True}} if it is public. ({said})"
        )
    if _UNREACHABLE.search(text) or any(_UNREACHABLE.search(str(cause)) for cause in _causes(error)):
        return StorageError(
            f"{name} cannot be {verb}: the storage cannot be reached. Check the network, the URL and endpoint_url, and "
            f"repeat what you did once it answers; nothing is lost. ({said})"
        )
    if isinstance(error, TimeoutError) or _SLOW.search(text):
        return StorageError(
            f"{name} cannot be {verb} now: the storage did not answer in time. Try again, or allow requests more time "
            f"with storage_options={{'request_timeout': seconds}}. ({said})"
        )
    return StorageError(
        f"{name} cannot be {verb} now ({said}). This does not mean that it is damaged. The storage or the network "
        "failed: try again, and check them if it fails again; nothing is lost."
    )


def words_of(error: BaseException) -> str:
    """Return what an error and its causes say, leaving out paths, ports and times, which may look like a status."""
    text = " ".join(f"{type(cause).__name__} {_message(cause)}" for cause in _causes(error))
    return _DURATION.sub(" ", _ADDRESS.sub(r"\1", text))


def _message(error: BaseException) -> str:
    """Return what an error says without the dump of options that obstore adds."""
    return str(error).partition("Debug source:")[0]


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and what caused it, as far as each is known once."""
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and all(cause is not other for other in found):
        found.append(cause)
        cause = cause.__cause__ or cause.__context__
    return found
