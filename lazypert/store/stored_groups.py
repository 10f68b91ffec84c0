"""The groups that conversion wrote into a store."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.screen.cell_table import BatchCounts
from lazypert.screen.conditions import Conditions
from lazypert.screen.groups import Groups
from lazypert.screen.labels import label_array
from lazypert.screen.roles import AXES, RUN_AXES, missing_controls
from lazypert.store.columns import numeric_column, open_column
from lazypert.store.content_checks import check_codes, check_groups
from lazypert.store.format import COLUMN_CHUNK, TABLES
from lazypert.store.group_by_columns import group_by_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.store.store import Store

_NEAR = 1_048_576
"""Rows, of which a table is read as a whole."""

_FEW = 65_536
"""Scattered rows that are read one by one."""

_LOG = logging.getLogger("lazypert")


def read_groups(store: Store) -> Groups:
    """Return the groups of a store by its own roles.

    They are in the run table that conversion wrote. Stores of format versions 1 and 2 are sorted by batch, so
    their cells are put in a fair order here. That reads every cell's name, and reading cells in that order
    takes longer than in a store of version 3.
    """
    if store.format_version < 3:
        _LOG.warning(
            "%s has format version %d, whose cells are sorted by batch. To be fair, loading has to read them one by "
            "one, which is slow. Convert the file again for a store of version 3.",
            store.path,
            store.format_version,
        )
        return group_by_columns(store, store.roles)
    roles, start = store.roles, store.read_array(f"{store.group_tables}/runs/start")
    condition, conditions = np.zeros(len(start), np.int32), Conditions()
    if roles.covariates:
        condition, conditions = store.read_array(f"{store.group_tables}/runs/condition"), _read_conditions(store)
    labels = {axis: label_array(store.read_strings(f"{store.group_tables}/labels/{axis}").tolist()) for axis in AXES}
    # Conversion refuses control labels that are neither labels nor parts of them.
    control_parts = missing_controls(roles, labels["perturbation"].tolist()) if roles.separator is not None else []
    groups = Groups(
        roles=roles,
        labels=labels,
        start=start,
        stop=store.read_array(f"{store.group_tables}/runs/stop"),
        codes={axis: store.read_array(f"{store.group_tables}/runs/{axis}") for axis in RUN_AXES},
        condition=condition,
        row_order=store.read_array(f"{store.group_tables}/order") if store.has_table("order") else None,
        n_obs=store.n_obs,
        cells=StoredCells(store),
        known_batch_counts=BatchCounts(
            *(store.read_array(f"{store.group_tables}/subgroups/{name}") for name in ("run", "batch", "n_cells"))
        ),
        conditions=conditions,
        control_parts=tuple(control_parts),
    )
    return check_groups(groups, store.group_tables)


def _read_conditions(store: Store) -> Conditions:
    return Conditions(
        {
            name: label_array(store.read_strings(f"{store.group_tables}/conditions/{number}").tolist())
            for number, name in enumerate(store.roles.covariates)
        }
    )


class StoredCells:
    """The batch codes, names and name hashes of a store's cells (a `lazypert.screen.cell_table.CellTable`)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._batch: NDArray[np.integer] | None = None
        self._hashes: NDArray[np.uint64] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredCells, (self._store,)

    def batch_codes(self) -> NDArray[np.integer] | None:
        """(n_rows,) code of each cell's batch; kept in memory, one or two bytes per cell, after the first use."""
        if self._store.roles.batch_col is None:
            return None
        if self._batch is None:
            tables = self._store.group_tables
            path, labels = f"{tables}/batch", self._store.open_strings(f"{tables}/labels/batch")
            self._batch = check_codes(path, self._store.read_array(path), len(labels))
        return self._batch

    def hashes(self, rows: NDArray[np.integer]) -> NDArray[np.uint64]:
        """(n,) name hashes of cells."""
        if not len(rows):
            return np.empty(0, np.uint64)
        if self._hashes is not None:
            return self._hashes[rows]
        first, last = int(rows.min()), int(rows.max())
        array = self._store.open_array(f"{TABLES}/name_hash")
        if last - first < 4 * len(rows) + COLUMN_CHUNK or last - first < _NEAR:
            return array.read(first, last + 1)[rows - first]
        if len(rows) <= _FEW:
            return numeric_column(array)[rows]
        self._hashes = array.read(0, len(array))  # many scattered rows, which are rarely asked for once
        return self._hashes[rows]

    def names(self, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Read (n,) names of cells."""
        return open_column(self._store, "obs/_index")[rows]
