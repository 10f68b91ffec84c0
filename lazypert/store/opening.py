"""Opening the root of a store, in a local folder or at a URL."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr

from lazypert._internal.machine import machine_error, raise_machine_error
from lazypert._internal.paths import is_url
from lazypert.errors import ConfigError, LazypertError, MachineError, StoreDamagedError, StoreNotFoundError
from lazypert.store.byte_reader import LocalReader, RemoteReader
from lazypert.store.damage import store_damaged
from lazypert.store.format import MARKER
from lazypert.store.unfinished import CLAIM, unfinished_store

if TYPE_CHECKING:
    from lazypert.store.byte_reader import ByteReader


_FILES = (".h5ad", ".h5", ".h5mu", ".loom")


def open_root(path: str, storage_options: dict[str, Any] | None) -> tuple[ByteReader, zarr.Group]:
    """Return a reader of a store's files, and its root group.

    Raises
    ------
    ConfigError
        If fsspec cannot open such URLs, or refuses `storage_options`.
    StoreNotFoundError
        If there is no lazypert store.
    StoreDamagedError
        If its root metadata cannot be read.
    """
    if is_url(path):
        return _open_url(path, storage_options)
    folder = Path(path).absolute()
    if not folder.exists():
        raise _no_store(folder, path)
    if not folder.is_dir():
        raise StoreNotFoundError(
            f"store: got the file {path!r}, expected the folder of a lazypert store. Convert the file first: "
            f"lazypert.convert({path!r}, 'screen.zarr', pert_col=..., control_pert=...)."
        )
    return LocalReader(folder), _open_group(folder, path)


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


def _open_url(url: str, storage_options: dict[str, Any] | None) -> tuple[ByteReader, zarr.Group]:
    from zarr.storage import FsspecStore

    if url.partition("?")[0].endswith(_FILES):
        raise StoreNotFoundError(
            f"store: got {url!r}, the URL of a file, expected that of a lazypert store. Files are converted on this "
            "machine: copy it here, and convert it with lazypert.convert(...)."
        )
    try:
        remote = FsspecStore.from_url(url, storage_options=storage_options, read_only=True)
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigError(
            f"store: got {url!r}, which fsspec cannot open: {error}. Install the package that reads such URLs, or "
            "correct the URL or storage_options."
        ) from error
    reader = RemoteReader(remote)
    try:
        return reader, _open_group(remote, url)
    except StoreDamagedError:
        _require_readable(reader, url, storage_options)
        raise
    except StoreNotFoundError:
        if reader.size(CLAIM) is not None:
            raise unfinished_store(url) from None
        raise
    except LazypertError:
        raise
    except Exception as error:  # each backend of fsspec raises types of its own
        raise machine_error(url, error) from error


def _require_readable(reader: RemoteReader, url: str, storage_options: dict[str, Any] | None) -> None:
    """Raise an error if the root metadata cannot be read at all: then nothing says that they are damaged."""
    try:
        reader.read("zarr.json", 0, 1)
    except MachineError as error:
        if not isinstance(error.__cause__, TypeError):
            raise
        raise ConfigError(
            f"storage_options: got the options {sorted(storage_options or ())} for {url!r}, which refuses them: "
            f"{error.__cause__}. Correct their names and types. The store is not damaged."
        ) from error


def _open_group(where: Any, path: str) -> zarr.Group:
    try:
        group = zarr.open_group(where, mode="r", zarr_format=3)
    except FileNotFoundError as error:
        raise StoreNotFoundError(
            f"store: got {path!r}, which has no zarr.json; expected a lazypert store. "
            "Check the path, or create a store with lazypert.convert(...)."
        ) from error
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
