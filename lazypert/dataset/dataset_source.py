"""Sources of the store behind a Dataset: of all of its cells, or of those that the Dataset selects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.config import derive
from lazypert._internal.validation import make_config
from lazypert.dataset.variables import CELL, CELL_NAME, GENE, OBS_COLUMN, STORE_ROW
from lazypert.errors import ConfigError
from lazypert.sources.config import PerturbationSourceConfig, roles_of_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr

    from lazypert.sources.config import PerturbationSourceKwargs, ScreenOptions
    from lazypert.store.store import Store


def store_config(store: Store, options: PerturbationSourceKwargs) -> PerturbationSourceConfig:
    """Return the config of a source of a store, with the store's own roles unless others are given.

    Raises
    ------
    ConfigError
        If an option is unknown or invalid, or the store has no perturbation column or control label.
    """
    roles = store.roles
    if roles.pert_col is None or roles.control_pert is None:
        raise ConfigError(
            f"{store.path!r} was converted without pert_col or control_pert. Convert it again with both, "
            "or use PerturbationAnnDataSource with a config that names them."
        )
    if "file_path" in options:
        raise ConfigError("file_path: unknown option. ds.pert.source reads the store behind the Dataset.")
    defaults = {
        "file_path": store.given if store.is_remote else store.path,
        "pert_col": roles.pert_col,
        "cell_type_col": roles.cell_type_col,
        "batch_col": roles.batch_col,
        "control_pert": roles.control_pert,
        "separator": roles.separator,
        "covariates": roles.covariates,
        "rename_perturbations": roles.rename_perturbations,
        "storage_options": store.storage_options,
        **_cache_options(store),
    }
    return make_config(PerturbationSourceConfig, defaults | options)


def selection_config(ds: xr.Dataset, store: Store, options: ScreenOptions) -> PerturbationSourceConfig:
    """Return the config of a source of the cells of a Dataset, which must have all genes of the store.

    Raises
    ------
    ConfigError
        If genes were selected or reordered, or labels were assigned in place of the store's.
    """
    require_stored_labels(ds, store)
    genes = ds.indexes.get(GENE)
    if genes is None or not genes.astype(str).equals(store.var.index.astype(str)):
        raise ConfigError(
            f"ds: got {ds.sizes.get(GENE, 0):,} genes, expected all {store.n_vars:,} genes of the store in "
            "their order. Select cells only, and pass genes=... to the loader."
        )
    of_store = {
        "file_path": store.given if store.is_remote else store.path,
        "storage_options": store.storage_options,
        **_cache_options(store),
        **roles_of_store(store.roles, options),
    }
    return derive(PerturbationSourceConfig, options, **of_store)


def selected_genes(ds: xr.Dataset, store: Store, layer: str | None = None) -> list[str] | None:
    """Return the names of the genes of a Dataset; None if they are all genes of the store, or of another matrix."""
    known = store.var.index.astype(str)
    if GENE not in ds.coords or store.matrix_var(layer) is not store.var:
        return None
    names = np.atleast_1d(np.asarray(ds[GENE])).astype(str)
    return None if np.array_equal(names, known) else [str(name) for name in names]


def _cache_options(store: Store) -> dict[str, Any]:
    return {"cache_dir": store.cache_dir, "cache_size": store.cache_size} if store.is_remote else {}


def require_stored_labels(ds: xr.Dataset, store: Store, also: Sequence[str] = ()) -> None:
    """Raise `ConfigError` if labels were assigned to a Dataset in place of those that the store groups its cells by.

    Parameters
    ----------
    also
        Other obs columns that cells are grouped by.
    """
    roles = store.roles
    for column in (*roles.columns().values(), *roles.covariates, *also):
        if column not in ds.variables or column in (CELL_NAME, STORE_ROW):
            continue
        variable = ds.variables[column]
        if variable.dims == (CELL,) and variable.attrs.get(OBS_COLUMN) != column:
            raise ConfigError(
                f"ds: got {column!r} assigned to the Dataset, but ds.pert groups cells by {column!r} of the store. "
                "Give the assigned labels another name, add them with lazypert.add_obs(...) and pass their name to "
                "ds.pert.regroup(...), or convert with rename_perturbations={...}."
            )
