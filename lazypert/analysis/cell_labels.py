"""Labels that cells are grouped by: which combination of them each row of a store has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.errors import ConfigError
from lazypert.screen.labels import factorise
from lazypert.screen.roles import ROLE_OF_AXIS, RUN_AXES
from lazypert.screen.rows import CELLS_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.store.store import Store


_TAKEN = ("gene",)
"""Dimensions that no axis can be called."""


@dataclass(frozen=True, eq=False)
class CellLabels:
    """The axes that cells are grouped by, and each cell's code on each of them.

    Attributes
    ----------
    groups
        The cells: rows that are in none of its runs belong to no combination.
    names
        Dimension of each axis: ``"cell_type"``, ``"perturbation"``, ``"dataset"``, ``"batch"``, or an obs column.
    labels
        For each axis, its (n_labels,) sorted labels.
    codes
        For each axis, (n_runs,) or (n_obs,) codes, -1 for a missing label; None for batches, whose codes the groups
        have.
    """

    groups: Groups
    names: tuple[str, ...]
    labels: tuple[NDArray[np.str_], ...]
    codes: tuple[NDArray[np.integer] | None, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of labels of each axis; ``()`` if all cells are one group."""
        return tuple(len(labels) for labels in self.labels)

    @property
    def size(self) -> int:
        """Number of combinations."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_by_run(self) -> bool:
        """Whether all cells of a run have the same labels, and runs are rows."""
        return self.groups.row_order is None and all(
            codes is not None and len(codes) == len(self.groups.start) for codes in self.codes
        )

    def of_rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """(stop - start,) combination of each of consecutive rows: its number in C order, -1 for none."""
        runs = self.groups.runs_between(start, stop)
        return self._combine(runs, start, stop)

    def of_runs(self) -> NDArray[np.int64]:
        """(n_runs,) combination of each run, if `is_by_run`."""
        return self._combine(np.arange(len(self.groups.start)), 0, 0)

    def _combine(self, runs: NDArray[np.int64], start: int, stop: int) -> NDArray[np.int64]:
        combined, is_missing = np.zeros(len(runs), np.int64), runs < 0
        n_runs = len(self.groups.start)
        for labels, codes in zip(self.labels, self.codes, strict=True):
            if codes is None:
                of_cell = self.groups.cells.batch_codes()
                code = np.zeros(len(runs), np.int64) if of_cell is None else of_cell[start:stop].astype(np.int64)
            elif len(codes) == n_runs:
                code = codes[runs].astype(np.int64)
            else:
                code = codes[start:stop].astype(np.int64)
            is_missing |= code < 0
            combined = combined * len(labels) + code
        return np.where(is_missing, -1, combined)

    def count(self, n_rows: int, rows_at_once: int) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
        """Count the cells of each combination, and list the combinations that occur in each part of the rows.

        Returns
        -------
        (size,) numbers of cells; and for each `rows_at_once` rows, the combinations that occur there, ascending.
        """
        counts, occurring = np.zeros(self.size, np.int64), []
        for found, n_cells in self._of_parts(n_rows, rows_at_once):
            np.add.at(counts, found, n_cells)
            occurring.append(np.unique(found))
        return counts, occurring

    def _of_parts(self, n_rows: int, rows_at_once: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        if self.is_by_run:
            starts, stops, of_runs = self.groups.start, self.groups.stop, self.of_runs()
            order = np.argsort(starts, kind="stable")
            starts, stops, of_runs = starts[order], stops[order], of_runs[order]
        for begin in range(0, n_rows, rows_at_once):
            end = min(n_rows, begin + rows_at_once)
            if self.is_by_run:
                inside = slice(np.searchsorted(stops, begin, side="right"), np.searchsorted(starts, end, side="left"))
                found = of_runs[inside]
                n_cells = np.minimum(stops[inside], end) - np.maximum(starts[inside], begin)
            else:
                parts = [self.of_rows(at, min(end, at + CELLS_AT_ONCE)) for at in range(begin, end, CELLS_AT_ONCE)]
                found, n_cells = np.unique(np.concatenate(parts), return_counts=True)
            yield found[found >= 0], n_cells[found >= 0]


def cell_labels(store: Store, groups: Groups, by: Sequence[str]) -> CellLabels:
    """Look up the axes that cells are grouped by.

    Parameters
    ----------
    by
        Each is ``"cell_type"``, ``"perturbation"``, ``"dataset"`` or ``"batch"``, if the screen has such a column, or
        an obs column. The column of one of these axes means that axis.

    Raises
    ------
    ColumnNotFoundError
        If there is no such column.
    ConfigError
        If an axis is named twice.
    """
    columns = groups.roles.columns()
    labels: list[NDArray[np.str_]] = []
    codes: list[NDArray[Any] | None] = []
    axes = []
    for name in by:
        axis = next((axis for axis, column in columns.items() if column is not None and name in (axis, column)), name)
        if axis in axes:
            raise ConfigError(f"by: got {name!r}, which names {axis!r} a second time. Name each axis once.")
        axes.append(axis)
        if axis in RUN_AXES and columns[axis] is not None:
            labels.append(groups.labels[axis])
            codes.append(groups.codes[axis])
        elif axis == "batch" and columns[axis] is not None:
            labels.append(groups.labels[axis])
            codes.append(None)
        else:
            of_cells, found = factorise(
                store.read_column(f"obs/{store.require_obs(name, ROLE_OF_AXIS.get(axis, 'by'))}")
            )
            labels.append(np.asarray(found))
            codes.append(of_cells)
    names = tuple(f"obs_{axis}" if axis in _TAKEN else axis for axis in axes)
    return CellLabels(groups, names, tuple(labels), tuple(codes))
