"""Labels that cells are held out or stratified by: axes of the screen, obs columns, or several of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lazypert.errors import ConfigError
from lazypert.screen.cell_table import code_dtype
from lazypert.screen.groups import ALL
from lazypert.screen.labels import factorise
from lazypert.screen.roles import AXES, ROLE_OF_AXIS, RUN_AXES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows
    from lazypert.splits.cell_source import CellSource

_CELLS_AT_ONCE = 1_048_576


@dataclass(frozen=True, eq=False)
class CellLabels:
    """A label of each run, or of each cell.

    Attributes
    ----------
    labels
        Sorted labels that occur, each with one text per column.
    codes
        Number of the label, -1 where one of its texts is missing: of each chosen run if `of_runs`, otherwise of
        each of their cells, in the order of the runs.
    of_runs
        Whether all cells of a run share a label.
    """

    labels: list[tuple[str, ...]]
    codes: NDArray[np.integer]
    of_runs: bool


def axis_of(groups: Groups, column: str) -> str | None:
    """Return the axis that a name stands for, or None for an ordinary obs column.

    Both the name of an axis and that of its obs column stand for it.
    """
    if column in AXES:
        return column
    return next((axis for axis, name in groups.roles.columns().items() if name == column), None)


def read_cell_labels(source: CellSource, columns: Sequence[str], runs: NDArray[np.bool_], option: str) -> CellLabels:
    """Read the labels of the cells of some runs.

    Parameters
    ----------
    source
        The screen.
    columns
        Names of axes, or of obs columns, which are read.
    runs
        (n_runs,) bool, the chosen runs.
    option
        Name of the option that names the columns, for errors.

    Raises
    ------
    ConfigError
        If the screen has no column for an axis.
    ColumnNotFoundError
        If there is no such obs column.
    """
    groups = source.groups
    parts = [_read_part(source, column, runs, option) for column in columns]
    of_runs = all(is_by_run for _, _, is_by_run in parts)
    sizes = groups.sizes[runs]
    codes = [
        code if is_by_run == of_runs else np.repeat(code, sizes).astype(code_dtype(len(labels)))
        for code, labels, is_by_run in parts
    ]
    if len(parts) == 1:
        return _drop_unused([(str(label),) for label in parts[0][1]], codes[0], of_runs=of_runs)
    shape = [max(1, len(labels)) for _, labels, _ in parts]
    is_missing = np.logical_or.reduce([code < 0 for code in codes])
    key = np.ravel_multi_index([np.where(is_missing, 0, code).astype(np.int64) for code in codes], shape)
    key[is_missing] = -1
    found, code = np.unique(key, return_inverse=True)
    n_missing = int(is_missing.any())
    texts = np.unravel_index(found[n_missing:], shape)
    names = [[str(label) for label in labels[text]] for (_, labels, _), text in zip(parts, texts, strict=True)]
    return CellLabels(list(zip(*names, strict=True)), code - n_missing, of_runs)


def _read_part(
    source: CellSource, column: str, runs: NDArray[np.bool_], option: str
) -> tuple[NDArray[np.integer], NDArray[np.str_], bool]:
    """Codes, labels, and whether the codes are those of runs."""
    groups = source.groups
    axis = axis_of(groups, column)
    codes: NDArray[np.integer]
    if axis is None and column in groups.roles.covariates:
        conditions = groups.conditions
        return conditions.codes_of(column)[groups.condition[runs]], conditions.levels[column], True
    if axis is None:
        return (*read_column(source, column, groups.rows(runs)), False)
    labels = groups.labels[axis]
    if groups.roles.columns()[axis] is None and list(labels) == [ALL]:
        raise ConfigError(
            f"{option}: got {column!r}, but this screen has no {axis} labels. Name its column as {ROLE_OF_AXIS[axis]}."
        )
    if axis in RUN_AXES:
        return groups.codes[axis][runs], labels, True
    batch, rows = groups.cells.batch_codes(), groups.rows(runs)
    codes = np.zeros(len(rows), dtype=np.int8) if batch is None else batch[rows[:]]
    return codes, labels, False


def read_column(
    source: CellSource, column: str, rows: Rows | NDArray[np.integer]
) -> tuple[NDArray[np.integer], NDArray[np.str_]]:
    """Read an obs column as codes, -1 for missing values, and sorted labels.

    Labels are those of `lazypert.screen.labels.factorise`, whatever the type in which a file stores them.
    """
    number_of: dict[str, int] = {}
    codes = np.empty(len(rows), dtype=np.int32)
    for begin in range(0, len(rows), _CELLS_AT_ONCE):
        chunk = slice(begin, min(len(rows), begin + _CELLS_AT_ONCE))
        local, texts = factorise(source.read_obs(column, rows[chunk]))
        numbers = [number_of.setdefault(text, len(number_of)) for text in texts.tolist()]
        codes[chunk] = np.array([*numbers, -1], dtype=np.int32)[local]  # code -1 selects the last
    if not len(rows):
        source.read_obs(column, rows[:])  # raises if there is no such column
    names = np.array(list(number_of), dtype=np.str_)
    labels, rank = np.unique(names, return_inverse=True)
    dtype = code_dtype(len(labels))
    return np.append(rank, -1).astype(dtype)[codes], labels


def _drop_unused(labels: list[tuple[str, ...]], codes: NDArray[np.integer], *, of_runs: bool) -> CellLabels:
    occurs = np.bincount(codes[codes >= 0], minlength=len(labels)) > 0
    new_code = np.append(np.where(occurs, np.cumsum(occurs) - 1, -1), -1).astype(codes.dtype)
    return CellLabels([label for label, used in zip(labels, occurs, strict=True) if used], new_code[codes], of_runs)
