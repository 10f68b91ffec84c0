"""Whether credentials for S3 may come from the machine itself, as on EC2: elsewhere, asking for them can hang."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lazypert.errors import AccessDeniedError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SECONDS = 2.0
_SOURCES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SKIP_SIGNATURE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
)
_ANSWERED = set[str]()


def require_credentials(where: str, config: Mapping[str, Any]) -> None:
    """Check that credentials are given, or that the machine's metadata service answers, which may have some.

    obstore waits for this service as long as for any other request. In a container on EC2, and behind some proxies,
    it accepts a connection and never answers.

    Parameters
    ----------
    where
        URL, for the message.
    config
        Configuration of obstore.

    Raises
    ------
    AccessDeniedError
        If there are no credentials.
    """
    if config.get("skip_signature") or "access_key_id" in config or any(name in os.environ for name in _SOURCES):
        return
    endpoint = os.environ.get("AWS_METADATA_ENDPOINT", "http://169.254.169.254")
    if endpoint in _ANSWERED or _answers(endpoint):
        _ANSWERED.add(endpoint)
        return
    raise AccessDeniedError(
        f"{where!r} cannot be used: no credentials were found. Pass storage_options={{'key': ..., 'secret': ...}}, "
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or pass {'anon': True} if it is public. (The metadata "
        "service of this machine, which may have credentials, does not answer.)"
    )


def _answers(endpoint: str) -> bool:
    """Whether a metadata service answers, whatever it says: obstore will say what is wrong."""
    import urllib.error
    import urllib.request

    headers = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    request = urllib.request.Request(f"{endpoint}/latest/api/token", method="PUT", headers=headers)  # noqa: S310
    try:
        urllib.request.urlopen(request, timeout=_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
    except (OSError, ValueError):
        return False
    return True
