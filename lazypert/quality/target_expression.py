"""Expression of each perturbation's target, in its own cells and in controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import dask
import numpy as np

from lazypert.screen.targets import target_sums

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.sources.base import PerturbationSource
    from lazypert.sources.matrix_segment import MatrixSegment
    from lazypert.store.matrix import Matrix

ControlMatch = Literal["all", "cell_type", "batch"]
"""Which controls a cell is compared with."""

_BLOCK_VALUES = 4_194_304  # stored values that a task reads at once

# Floating-point sums depend on where rows are divided, so the number of tasks is the same on every machine.
_TASKS_PER_MATRIX = 64


@dataclass(frozen=True, slots=True, eq=False)
class TargetExpression:
    """Expression of all targets.

    Attributes
    ----------
    own
        (n_obs,) expression of each perturbed cell's own target; NaN for all other cells.
    control_sum
        (n_strata, n_perturbations) sum of each target over the controls of a stratum.
    control_cells
        (n_strata, n_perturbations) number of controls in which the target was measured.
    """

    own: NDArray[np.floating[Any]]
    control_sum: NDArray[np.float64]
    control_cells: NDArray[np.int64]

    def control_means(self, groups: Groups, stratum: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n_strata, n_perturbations) mean of each target in controls; NaN where there are none.

        A batch without controls gets the mean of its cell type.
        """
        wider = control_strata(groups, "cell_type")
        wider_of_stratum = np.zeros(len(self.control_sum), dtype=np.int64)
        wider_of_stratum[stratum] = wider
        shape = (int(wider.max(initial=0)) + 1, self.control_sum.shape[1])
        sums, cells = np.zeros(shape), np.zeros(shape, dtype=np.int64)
        np.add.at(sums, wider_of_stratum, self.control_sum)
        np.add.at(cells, wider_of_stratum, self.control_cells)
        with np.errstate(invalid="ignore", divide="ignore"):
            own_means, wider_means = self.control_sum / self.control_cells, (sums / cells)[wider_of_stratum]
        return np.where(self.control_cells > 0, own_means, wider_means)


def control_strata(groups: Groups, match: ControlMatch) -> NDArray[np.int64]:
    """(n_runs,) number of the control stratum that each run is compared with."""
    if match == "all":
        return np.zeros(len(groups.start), dtype=np.int64)
    axes = ("cell_type", "dataset") if match == "cell_type" else ("cell_type", "dataset", "batch")
    key = np.zeros(len(groups.start), dtype=np.int64)
    for axis in axes:
        key = key * (len(groups.labels[axis]) + 1) + groups.codes[axis] + 1
    return np.unique(key, return_inverse=True)[1].astype(np.int64)


def gather_target_expression(
    source: PerturbationSource,
    groups: Groups,
    target_column: NDArray[np.int64],
    stratum: NDArray[np.int64],
    layer: str | None,
) -> TargetExpression:
    """Gather the expression of every target in one pass.

    Takes the cell statistics recorded during conversion where they describe these cells and targets.
    Otherwise reads the matrix, block by block, in Dask tasks of consecutive rows.

    Parameters
    ----------
    target_column
        (n_perturbations,) column of each perturbation's target among the source's genes; -1 for none.
    stratum
        (n_runs,) control stratum of each run, as from `control_strata`.
    """
    n_strata, n_targets = int(stratum.max(initial=0)) + 1, len(target_column)
    run_of_row = groups.expand(np.arange(len(groups.start), dtype=np.int32), source.n_rows)
    run_stratum = np.append(np.where(groups.is_control, stratum, -1), -1)
    row_ranges, tasks, segments = [], [], list(source.segments(layer))
    for segment in segments:
        columns = np.append(segment.column_of, -1)[target_column].astype(np.int64)  # -1 picks the last entry
        run_target = np.append(np.append(columns, -1)[groups.codes["perturbation"]], -1)
        lookup = _Lookup(columns, run_target, run_stratum, n_strata)
        index = _recorded_index(segment, groups, columns)
        n_rows = segment.matrix.shape[0]
        if index is not None:
            tasks.append(dask.delayed(_read_recorded, pure=False)(segment, index, run_of_row, lookup))
            row_ranges.append((segment.first_row, segment.first_row + n_rows))
            continue
        for start, stop in _task_ranges(n_rows):
            row_ranges.append((segment.first_row + start, segment.first_row + stop))
            tasks.append(
                dask.delayed(_stream, pure=False)(segment.matrix, start, run_of_row[slice(*row_ranges[-1])], lookup)
            )
    dtypes = [segment.matrix.dense_dtype for segment in segments]
    own = np.full(source.n_rows, np.nan, dtype=max(dtypes, key=lambda d: d.itemsize, default=np.dtype("f4")))
    sums, cells = np.zeros((n_strata, n_targets)), np.zeros((n_strata, n_targets), dtype=np.int64)
    for (start, stop), (values, task_sums, task_cells) in zip(row_ranges, dask.compute(*tasks), strict=True):
        own[start:stop] = values
        sums += task_sums
        cells += task_cells
    return TargetExpression(own, sums, cells)


