"""Grouping a store's cells by any of its obs columns."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from lazypert.screen.groups import Groups
from lazypert.screen.labels import factorise
from lazypert.screen.roles import ROLE_OF_AXIS, Roles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.store.store import Store
from lazypert.store.columns import numeric_column


def group_cells(store: Store, roles: Roles) -> Groups:
    """Group a store's cells by any columns.

    Takes the table that conversion left when the columns are the ones it was made for; else reads
    those columns, block by block, and nothing more.

    Raises
    ------
    ColumnNotFoundError
        When a column does not exist.
    """
    own = store.roles
    wanted = Roles(
        pert_col=roles.pert_col,
        cell_type_col=roles.cell_type_col,
        batch_col=roles.batch_col,
        dataset_col=roles.dataset_col or own.dataset_col,
        control_pert=roles.control_pert,
    )
    if wanted.columns() == own.columns():
        return replace(store.groups, roles=wanted)
    codes, labels = [], []
    for axis, column in wanted.columns().items():
        code, names = _coded(store, column, ROLE_OF_AXIS[axis]) if column is not None else (None, np.empty(0, np.str_))
        codes.append(code)
        labels.append(names)
    return Groups.from_codes(codes, labels, wanted, store.n_obs)


def _coded(store: Store, column: str, role: str) -> tuple[Any, NDArray[np.str_]]:
    path = f"obs/{store.require_obs(column, role)}"
    if store.encoding(path) != "categorical":
        return factorise(store.column(path))
    categories = store.categories(path).astype(np.str_)
    codes = numeric_column(store.sharded(f"{path}/codes")).to_dask()
    # Labels no cell has are no labels of the screen.
    counted = da.bincount(da.where(codes < 0, len(categories), codes), minlength=len(categories) + 1).compute()
    used = np.flatnonzero(counted[: len(categories)])
    labels, number = np.unique(categories[used], return_inverse=True)
    renumber = np.full(len(categories) + 1, -1, dtype=np.int32)
    renumber[used] = number
    return codes.map_blocks(_renumber, table=renumber, dtype=np.int32), labels


def _renumber(codes: NDArray[Any], table: NDArray[np.int32]) -> NDArray[np.int32]:
    return table[codes]
