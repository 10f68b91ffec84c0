"""Cached stores: a file is converted on first use, and again when it has changed."""

from __future__ import annotations

import contextlib
import logging
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from zarr.abc.store import Store as ZarrStore

from lazypert._internal.paths import is_url, local_path, location
from lazypert.errors import ConfigError, no_such_column
from lazypert.screen.roles import OPTIONAL_ROLES
from lazypert.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lazypert.converter import ScreenReader
    from lazypert.sources.config import PerturbationSourceConfig

_LOG = logging.getLogger("lazypert")


def open_or_convert(config: PerturbationSourceConfig) -> Store:
    """Open a store, or the cached conversion of a file.

    The file is converted if it has no cached store yet, or if its size or modification time has changed. If several
    processes ask for it at once, one converts the file, and the others wait for its store.

    Raises
    ------
    ColumnNotFoundError
        When a role names a column that the file does not have.
    StoreNotFoundError, SourceMissingError
        When there is no store or file at the path.
    ConfigError
        When the cached store cannot be written to its folder.
    """
    if is_store(config.file_path):
        # A local store needs no cache: `cache_dir` is then for files only.
        given = config.file_path
        is_remote = isinstance(given, ZarrStore) or is_url(location("file_path", given))
        cache_dir = config.cache_dir if is_remote else None
        return Store(given, config.storage_options, cache_dir=cache_dir, cache_size=config.cache_size)
    assert not isinstance(config.file_path, ZarrStore)
    found = location("file_path", config.file_path)
    path = Path(found)
    from lazypert.converter import open_source

    reader = open_source(path)
    cached = cached_path(path, config.cache_dir)
    if (store := _current_store(cached, path)) is not None:
        return store
    _require_roles(config, reader, path)
    with _locked(cached, path):
        if (store := _current_store(cached, path)) is None:  # else another process has just made it
            _convert(config, path, cached)
            store = Store(cached)
    return store


def _convert(config: PerturbationSourceConfig, path: Path, cached: Path) -> None:
    from lazypert.conversion.convert import convert

    convert(
        path,
        cached,
        pert_col=config.pert_col,
        cell_type_col=config.cell_type_col,
        batch_col=config.batch_col,
        control_pert=config.control_pert if config.control_col is None else None,
        control_col=config.control_col,
        separator=config.separator,
        covariates=config.roles.covariates,
        rename_perturbations=config.rename_perturbations,
        memory_limit=config.memory_limit,
        overwrite=True,
    )


@contextlib.contextmanager
def _locked(cached: Path, path: Path) -> Iterator[None]:
    """Let one process at a time make a cached store; the others wait."""
    from filelock import Timeout

    from lazypert.conversion.target_lock import TargetLock

    lock_path = cached.with_name(f"{cached.name}.lock")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = TargetLock(lock_path, wait=False)
        except Timeout:
            _LOG.info("%s: waiting for another process that converts it", path)
            lock = TargetLock(lock_path, wait=True)
    except OSError as error:
        raise ConfigError(
            f"cache_dir: the store of {str(path)!r} cannot be written to the folder {str(cached.parent)!r} "
            f"({error.strerror}). Set cache_dir to a folder that you may write to. Nothing was written."
        ) from error
    try:
        yield
    finally:
        lock.release()


def is_store(path: str | Path | ZarrStore) -> bool:
    """Whether a path or URL is that of a store, rather than of a file to convert."""
    if isinstance(path, ZarrStore):
        return True
    found = location("file_path", path)
    return is_url(found) or Path(found).is_dir()


def cached_path(path: Path, cache_dir: str | Path | None) -> Path:
    """Path of the cached store of a file.

    It is beside the file, or in `cache_dir` under a name with a hash of the file's path, so that files with
    the same name in different folders get different stores.
    """
    stem = path.name.removesuffix(".h5ad")
    if cache_dir is None:
        return path.parent / f"{stem}.lazypert.zarr"
    folder = local_path("cache_dir", cache_dir, "Cached stores are kept in a local folder.")
    return folder / f"{stem}-{sha256(str(path.resolve()).encode()).hexdigest()[:8]}.lazypert.zarr"


def _current_store(cached: Path, path: Path) -> Store | None:
    """Open the cached store, if there is one that was made from the file as it is now."""
    if not cached.exists():
        return None
    store = Store(cached)
    recorded, stat = store.attrs["sources"][0], path.stat()
    is_current = (recorded["size"], recorded["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns)
    return store if is_current else None


def _require_roles(config: PerturbationSourceConfig, reader: ScreenReader, path: Path) -> None:
    """Raise before the conversion starts when the file lacks a role's column."""
    roles = {"pert_col": config.pert_col, "cell_type_col": config.cell_type_col, "batch_col": config.batch_col}
    for role, column in roles.items():
        if column is not None and column not in reader.obs_columns:
            hint = f"If the screen has no such column, pass {role}=None." if role in OPTIONAL_ROLES else ""
            raise no_such_column(role, column, "an obs column", reader.obs_columns, of=path, hint=hint)
    for column in config.roles.covariates:
        if column not in reader.obs_columns:
            raise no_such_column("covariates", column, "an obs column", reader.obs_columns, of=path)