def _task_ranges(n_rows: int) -> Iterator[tuple[int, int]]:
    """Consecutive row ranges that divide a matrix, one per task."""
    length = max(1, -(-n_rows // _TASKS_PER_MATRIX))
    for start in range(0, n_rows, length):
        yield start, min(n_rows, start + length)


@dataclass(frozen=True, slots=True, eq=False)
class _Lookup:
    """Targets and control strata to look up for each run of cells, in one segment.

    Attributes
    ----------
    columns
        (n_perturbations,) column of each target in the segment's matrix, -1 for none.
    run_target
        (n_runs + 1,) column of the target of a run's cells, -1 for none. The last entry is for run -1,
        the cells that are in no group.
    run_stratum
        (n_runs + 1,) stratum of a run of controls, -1 for other runs.
    n_strata
        Number of strata.
    """

    columns: NDArray[np.int64]
    run_target: NDArray[np.int64]
    run_stratum: NDArray[np.int64]
    n_strata: int

    def count_controls(self, stratum: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n_strata, n_perturbations) controls in which each target was measured, from the rows' strata."""
        counts = np.bincount(stratum[stratum >= 0], minlength=self.n_strata)
        return counts[:, None] * (self.columns >= 0)


_Gathered = tuple["NDArray[Any]", "NDArray[np.float64]", "NDArray[np.int64]"]
"""Expression of each row's own target, and the control sums and counts of the rows."""


def _recorded_index(segment: MatrixSegment, groups: Groups, columns: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """(n_perturbations,) position of each target in the recorded statistics, -1 for none; None if any differs."""
    if segment.cell_stats is None or segment.labels is None:
        return None
    labels = groups.labels["perturbation"]
    if not len(segment.labels):
        return None if (columns >= 0).any() else np.full(len(labels), -1)
    index = np.minimum(np.searchsorted(segment.labels, labels), len(segment.labels) - 1)
    recorded = np.where(segment.labels[index] == labels, segment.cell_stats.target[index], -1)
    has_target = columns >= 0
    return np.where(has_target, index, -1) if (recorded == columns)[has_target].all() else None


def _read_recorded(
    segment: MatrixSegment, index: NDArray[np.int64], run_of_row: NDArray[np.int32], lookup: _Lookup
) -> _Gathered:
    """Return what `_stream` computes for a whole segment from the recorded cell statistics."""
    stats = segment.cell_stats
    assert stats is not None
    has_target = lookup.columns >= 0
    sums = np.zeros((lookup.n_strata, len(lookup.columns)))
    control_stratum = lookup.run_stratum[run_of_row[segment.first_row + stats.control_row]]
    target_index = np.flatnonzero(has_target)
    np.add.at(sums, (control_stratum[:, None], target_index[None, :]), stats.control_sum[:, index[has_target]])
    runs = run_of_row[segment.first_row : segment.first_row + segment.matrix.shape[0]]
    values = stats.own_target.read(0, len(stats.own_target)).astype(segment.matrix.dense_dtype)
    values[lookup.run_target[runs] < 0] = np.nan  # recorded, but not a target here
    return values, sums, lookup.count_controls(lookup.run_stratum[runs])


def _stream(matrix: Matrix, first: int, runs: NDArray[np.int32], lookup: _Lookup) -> _Gathered:
    """Read rows block by block, starting at `first`, one row per entry of `runs`."""
    values = np.full(len(runs), np.nan, dtype=matrix.dense_dtype)
    sums = np.zeros((lookup.n_strata, len(lookup.columns)))
    target_of_column = np.full(matrix.shape[1], -1, dtype=np.int64)
    target_index = np.flatnonzero(lookup.columns >= 0)
    target_of_column[lookup.columns[target_index]] = target_index
    # Controls need the expression of all targets; other cells need only that of their own target.
    own_column, stratum = lookup.run_target[runs], lookup.run_stratum[runs]
    density = max(1.0, matrix.stats["nnz"] / max(1, matrix.shape[0]))
    step = max(1, int(_BLOCK_VALUES / density))
    for start in range(0, len(runs), step):
        rows = slice(start, min(len(runs), start + step))
        own, strata = own_column[rows], stratum[rows]
        if (own >= 0).any() or (strata >= 0).any():
            block = matrix.read(first + rows.start, first + rows.stop)
            target_sums(block.indptr, block.indices, block.data, own, strata, target_of_column, values[rows], sums)
    return values, sums, lookup.count_controls(stratum)
