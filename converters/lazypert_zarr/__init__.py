"""Zarr's ``numcodecs.astype`` codec without the warning of zarr 3.1.

zarr 3.1 warns whenever it opens an array with this codec that the Zarr v3 specification does not list it; later
versions do not. The counts of a lazypert store use it, and nobody who reads one should see a warning. Zarr loads
this module through the entry point ``numcodecs.astype`` of the group ``zarr.codecs`` when it first meets the
codec, for whichever library is reading. It is a package of its own, because importing a module of ``lazypert``
would load Dask, xarray and Numba.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import zarr
from zarr.codecs.numcodecs import AsType as _ZarrAsType
from zarr.registry import register_codec

if TYPE_CHECKING:
    from zarr.core.common import JSON

NAME = "numcodecs.astype"
"""Name of the codec in array metadata."""

_WARNS = tuple(map(int, zarr.__version__.split(".")[:2])) < (3, 2)


class QuietAsType(_ZarrAsType):
    """Makes Zarr's own codec from metadata, without the call that warns."""

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> _ZarrAsType:  # type: ignore[override]
        """Make the codec from its entry in array metadata."""
        if not isinstance(configuration := data.get("configuration"), dict):
            raise ValueError(f"{NAME}: got the configuration {configuration!r}, expected an object")
        codec = object.__new__(_ZarrAsType)
        object.__setattr__(codec, "codec_config", {**configuration, "id": "astype"})
        return codec


AsType: type[_ZarrAsType] = QuietAsType if _WARNS else _ZarrAsType
"""What the entry point names; Zarr registers it as one more implementation, and its configuration chooses."""

if _WARNS:
    # A filter would not do: any `warnings.catch_warnings`, such as pytest's around each test, forgets it. Zarr's
    # default configuration chooses the implementation of this name.
    register_codec(NAME, AsType, qualname="zarr.codecs.numcodecs.AsType")
