"""Labels that cells are grouped by: which combination of them each row of a store has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lazypert.errors import ConfigError
from lazypert.screen.labels import factorise
from lazypert.screen.roles import ROLE_OF_AXIS, RUN_AXES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.store.store import Store


_MOST = 10_000_000
"""Combinations of labels."""


@dataclass(frozen=True, eq=False)
class Axis:
    """One of the columns that cells are grouped by.

    Attributes
    ----------
    name
        Its dimension: ``"cell_type"``, ``"perturbation"``, ``"dataset"``, ``"batch"``, or an obs column.
    labels
        (n_labels,) sorted labels.
    of_runs
        (n_runs,) codes, -1 for a missing label; None if cells of a run differ.
    of_rows
        (n_obs,) codes by store row, then.
    """

    name: str
    labels: NDArray[np.str_]
    of_runs: NDArray[np.integer] | None = None
    of_rows: NDArray[np.integer] | None = None

    def codes(self, runs: NDArray[np.int64], rows: slice) -> NDArray[np.int64]:
        """(n,) code of each of consecutive rows, which are in these runs."""
        if self.of_runs is not None:
            return self.of_runs[runs].astype(np.int64)
        assert self.of_rows is not None
        return self.of_rows[rows].astype(np.int64)


@dataclass(frozen=True, eq=False)
class CellLabels:
    """The axes that cells are grouped by, and the combination of labels of each cell.

    Attributes
    ----------
    groups
        The cells: rows that are in none of its runs belong to no combination.
    axes
        The axes.
    """

    groups: Groups
    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of labels of each axis; ``()`` if all cells are one group."""
        return tuple(len(axis.labels) for axis in self.axes)

    @property
    def size(self) -> int:
        """Number of combinations."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_by_run(self) -> bool:
        """Whether all cells of a run have the same labels, and runs are rows."""
        return self.groups.row_order is None and all(axis.of_runs is not None for axis in self.axes)

    def of_rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """(stop - start,) combination of each of consecutive rows: its number in C order, -1 for none."""
        return self._combine(self.groups.runs_between(start, stop), slice(start, stop))

    def of_runs(self) -> NDArray[np.int64]:
        """(n_runs,) combination of each run, if `is_by_run`."""
        return self._combine(np.arange(len(self.groups.start)), slice(0))

    def _combine(self, runs: NDArray[np.int64], rows: slice) -> NDArray[np.int64]:
        combined, is_missing = np.zeros(len(runs), np.int64), runs < 0
        for axis in self.axes:
            code = axis.codes(runs, rows)
            is_missing |= code < 0
            combined = combined * len(axis.labels) + code
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
                found, n_cells = np.unique(self.of_rows(begin, end), return_counts=True)
            yield found[found >= 0], n_cells[found >= 0]


def cell_labels(store: Store, groups: Groups, by: Sequence[str], *, reserved: Sequence[str]) -> CellLabels:
    """Look up the axes that cells are grouped by.

    Parameters
    ----------
    by
        Each is ``"cell_type"``, ``"perturbation"``, ``"dataset"`` or ``"batch"``, if the screen has such a column, or
        an obs column. The column of one of these axes means that axis.
    reserved
        Names that no dimension may have: an obs column of such a name gets the prefix ``obs_``.

    Raises
    ------
    ColumnNotFoundError
        If there is no such column.
    ConfigError
        If an axis is named twice, or there are too many combinations of labels.
    """
    columns = groups.roles.columns()
    axes: dict[str, Axis] = {}
    for name in by:
        of_column = next(
            (axis for axis, column in columns.items() if column is not None and name in (axis, column)), ""
        )
        axis = of_column or name
        if axis in axes:
            raise ConfigError(f"by: got {name!r}, which names {axis!r} a second time. Name each axis once.")
        if of_column in RUN_AXES:
            axes[axis] = Axis(axis, groups.labels[axis], of_runs=groups.codes[axis])
        elif of_column == "batch":
            axes[axis] = Axis(axis, groups.labels[axis], of_rows=groups.cells.batch_codes())
        else:
            codes, labels = factorise(store.read_column(f"obs/{store.require_obs(name, ROLE_OF_AXIS.get(name, 'by'))}"))
            axes[axis] = Axis(f"obs_{name}" if name in reserved else name, labels, of_rows=codes)
    found = CellLabels(groups, tuple(axes.values()))
    if found.size > _MOST:
        sizes = " x ".join(f"{len(axis.labels):,}" for axis in found.axes)
        raise ConfigError(
            f"by: got {', '.join(map(repr, by))}, which have {sizes} combinations of labels, expected at most "
            f"{_MOST:,}. Group by columns with fewer labels, or select cells first and aggregate part by part."
        )
    return found
