"""Grouping a store's cells by any of its obs columns."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from lazypert.screen.groups import Groups
from lazypert.screen.labels import factorise
from lazypert.screen.roles import ROLE_OF_AXIS, Roles
from lazypert.store.columns import numeric_column

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.store.store import Store


def group_cells(store: Store, roles: Roles) -> Groups:
    """Group a store's cells by any obs columns.

    Uses the run table that conversion wrote if the columns are the store's own; otherwise reads those
    columns, and nothing else, block by block.

    Raises
    ------
    ColumnNotFoundError
        If a column does not exist.
    """
    roles = replace(roles, dataset_col=roles.dataset_col or store.roles.dataset_col)
    if roles.columns() == store.roles.columns():
        return replace(store.groups, roles=roles)
    codes, labels = [], []
    for axis, column in roles.columns().items():
        if column is None:
            axis_codes, axis_labels = None, np.empty(0, np.str_)
        else:
            axis_codes, axis_labels = _codes_and_labels(store, column, ROLE_OF_AXIS[axis])
        codes.append(axis_codes)
        labels.append(axis_labels)
    return Groups.from_codes(codes, labels, roles, store.n_obs)


def _codes_and_labels(store: Store, column: str, role: str) -> tuple[Any, NDArray[np.str_]]:
    path = f"obs/{store.require_obs(column, role)}"
    if store.encoding(path) != "categorical":
        return factorise(store.read_column(path))
    categories = store.read_categories(path).astype(np.str_)
    codes = numeric_column(store.open_array(f"{path}/codes")).to_dask()
    # Categories without cells are not labels of the screen.
    n_cells = da.bincount(da.where(codes < 0, len(categories), codes), minlength=len(categories) + 1).compute()
    used = np.flatnonzero(n_cells[: len(categories)])
    labels, new_codes = np.unique(categories[used], return_inverse=True)
    new_code = np.full(len(categories) + 1, -1, dtype=np.int32)
    new_code[used] = new_codes
    return codes.map_blocks(_recode, new_code=new_code, dtype=np.int32), labels


def _recode(codes: NDArray[Any], new_code: NDArray[np.int32]) -> NDArray[np.int32]:
    return new_code[codes]
