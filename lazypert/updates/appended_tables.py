"""lazypert's own tables of a store that was appended to: groups of all cells, and statistics of single cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.conversion.cell_stats import CellStats, CellStatsPlan
from lazypert.conversion.table_writer import write_groups
from lazypert.errors import ConfigError
from lazypert.screen.conditions import Conditions
from lazypert.screen.groups import Groups
from lazypert.screen.labels import renumber
from lazypert.screen.roles import AXES
from lazypert.store.format import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lazypert.screen.roles import Roles
    from lazypert.sparse.csr import CSRBlock
    from lazypert.updates.appended_columns import Splice

_ROWS_AT_ONCE = 8192


def join_groups(old: Groups, new: Groups, roles: Roles, datasets: tuple[NDArray[Any], NDArray[np.integer]]) -> Groups:
    """Return the groups of the cells of two stores, which are those of a store converted from all files at once.

    Parameters
    ----------
    roles
        Roles of the result.
    datasets
        Sorted names of all datasets, and the number of each cell's.

    Raises
    ------
    ConfigError
        If a new cell has the name of an old one of the same group and dataset.
    """
    codes: dict[str, NDArray[np.integer] | None] = {"dataset": datasets[1]}
    labels: dict[str, NDArray[np.str_]] = {"dataset": datasets[0].astype(np.str_)}
    for axis in AXES:
        if axis == "dataset":
            continue
        codes[axis], labels[axis] = None, np.empty(0, np.str_)
        if roles.columns()[axis] is not None:
            labels[axis] = np.union1d(old.labels[axis], new.labels[axis])
            parts = [renumber(_codes_of(one, axis), one.labels[axis], labels[axis]) for one in (old, new)]
            codes[axis] = np.concatenate(parts)
    conditions = None
    if roles.covariates:
        united, numbers = Conditions.unite([old.conditions, new.conditions])
        parts = [number[one.expand(one.condition)] for one, number in zip((old, new), numbers, strict=True)]
        conditions = np.concatenate(parts), united
    hashes = np.concatenate([one.cells.hashes(np.arange(one.n_obs)) for one in (old, new)])
    groups = Groups.from_codes(codes, labels, roles, hashes, conditions=conditions)
    repeated = np.flatnonzero(groups.cells.hashes(np.arange(groups.n_obs)) != hashes)
    if len(repeated):
        raise ConfigError(
            f"more: got {len(repeated):,} cells with the name, labels and dataset of a cell of the store. They are in "
            "it already, or belong to another dataset: pass dataset=... with a new name, or leave it out. Nothing was "
            "changed."
        )
    return groups


def _codes_of(groups: Groups, axis: str) -> NDArray[np.integer]:
    if axis == "batch":
        return groups.batch_of(np.arange(groups.n_obs))
    return groups.expand(groups.codes[axis])


class AppendedCellStats:
    """Statistics of all cells, of which those of the old cells are taken over as far as they are still right."""

    def __init__(self, splice: Splice, groups: Groups) -> None:
        self._splice, self._groups = splice, groups
        self.plan = CellStatsPlan.of(groups, splice.old.var)
        run = groups.expand(np.arange(len(groups.start), dtype=np.int32))
        self._subgroup = groups.subgroup_of(run, np.arange(groups.n_obs)).astype(np.int32)
        self._sums = np.zeros((self.plan.n_control_subgroups, len(self.plan.target)))
        self._new: list[CellStats] = []

    def watch(self, blocks: Iterator[tuple[int, CSRBlock]]) -> Iterator[tuple[int, CSRBlock]]:
        """Pass on blocks of the new cells, and collect their statistics."""
        for start, block in blocks:
            first = self._splice.old.n_obs + start
            self._add(stats := CellStats.of(self.plan, self._subgroups(first, block), first, block))
            self._new.append(stats)
            yield start, block

    def _subgroups(self, first: int, block: CSRBlock) -> NDArray[np.int32]:
        return self._subgroup[first : first + block.shape[0]]

    def _add(self, stats: CellStats) -> None:
        self._sums[stats.control_subgroups] += stats.control_sums

    def write(self, base: str) -> None:
        """Write the statistics: per cell to the arrays that are there, all others to the tables of this version."""
        self._add_old_controls()
        for name in ("total", "n_genes", "own_target"):
            target = self._splice.appender(f"{TABLES}/facts/{name}", self._splice.new.n_obs)
            for stats in self._new:
                target.add(getattr(stats, name))
            target.close()
        writer = self._splice.writer
        writer.group(f"{base}/facts", {"gene_col": self.plan.gene_col})
        writer.array(f"{base}/facts/target", self.plan.target.astype("i4"))
        writer.array(f"{base}/facts/control_sum", self._sums.ravel())
        control_row = np.full(self.plan.n_control_subgroups, -1, np.int64)
        self.plan.find_control_rows(self._subgroup, 0, control_row)
        writer.array(f"{base}/facts/control_row", control_row)

    def _add_old_controls(self) -> None:
        """Add the sums over the old controls; their values are read, because the new cells may have new targets."""
        old = self._splice.old
        rows = np.sort(self._groups.rows(self._groups.is_control)[:])
        rows = rows[rows < old.n_obs]
        matrix = old.matrix()
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            chosen = rows[start : start + _ROWS_AT_ONCE]
            self._add(CellStats.of(self.plan, self._subgroup[chosen], 0, matrix.read_rows(chosen)))


def has_same_targets(groups: Groups, splice: Splice) -> bool:
    """Whether the old cells keep their statistics: the new perturbations are found in the same var column."""
    stats = splice.old.cell_stats
    return stats is not None and CellStatsPlan.of(groups, splice.old.var).gene_col == stats.gene_col


def write_appended_tables(splice: Splice, groups: Groups, base: str, n_source_rows: int) -> None:
    """Write the tables of all cells' groups to `base`, and append to those with a value per cell.

    Parameters
    ----------
    n_source_rows
        Cells of the files of the store so far: the rows of further files follow.
    """
    writer = splice.writer
    writer.group(base, {})
    splice.append_array(f"{TABLES}/source_row", lambda rows: rows + n_source_rows)
    splice.append_array(f"{TABLES}/name_hash")
    batch = groups.cells.batch_codes()
    if groups.row_order is not None:
        writer.array(f"{base}/order", groups.row_order)
    write_groups(writer, groups, base)
    if batch is not None:
        writer.array(f"{base}/batch", batch)
