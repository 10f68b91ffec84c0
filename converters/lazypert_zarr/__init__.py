"""Zarr's codecs ``numcodecs.astype`` and ``numcodecs.delta`` without the warning of zarr 3.1.

zarr 3.1 warns whenever it opens an array with one of these codecs that the Zarr v3 specification does not list it;
later versions do not. The matrices of a lazypert store use them, and nobody who reads one should see a warning. Zarr
loads this module through the entry points of the group ``zarr.codecs`` when it first meets the codecs, for whichever
library is reading. It is a package of its own, because importing a module of ``lazypert`` would load Dask, xarray and
Numba.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import zarr
from zarr.codecs.numcodecs import AsType as _ZarrAsType
from zarr.codecs.numcodecs import Delta as _ZarrDelta
from zarr.registry import register_codec

if TYPE_CHECKING:
    from zarr.core.common import JSON

ASTYPE, DELTA = "numcodecs.astype", "numcodecs.delta"
"""Names of the codecs in array metadata."""

_WARNS = tuple(map(int, zarr.__version__.split(".")[:2])) < (3, 2)


def _configuration(name: str, data: dict[str, JSON]) -> dict[str, JSON]:
    if not isinstance(configuration := data.get("configuration"), dict):
        raise ValueError(f"{name}: got the configuration {configuration!r}, expected an object")
    return {**configuration, "id": name.removeprefix("numcodecs.")}


class QuietAsType(_ZarrAsType):
    """Makes Zarr's own codec from metadata, without the call that warns."""

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> _ZarrAsType:  # type: ignore[override]
        """Make the codec from its entry in array metadata."""
        codec = object.__new__(_ZarrAsType)
        object.__setattr__(codec, "codec_config", _configuration(ASTYPE, data))
        return codec


class QuietDelta(_ZarrDelta):
    """Makes Zarr's own codec from metadata, without the call that warns."""

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> _ZarrDelta:  # type: ignore[override]
        """Make the codec from its entry in array metadata."""
        codec = object.__new__(_ZarrDelta)
        object.__setattr__(codec, "codec_config", _configuration(DELTA, data))
        return codec


# What the entry points name; Zarr registers each as one more implementation, and its configuration chooses.
AsType: type[_ZarrAsType] = QuietAsType if _WARNS else _ZarrAsType
Delta: type[_ZarrDelta] = QuietDelta if _WARNS else _ZarrDelta

if _WARNS:
    # A filter would not do: any `warnings.catch_warnings`, such as pytest's around each test, forgets it. Zarr's
    # default configuration chooses the implementations of these names.
    register_codec(ASTYPE, AsType, qualname="zarr.codecs.numcodecs.AsType")
    register_codec(DELTA, Delta, qualname="zarr.codecs.numcodecs.Delta")
