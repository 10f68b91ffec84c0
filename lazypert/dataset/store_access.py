"""The store behind a Dataset, and the options that open it."""

from __future__ import annotations

from collections import OrderedDict
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
    """What opens a store again: its options may contain credentials and therefore have no repr."""

    def __repr__(self) -> str:
        return "{...}"

    __str__ = __repr__


_OPENED: OrderedDict[tuple[str, Version], Store] = OrderedDict()
"""Remote stores that this process opened last: opening one again would take requests, and reading its tables more."""

_MAX_OPENED = 8


def remember_store(ds: xr.Dataset, store: Store) -> xr.Dataset:
    """Keep the options and the version of the store with a Dataset, in its encoding.

    It is pickled, but never written or shown, and selections keep it.
    """
    version = ds.encoding[_VERSION] = Version.of(store.attrs)
    opening = _StorageOptions(
        given=store.given,
        storage_options=store.storage_options,
        cache_dir=store.cache_dir,
        cache_size=store.cache_size,
    )
    if store.is_remote or store.storage_options is not None:
        ds.encoding[_STORAGE_OPTIONS] = _OPTIONS_OF[store.location] = opening
    if store.is_remote:
        _OPENED[store.location, version] = store
        while len(_OPENED) > _MAX_OPENED:
            _OPENED.popitem(last=False)
    return ds


def reopen_store(ds: xr.Dataset) -> Store:
    """Return the store behind a Dataset, opened with the options that it was opened with.

    Raises
    ------
    StoreNotFoundError
        If the store is gone.
    StoreChangedError
        If it was replaced after the Dataset was opened, as far as the Dataset knows.
    """
    location: str = ds.attrs[STORE]
    opening = ds.encoding.get(_STORAGE_OPTIONS, _OPTIONS_OF.get(location))
    version = ds.encoding.get(_VERSION)
    for key in reversed(_OPENED):  # what it reads is checked when it is read
        if key[0] == location and version in (None, key[1]):
            _OPENED.move_to_end(key)
            return _OPENED[key]
    if opening is None:
        store = Store(location)
    else:
        opening = _StorageOptions(opening)
        _OPTIONS_OF.setdefault(location, opening)  # the Dataset may come from another process
        store = Store(
            opening["given"],
            opening["storage_options"],
            cache_dir=opening["cache_dir"],
            cache_size=opening["cache_size"],
        )
        if store.is_remote:
            _OPENED[location, Version.of(store.attrs)] = store
    if version is not None and version.is_replaced_by(Version.of(store.attrs)):
        raise store_changed(location)
    return store
