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

    from lazypert.quality.config import ControlMatch
    from lazypert.quality.contexts import Contexts
    from lazypert.screen.groups import Groups
    from lazypert.sources.base import PerturbationSource
    from lazypert.sources.matrix_segment import MatrixSegment
    from lazypert.sparse.csr import CSRBlock
    from lazypert.store.matrix import Matrix

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


@dataclass(frozen=True, slots=True, eq=False)
class ControlStrata:
    """Which controls each cell is compared with.

    Attributes
    ----------
    of_row
        (n_rows,) int32 number of each cell's stratum; -1 for cells that are in no run.
    wider
        (n_strata,) number of the stratum whose controls serve a stratum that has none.
    """

    of_row: NDArray[np.int32]
    wider: NDArray[np.int64]

    @classmethod
    def of(
        cls, groups: Groups, match: ControlMatch, run_of_row: NDArray[np.int32], contexts: Contexts
    ) -> ControlStrata:
        """Divide the cells of a screen into strata.

        Parameters
        ----------
        run_of_row
            (n_rows,) run of each row, -1 for rows in no run.
        contexts
            Cells are compared only with controls of their own context.
        """
        if match == "all":
            of_context = np.append(contexts.of_run, -1).astype(np.int32)
            return cls(of_context[run_of_row], np.arange(len(contexts.labels)))
        keys, of_run = np.unique(groups.matching_ids, return_inverse=True)
        if match == "cell_type":
            return cls(np.append(of_run, -1).astype(np.int32)[run_of_row], np.arange(len(keys)))
        counts, n_batches = groups.batch_counts, len(groups.labels["batch"])
        batch_key = of_run[counts.run].astype(np.int64) * (n_batches + 1) + counts.batch + 1
        batch_keys, of_subgroup = np.unique(batch_key, return_inverse=True)
        of_row = np.full(len(run_of_row), -1, dtype=np.int32)
        rows = np.flatnonzero(run_of_row >= 0)
        of_row[rows] = of_subgroup[groups.subgroup_of(run_of_row[rows], rows)]
        return cls(of_row, batch_keys // (n_batches + 1))

    def __len__(self) -> int:
        return len(self.wider)


def gather_target_expression(
    source: PerturbationSource,
    groups: Groups,
    target_column: NDArray[np.int64],
    run_of_row: NDArray[np.int32],
    strata: ControlStrata,
    layer: str | None,
    *,
    normalise_depth: bool = False,
) -> TargetExpression:
    """Gather the expression of every target in one pass.

    Takes the cell statistics recorded during conversion where they describe these cells and targets.
    Otherwise reads the matrix, block by block, in Dask tasks of consecutive rows.

    Parameters
    ----------
    target_column
        (n_perturbations,) column of each perturbation's target among the source's genes; -1 for none.
    run_of_row
        (n_rows,) run of each row, -1 for rows in no run.
    strata
        Which controls each cell is compared with.
    normalise_depth
        Scale each cell to a total of 10,000. Sums over controls of such values are not recorded.
    """
    n_strata, n_targets = len(strata), len(target_column)
    control_stratum = np.where(np.append(groups.is_control, False)[run_of_row], strata.of_row, -1)
    row_ranges, tasks, segments = [], [], list(source.segments(layer))
    check_stores(segment.matrix.data.reader for segment in segments)
    for segment in segments:
        columns = np.append(segment.column_of, -1)[target_column].astype(np.int64)  # -1 picks the last entry
        run_target = np.append(np.append(columns, -1)[groups.codes["perturbation"]], -1)
        lookup = _Lookup(columns, run_target, n_strata, normalise_depth)
        index = None if normalise_depth else _recorded_index(segment, groups, columns)
        n_rows = segment.matrix.shape[0]
        if index is not None:
            row_ranges.append((segment.first_row, segment.first_row + n_rows))
            rows = slice(*row_ranges[-1])
            recorded = segment, index, run_of_row[rows], control_stratum[rows], lookup
            tasks.append(dask.delayed(_read_recorded, pure=False)(*recorded))
            continue
        # Workers of a cluster get these once, and not with every task.
        matrix, shared_lookup = (dask.delayed(one, pure=False, traverse=False) for one in (segment.matrix, lookup))
        for start, stop in _task_ranges(n_rows):
            row_ranges.append((segment.first_row + start, segment.first_row + stop))
            rows = slice(*row_ranges[-1])
            tasks.append(
                dask.delayed(_stream, pure=False)(matrix, start, run_of_row[rows], control_stratum[rows], shared_lookup)
            )
    dtypes = [np.dtype("f8") if normalise_depth else segment.matrix.dense_dtype for segment in segments]
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
    n_strata
        Number of strata.
    normalise_depth
        Whether each cell is scaled to a total of 10,000.
    """

    columns: NDArray[np.int64]
    run_target: NDArray[np.int64]
    n_strata: int
    normalise_depth: bool

    def count_controls(self, stratum: NDArray[np.integer]) -> NDArray[np.int64]:
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
    segment: MatrixSegment,
    index: NDArray[np.int64],
    runs: NDArray[np.int32],
    stratum: NDArray[np.int32],
    lookup: _Lookup,
) -> _Gathered:
    """Return what `_stream` computes for a whole segment from the recorded cell statistics."""
    stats = segment.cell_stats
    assert stats is not None
    has_target = lookup.columns >= 0
    sums = np.zeros((lookup.n_strata, len(lookup.columns)))
    target_index = np.flatnonzero(has_target)
    np.add.at(
        sums, (stratum[stats.control_row][:, None], target_index[None, :]), stats.control_sum[:, index[has_target]]
    )
    values = stats.own_target.read(0, len(stats.own_target)).astype(segment.matrix.dense_dtype)
    values[lookup.run_target[runs] < 0] = np.nan  # recorded, but not a target here
    return values, sums, lookup.count_controls(stratum)


def _stream(
    matrix: Matrix, first: int, runs: NDArray[np.int32], stratum: NDArray[np.int32], lookup: _Lookup
) -> _Gathered:
    """Read the rows from `first` on, block by block.

    Parameters
    ----------
    runs, stratum
        (n,) run of each row, and the stratum of each control, -1 for other rows.
    """
    values = np.full(len(runs), np.nan, dtype=np.float64 if lookup.normalise_depth else matrix.dense_dtype)
    sums = np.zeros((lookup.n_strata, len(lookup.columns)))
    target_of_column = np.full(matrix.shape[1], -1, dtype=np.int64)
    target_index = np.flatnonzero(lookup.columns >= 0)
    target_of_column[lookup.columns[target_index]] = target_index
    # All targets are wanted in controls, and only the own target in other cells.
    own_column = lookup.run_target[runs]
    density = max(1.0, matrix.stats["nnz"] / max(1, matrix.shape[0]))
    step = max(1, int(_BLOCK_VALUES / density))
    for start in range(0, len(runs), step):
        rows = slice(start, min(len(runs), start + step))
        own, strata = own_column[rows], stratum[rows]
        if (own >= 0).any() or (strata >= 0).any():
            block = matrix.read(first + rows.start, first + rows.stop)
            data = per_total(block) if lookup.normalise_depth else block.data
            target_sums(block.indptr, block.indices, data, own, strata, target_of_column, values[rows], sums)
    sums[:, target_index] = sums[:, target_of_column[lookup.columns[target_index]]]  # targets may be shared
    return values, sums, lookup.count_controls(stratum)


def per_total(block: CSRBlock) -> NDArray[np.float64]:
    """(nnz,) values, scaled so that each cell's total over all columns is 10,000."""
    lengths = np.diff(block.indptr)
    row = np.repeat(np.arange(len(lengths)), lengths)
    total = np.bincount(row, weights=block.data, minlength=len(lengths))
    scale = np.divide(PER, total, out=np.zeros(len(total)), where=total != 0)  # an empty cell stays empty
    out: NDArray[np.float64] = block.data * scale[row]
    return out
