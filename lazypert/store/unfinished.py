"""What tells a store that is still being written to object storage from no store at all."""

from __future__ import annotations

from lazypert._internal.paths import shown_url
from lazypert.errors import StoreNotFoundError

CLAIM = "conversion.partial.json"
"""Object that exists for as long as a conversion writes to a URL, and after it was interrupted."""


def unfinished_store(url: str) -> StoreNotFoundError:
    """Return the error for a URL where a conversion has not finished."""
    return StoreNotFoundError(
        f"There is no store at {shown_url(url)!r} yet: its conversion is unfinished, so it is either running or was "
        "interrupted. Wait for it, or run the same conversion again to resume it."
    )
