"""Checks of what is added to a store: names, dtypes and arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from lazypert.conversion.dataframe_writer import RESERVED_NAMES, is_column_name
from lazypert.errors import ConfigError


def require_element_name(option: str, name: Any) -> str:
    """Return the name of a column, embedding or layer; raise `ConfigError` if a store cannot have it."""
    if not isinstance(name, str) or not is_column_name(name):
        raise ConfigError(
            f"{option}: got the name {name!r}, expected text of at most 255 bytes without '/', and none of "
            f"{', '.join(map(repr, ('.', '..', 'zarr.json', *RESERVED_NAMES)))}. Rename it."
        )
    return name


def numeric_dtype(option: str, values: Any) -> np.dtype[Any]:
    """Return the dtype, in native byte order, that the values of an array are stored with; float16 becomes float32.

    Raises
    ------
    ConfigError
        If they are not booleans, integers or floats of at most 64 bits.
    """
    given = values.dtype
    dtype = given.newbyteorder("=") if isinstance(given, np.dtype) else np.dtype(object)
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise ConfigError(f"{option}: got values of {given}, expected integers or floats of at most 64 bits.")
    return np.dtype(np.float32) if dtype == np.float16 else dtype


def as_dense(option: str, values: Any) -> np.ndarray[Any, Any]:
    """Return values as a NumPy array; raise `ConfigError` if some are masked, as a store has no masks."""
    array = np.asanyarray(values)
    if isinstance(array, np.ma.MaskedArray):
        raise ConfigError(
            f"{option}: got a masked array, expected an array without a mask, which a store cannot hold. Fill it, such "
            "as with values.filled(numpy.nan)."
        )
    return np.asarray(array)
