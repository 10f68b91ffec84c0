"""Grouping a store's cells by any of its obs columns."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lazypert.screen.cell_order import name_hashes
from lazypert.screen.conditions import Conditions
from lazypert.screen.groups import Groups
from lazypert.screen.labels import factorise
from lazypert.screen.renames import rename_labels
from lazypert.screen.roles import ROLE_OF_AXIS, Roles
from lazypert.store.columns import open_column
from lazypert.store.content_checks import check_hashes
from lazypert.store.format import TABLES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.store.store import Store

_NAMES_AT_ONCE = 1_048_576


def group_cells(store: Store, roles: Roles) -> Groups:
    """Group a store's cells by any obs columns.

    Uses the run table that conversion wrote when the columns are the store's own; otherwise reads those
    columns, and nothing else.

    Raises
    ------
    ColumnNotFoundError
        If a column does not exist.
    """
    roles = replace(roles, dataset_col=roles.dataset_col or store.roles.dataset_col)
    own = store.roles
    has_same_columns = roles.columns() == own.columns() and roles.covariates == own.covariates
    if has_same_columns and _has_same_labels(roles, own):
        return replace(store.groups, roles=roles)
    return group_by_columns(store, roles)


def _has_same_labels(roles: Roles, stored: Roles) -> bool:
    """Whether labels are read in the same way; what is a part of a combination also depends on the controls."""
    is_same = roles.separator == stored.separator and roles.rename_perturbations == stored.rename_perturbations
    return is_same and (roles.separator is None or roles.controls == stored.controls)


def group_by_columns(store: Store, roles: Roles) -> Groups:
    """Group a store's cells by obs columns, which are read completely."""
    codes: dict[str, NDArray[np.integer] | None] = {}
    labels: dict[str, NDArray[np.str_]] = {}
    for axis, column in roles.columns().items():
        codes[axis], labels[axis] = None, np.empty(0, np.str_)
        if column is not None:
            path = f"obs/{store.require_obs(column, ROLE_OF_AXIS[axis])}"
            found = factorise(store.read_column(path))
            codes[axis], labels[axis] = rename_labels(*found, roles) if axis == "perturbation" else found
    covariates = {
        name: factorise(store.read_column(f"obs/{store.require_obs(name, 'covariates')}")) for name in roles.covariates
    }
    names = open_column(store, "obs/_index")
    return Groups.from_codes(
        codes,
        labels,
        roles,
        read_name_hashes(store),
        conditions=Conditions.encode(covariates) if covariates else None,
        read_names=names.__getitem__,
    )


def read_name_hashes(store: Store) -> NDArray[np.uint64]:
    """(n_obs,) name hashes of all cells; computed from the names for stores of format versions 1 and 2."""
    if store.format_version >= 3:
        return check_hashes(store.read_array(f"{TABLES}/name_hash"), store.groups)
    names = store.open_strings("obs/_index")
    steps = range(0, len(names), _NAMES_AT_ONCE)
    parts = [name_hashes(names.read(start, min(len(names), start + _NAMES_AT_ONCE))) for start in steps]
    return np.concatenate([*parts, np.empty(0, np.uint64)])
