"""Cached stores: a file is converted on first use, and again when it has changed."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from lazypert._internal.paths import is_url, local_path, location
from lazypert.errors import no_such_column
from lazypert.screen.roles import OPTIONAL_ROLES
from lazypert.store.store import Store

if TYPE_CHECKING:
    from lazypert.converter import ScreenReader
    from lazypert.sources.config import PerturbationSourceConfig


def open_or_convert(config: PerturbationSourceConfig) -> Store:
    """Open a store, or the cached conversion of a file.

    The file is converted if it has no cached store yet, or if its size or modification time has changed.

    Raises
    ------
    ColumnNotFoundError
        When a role names a column that the file does not have.
    StoreNotFoundError, SourceMissingError
        When there is no store or file at the path.
    """
    found = location("file_path", config.file_path)
    path = Path(found)
    if is_url(found) or path.is_dir():
        return Store(found, config.storage_options)
    from lazypert.conversion.convert import convert
    from lazypert.converter import open_source

    reader = open_source(path)
    cached = cached_path(path, config.cache_dir)
    if cached.exists():
        store = Store(cached)
        if _is_current(store, path):
            return store
    _require_roles(config, reader, path)
    cached.parent.mkdir(parents=True, exist_ok=True)
    convert(
        path,
        cached,
        pert_col=config.pert_col,
        cell_type_col=config.cell_type_col,
        batch_col=config.batch_col,
        control_pert=config.control_pert,
        memory_limit=config.memory_limit,
        overwrite=True,
    )
    return Store(cached)


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


def _is_current(store: Store, path: Path) -> bool:
    """Whether a store was made from the file as it is now."""
    recorded, stat = store.attrs["sources"][0], path.stat()
    return bool((recorded["size"], recorded["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns))


def _require_roles(config: PerturbationSourceConfig, reader: ScreenReader, path: Path) -> None:
    """Raise before the conversion starts when the file lacks a role's column."""
    roles = {"pert_col": config.pert_col, "cell_type_col": config.cell_type_col, "batch_col": config.batch_col}
    for role, column in roles.items():
        if column is not None and column not in reader.obs_columns:
            hint = f"If the screen has no such column, pass {role}=None." if role in OPTIONAL_ROLES else ""
            raise no_such_column(role, column, "an obs column", reader.obs_columns, of=path, hint=hint)
