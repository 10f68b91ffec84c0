"""Converting a file on first use, into a cached store."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from lazypert.errors import no_such_column
from lazypert.screen.roles import OPTIONAL_ROLES
from lazypert.store.store import Store

if TYPE_CHECKING:
    from lazypert.sources.config import PerturbationSourceConfig


def open_or_convert(config: PerturbationSourceConfig) -> Store:
    """Open a store, or the cached conversion of a file, which is made anew when the file has changed."""
    path = Path(config.file_path)
    if "://" in str(config.file_path) or path.is_dir():
        return Store(config.file_path, config.storage_options)
    from lazypert.conversion.convert import convert
    from lazypert.converter import open_source

    reader = open_source(path)
    folder = path.parent if config.cache_dir is None else Path(config.cache_dir)
    # Files of the same name from different folders share a cache folder without sharing a store.
    which = "" if config.cache_dir is None else f"-{sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    target = folder / f"{path.name.removesuffix('.h5ad')}{which}.lazypert.zarr"
    stat = path.stat()
    if target.exists():
        store = Store(target)
        made_from = store.attrs["sources"][0]
        if (made_from["size"], made_from["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns):
            return store
    folder.mkdir(parents=True, exist_ok=True)
    given = {"pert_col": config.pert_col, "cell_type_col": config.cell_type_col, "batch_col": config.batch_col}
    for role, column in given.items():
        if column is not None and column not in reader.obs_columns:
            hint = f"If the screen has no such column, pass {role}=None." if role in OPTIONAL_ROLES else ""
            raise no_such_column(role, column, "an obs column", reader.obs_columns, of=path, hint=hint)
    convert(
        path,
        target,
        pert_col=config.pert_col,
        cell_type_col=config.cell_type_col,
        batch_col=config.batch_col,
        control_pert=config.control_pert,
        memory_limit=config.memory_limit,
        overwrite=True,
    )
    return Store(target)
