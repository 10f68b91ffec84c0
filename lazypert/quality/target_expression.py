"""Expression of each perturbation's target, in its own cells and in controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask
import numpy as np

from lazypert.quality.value_scale import PER
from lazypert.screen.targets import target_sums
from lazypert.store.visibility import check_stores

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lazypert.quality.control_strata import ControlStrata
    from lazypert.screen.groups import Groups
    from lazypert.sources.base import PerturbationSource
    from lazypert.sources.matrix_segment import MatrixSegment
    from lazypert.sparse.csr import CSRBlock
    from lazypert.store.matrix import Matrix

_BLOCK_VALUES = 4_194_304  # stored values that a task reads at once

# Floating-point sums depend on where rows are divided, so the number of tasks is the same on every machine.
_TASKS_PER_MATRIX = 64

_TASKS_AT_ONCE = 16  # whose results are in memory together

_ROWS_AT_ONCE = 1_048_576


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

    def control_means(self, wider_of_stratum: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n_strata, n_perturbations) mean of each target in controls; NaN where there are none.

        Parameters
        ----------
        wider_of_stratum
            (n_strata,) wider stratum whose mean a stratum without controls gets, such as its cell type's. Strata
            whose sum is not finite have no part in it.
        """
        shape = (int(wider_of_stratum.max(initial=0)) + 1, self.control_sum.shape[1])
        sums, cells = np.zeros(shape), np.zeros(shape, dtype=np.int64)
        is_finite = np.isfinite(self.control_sum)
        np.add.at(sums, wider_of_stratum, np.where(is_finite, self.control_sum, 0))
        np.add.at(cells, wider_of_stratum, np.where(is_finite, self.control_cells, 0))
        with np.errstate(invalid="ignore", divide="ignore"):
            own_means, wider_means = self.control_sum / self.control_cells, (sums / cells)[wider_of_stratum]
        return np.where(self.control_cells > 0, own_means, wider_means)


def gather_target_expression(
    source: PerturbationSource,
    groups: Groups,
    target_column: NDArray[np.int64],
    strata: ControlStrata,
    layer: str | None,
    *,
    normalise_depth: bool = False,
) -> TargetExpression:
    """Gather the expression of every target in one pass.

    Takes the cell statistics recorded during conversion where they describe these cells and targets.
    Otherwise reads the matrix, block by block, in Dask tasks of consecutive rows. Takes the memory of the values
    that it returns, and a few tasks.

    Parameters
    ----------
    target_column
        (n_perturbations,) column of each perturbation's target among the source's genes; -1 for none.
    strata
        Which controls each cell is compared with.
    normalise_depth
        Scale each cell to a total of 10,000. Sums over controls of such values are not recorded.
    """
    shape, segments = (len(strata), len(target_column)), list(source.segments(layer))
    check_stores(segment.matrix.data.reader for segment in segments)
    dtypes = [np.dtype("f8") if normalise_depth else segment.matrix.dense_dtype for segment in segments]
    own = np.full(source.n_rows, np.nan, dtype=max(dtypes, key=lambda d: d.itemsize, default=np.dtype("f4")))
    sums, cells = np.zeros(shape), np.zeros(shape, dtype=np.int64)
    segment_of_run = _segment_of_run(groups, segments)
    for number, segment in enumerate(segments):
        columns = np.append(segment.column_of, -1)[target_column].astype(np.int64)  # -1 picks the last entry
        run_target = np.append(np.append(columns, -1)[groups.codes["perturbation"]], -1)
        lookup = _Lookup(columns, run_target, groups.is_control, strata, normalise_depth)
        own_of_segment = own[segment.first_row : segment.first_row + segment.matrix.shape[0]]
        n_controls = strata.count(groups, groups.is_control & (segment_of_run == number))
        cells += n_controls[:, None] * (columns >= 0)
        index = None if normalise_depth else _recorded_index(segment, groups, columns)
        if index is not None:
            sums += _read_recorded(segment, index, groups, lookup, own_of_segment)
        else:
            _stream_segment(segment, groups, lookup, own_of_segment, sums)
    return TargetExpression(own, sums, cells)


def _segment_of_run(groups: Groups, segments: list[MatrixSegment]) -> NDArray[np.int64]:
    """(n_runs,) number of the segment that holds the cells of each run, which are of one dataset."""
    first_rows = groups.rows(np.arange(len(groups.start))).firsts()
    return np.searchsorted([segment.first_row for segment in segments], first_rows, side="right") - 1


