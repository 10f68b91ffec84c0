"""Opening the root of a store, in a local folder or at a URL."""

from __future__ import annotations

import glob
import json
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import zarr

from lazypert._internal.machine import raise_machine_error
from lazypert._internal.paths import is_url, require_plain_url, shown_url
from lazypert.errors import StoreDamagedError, StoreNotFoundError
from lazypert.store import updating
from lazypert.store.byte_reader import LocalReader
from lazypert.store.damage import store_damaged
from lazypert.store.disk_cache import DiskCache
from lazypert.store.format import MARKER
from lazypert.store.object_store import open_object_store
from lazypert.store.reader_store import ReaderStore
from lazypert.store.remote_reader import RemoteReader
from lazypert.store.storage_options import own_options, secrets_of
from lazypert.store.table_objects import annotation_objects
from lazypert.store.unfinished import CLAIM, unfinished_store
from lazypert.store.updating import UPDATING, KeptObjects

_FILES = (".h5ad", ".h5", ".h5mu", ".loom")


def open_root(
    path: str, storage_options: dict[str, Any] | None, given: Any = None, cache: tuple[Any, int] | None = None
) -> tuple[LocalReader | RemoteReader, zarr.Group, Any]:
    """Return a reader of a store's files, its root group, and what identifies its root metadata.

    Parameters
    ----------
    path
        Its folder or URL.
    storage_options
        Options for URLs.
    given
        A Zarr store, opened by the caller, that is read in place of `path`.
    cache
        Folder and limit of a cache on the local disk, for URLs and Zarr stores.

    Raises
    ------
    ConfigError
        If the URL cannot be opened, or the storage refuses `storage_options`.
    StoreNotFoundError
        If there is no lazypert store.
    StoreDamagedError
        If its root metadata cannot be read.
    StorageError
        If the storage does not answer, or refuses access.
    """
    if given is not None or is_url(path):
        return _open_remote(path, storage_options, given, cache)
    folder = Path(path).absolute()
    if not folder.exists():
        raise _no_store(folder, path)
    if not folder.is_dir():
        raise StoreNotFoundError(
            f"store: got the file {path!r}, expected the folder of a lazypert store. Convert the file first: "
            f"lazypert.convert({path!r}, 'screen.zarr', pert_col=..., control_pert=...)."
        )
    reader = LocalReader(folder)
    identity, group = reader.root_identity(), _open_group(folder, path)
    attrs = group.attrs[MARKER]
    if isinstance(attrs, dict) and attrs.get(UPDATING) is not None:
        raise StoreDamagedError(
            f"{path!r} is a copy of a store in object storage that was made during an update: some of its files may be "
            "those of the new version. Copy the store again once the update is complete; if it was interrupted, the "
            "next update of the original puts the old version back."
        )
    return reader, group, identity


def _no_store(folder: Path, path: str) -> StoreNotFoundError:
    """Make the error for a path where nothing is, which says what interrupted work has left beside it."""
    prefix = f"{folder.name}.partial-"
    left = [found.name for found in folder.parent.glob(f"{glob.escape(prefix)}*")]
    swapped = next((name for name in left if name.startswith(f"{prefix}old-") and name.endswith(".swap")), None)
    if swapped is not None:
        return StoreNotFoundError(
            f"There is no store at {path!r}: an addition to it was interrupted while it was put in place, and "
            f"{swapped!r} is the store as it was. Run the addition again, which puts the store back first, or rename "
            "that folder."
        )
    staging = next((name for name in left if not name.startswith((f"{prefix}old-", f"{prefix}add-"))), None)
    if staging is not None:
        return StoreNotFoundError(
            f"There is no store at {path!r} yet: its conversion was interrupted, and {staging!r} holds the "
            "work done so far. Run the same conversion again to resume it."
        )
    return StoreNotFoundError(
        f"There is no store at {path!r}. Check the path, or create a store with lazypert.convert(...)."
    )


def _open_remote(
    url: str, storage_options: dict[str, Any] | None, given: Any, cache: tuple[Any, int] | None
) -> tuple[RemoteReader, zarr.Group, Any]:
    if given is None and url.partition("?")[0].endswith(_FILES):
        raise StoreNotFoundError(
            f"store: got {shown_url(url)!r}, the URL of a file, expected that of a lazypert store. Convert the file "
            "first, with lazypert.convert(...)."
        )
    if given is None:
        require_plain_url("store", url)
    options, rest = own_options(storage_options)
    opened = open_object_store(url, storage_options) if given is None else given
    secrets = secrets_of(rest)
    while True:
        began, reader = time.monotonic(), RemoteReader(opened, url, options, secrets)
        root, identity = reader.read_root()
        if root is None:
            raise _no_root(url) if reader.size(CLAIM) is None else unfinished_store(url)
        kept = _kept_objects(root)
        if cache is not None or kept is not None:
            of_version = None if cache is None else DiskCache(*cache, f"{url}\n{sha256(root).hexdigest()}")
            reader = RemoteReader(opened, url, options, secrets, of_version, kept)
        reader.provide({"zarr.json": root})
        group = _open_group(ReaderStore(reader), url)
        requested = reader.hold(annotation_objects(group))
        is_fresh = time.monotonic() - began < updating.FRESH
        if is_fresh or not requested or reader.root_identity() == identity:
            reader.save_held(requested)
            return reader, group, identity
        # Otherwise an update has begun, or ended, and the objects may be of either version.


def _kept_objects(root: bytes) -> KeptObjects | None:
    """Return what root metadata say of an unfinished update; metadata that cannot be read are refused later."""
    try:
        attrs = json.loads(root)["attributes"][MARKER]
    except (ValueError, KeyError, TypeError):
        return None
    return KeptObjects.of(attrs) if isinstance(attrs, dict) else None


def _no_root(path: str) -> StoreNotFoundError:
    return StoreNotFoundError(
        f"store: got {path!r}, which has no zarr.json; expected a lazypert store. "
        "Check the path, or create a store with lazypert.convert(...)."
    )


def _open_group(where: Any, path: str) -> zarr.Group:
    try:
        group = zarr.open_group(where, mode="r", zarr_format=3)
    except FileNotFoundError as error:
        raise _no_root(path) from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise_machine_error(path, error)
        raise store_damaged(f"{path}/zarr.json", str(error)) from error
    except OSError as error:
        raise_machine_error(path, error)
        raise
    if MARKER not in group.attrs:
        raise StoreNotFoundError(
            f"store: got {path!r}, a Zarr store without {MARKER!r} in its root attributes; expected a lazypert store. "
            "Convert the original file with lazypert.convert(...)."
        )
    return group
