"""The store behind a Dataset, and the fsspec options that open it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lazypert.dataset.variables import STORE
from lazypert.store.replaced import Version, store_changed
from lazypert.store.store import Store

if TYPE_CHECKING:
    import xarray as xr

_STORAGE_OPTIONS, _VERSION = "storage_options", "store_version"

_OPTIONS_OF: dict[str, _StorageOptions] = {}
"""Options of every store opened in this process, by location; xarray drops the encoding in arithmetic, not `attrs`."""


class _StorageOptions(dict[str, Any]):
    """fsspec options, which may contain credentials and therefore have no repr."""

    def __repr__(self) -> str:
        return "{...}"

    __str__ = __repr__


def remember_store(ds: xr.Dataset, store: Store) -> xr.Dataset:
    """Keep the options and the version of the store with a Dataset, in its encoding.

    It is pickled, but never written or shown, and selections keep it.
    """
    ds.encoding[_VERSION] = Version.of(store.attrs)
    if store.storage_options is not None:
        options = _StorageOptions(store.storage_options)
        ds.encoding[_STORAGE_OPTIONS] = _OPTIONS_OF[store.location] = options
    return ds


def reopen_store(ds: xr.Dataset) -> Store:
    """Open the store behind a Dataset, with the options that it was opened with.

    Raises
    ------
    StoreNotFoundError
        If the store is gone.
    StoreChangedError
        If it was replaced after the Dataset was opened, as far as the Dataset knows.
    """
    location: str = ds.attrs[STORE]
    options = ds.encoding.get(_STORAGE_OPTIONS, _OPTIONS_OF.get(location))
    if options is not None:
        options = _StorageOptions(options)
        _OPTIONS_OF.setdefault(location, options)  # the Dataset may come from another process
    store = Store(location, None if options is None else dict(options))
    version = ds.encoding.get(_VERSION)
    if version is not None and version.is_replaced_by(Version.of(store.attrs)):
        raise store_changed(location)
    return store