def _stream_segment(
    segment: MatrixSegment, groups: Groups, lookup: _Lookup, own: NDArray[Any], sums: NDArray[np.float64]
) -> None:
    """Read a segment's matrix in tasks; fill `own` and add to `sums`, always in the same order."""
    ranges, batch = list(_task_ranges(len(own))), None
    if lookup.strata.batch_keys is not None:
        batch = groups.cells.batch_codes()
    # Workers of a cluster get these once, and not with every task.
    matrix, shared_lookup = (dask.delayed(one, pure=False, traverse=False) for one in (segment.matrix, lookup))
    for begin in range(0, len(ranges), _TASKS_AT_ONCE):
        tasks = []
        for start, stop in ranges[begin : begin + _TASKS_AT_ONCE]:
            first = segment.first_row + start
            runs = groups.runs_between(first, first + stop - start)
            of_rows = None if batch is None else batch[first : first + stop - start]
            tasks.append(dask.delayed(_stream, pure=False)(matrix, start, runs, of_rows, shared_lookup))
        for (start, stop), (values, task_sums) in zip(ranges[begin:], dask.compute(*tasks), strict=False):
            own[start:stop] = values
            sums += task_sums


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
    is_control
        (n_runs,) whether a run's cells are controls.
    strata
        Strata of the controls.
    normalise_depth
        Whether each cell is scaled to a total of 10,000.
    """

    columns: NDArray[np.int64]
    run_target: NDArray[np.int64]
    is_control: NDArray[np.bool_]
    strata: ControlStrata
    normalise_depth: bool

    def control_stratum(self, run: NDArray[np.integer], batch: NDArray[np.integer] | None) -> NDArray[np.int64]:
        """(n,) stratum of each control, -1 for other cells, from the runs and batches of cells."""
        if self.strata.batch_keys is not None and batch is None:  # the screen has no batch column
            batch = np.zeros(len(run), np.int8)
        return np.where(np.append(self.is_control, False)[run], self.strata.of_cells(run, batch), -1)


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
    segment: MatrixSegment, index: NDArray[np.int64], groups: Groups, lookup: _Lookup, own: NDArray[Any]
) -> NDArray[np.float64]:
    """Fill `own` from the recorded cell statistics of a whole segment, and return its control sums."""
    stats = segment.cell_stats
    assert stats is not None
    has_target = lookup.columns >= 0
    sums = np.zeros((len(lookup.strata), len(lookup.columns)))
    target_index = np.flatnonzero(has_target)
    rows = segment.first_row + stats.control_row
    stratum = lookup.strata.of_cells(groups.run_of_rows(rows), groups.batch_of(rows))
    np.add.at(sums, (stratum[:, None], target_index[None, :]), stats.control_sum[:, index[has_target]])
    for start in range(0, len(own), _ROWS_AT_ONCE):
        stop = min(len(own), start + _ROWS_AT_ONCE)
        values = own[start:stop]
        values[:] = stats.own_target.read(start, stop)
        runs = groups.runs_between(segment.first_row + start, segment.first_row + stop)
        values[lookup.run_target[runs] < 0] = np.nan  # recorded, but not a target here
    return sums


def _stream(
    matrix: Matrix, first: int, runs: NDArray[np.integer], batch: NDArray[np.integer] | None, lookup: _Lookup
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read the rows from `first` on, block by block.

    Parameters
    ----------
    runs, batch
        (n,) run and batch of each row.

    Returns
    -------
    Expression of each row's own target, and the control sums of the rows.
    """
    values = np.full(len(runs), np.nan, dtype=np.float64 if lookup.normalise_depth else matrix.dense_dtype)
    sums = np.zeros((len(lookup.strata), len(lookup.columns)))
    target_of_column = np.full(matrix.shape[1], -1, dtype=np.int64)
    target_index = np.flatnonzero(lookup.columns >= 0)
    target_of_column[lookup.columns[target_index]] = target_index
    # All targets are wanted in controls, and only the own target in other cells.
    density = max(1.0, matrix.stats["nnz"] / max(1, matrix.shape[0]))
    step = max(1, int(_BLOCK_VALUES / density))
    for start in range(0, len(runs), step):
        rows = slice(start, min(len(runs), start + step))
        own = lookup.run_target[runs[rows]]
        strata = lookup.control_stratum(runs[rows], None if batch is None else batch[rows])
        if (own >= 0).any() or (strata >= 0).any():
            block = matrix.read(first + rows.start, first + rows.stop)
            data = per_total(block) if lookup.normalise_depth else block.data
            target_sums(block.indptr, block.indices, data, own, strata, target_of_column, values[rows], sums)
    sums[:, target_index] = sums[:, target_of_column[lookup.columns[target_index]]]  # targets may be shared
    return values, sums


def per_total(block: CSRBlock) -> NDArray[np.float64]:
    """(nnz,) values, scaled so that each cell's total over all columns is 10,000."""
    lengths = np.diff(block.indptr)
    row = np.repeat(np.arange(len(lengths)), lengths)
    total = np.bincount(row, weights=block.data, minlength=len(lengths))
    scale = np.divide(PER, total, out=np.zeros(len(total)), where=total != 0)  # an empty cell stays empty
    out: NDArray[np.float64] = block.data * scale[row]
    return out
