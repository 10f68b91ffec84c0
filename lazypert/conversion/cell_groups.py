"""Groups of all cells, from the combinations of labels that each piece of the files has."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.memory import format_bytes
from lazypert.conversion.plan import MEMORY_SLACK
from lazypert.errors import ConfigError
from lazypert.screen.cell_table import BatchCounts, CellArrays
from lazypert.screen.conditions import Conditions
from lazypert.screen.groups import ALL, Groups, combine_labels
from lazypert.screen.labels import label_array
from lazypert.screen.renames import rename_labels
from lazypert.screen.roles import AXES, RUN_AXES
from lazypert.screen.run_keys import MAX_TABLE, decode, encode, in_run_order, run_radices

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lazypert._internal.memory import Budget
    from lazypert.conversion.obs_labels import ObsLabels
    from lazypert.screen.roles import Roles

# Bytes that a subgroup takes while they are counted: its key and count, as they are and merged; and in every table.
_BYTES_PER_SUBGROUP = 64


@dataclass(frozen=True, eq=False)
class AxisCodes:
    """How labels in an obs column become codes of an axis, which may merge them.

    Attributes
    ----------
    column
        The column; None if all cells have the same label, or for the dataset, which is known for each file.
    new_code
        (n_labels + 1,) code of each label in the column, and -1.
    """

    column: str | None
    new_code: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class CellGroups:
    """The groups of all cells, and how to tell the subgroup of a cell: its run and batch.

    Attributes
    ----------
    groups
        Groups whose positions are rows, without a table of cells.
    axes
        For each of `AXES`, how its codes follow from labels.
    conditions
        For each piece, the number of the condition of each of its own conditions.
    keys
        (n_subgroups,) sorted keys of the subgroups.
    run
        (n_subgroups,) run of each.
    """

    groups: Groups
    axes: dict[str, AxisCodes]
    conditions: list[NDArray[np.int32]]
    keys: NDArray[np.int64]
    run: NDArray[np.int64]

    def subgroups(self, labels: ObsLabels, piece: int) -> NDArray[np.int32]:
        """(n_combinations,) subgroup of each combination of labels of a piece."""
        keys = _Keys(self.axes, self.groups.labels, self.groups.conditions)
        return np.searchsorted(self.keys, keys.of(labels, piece, self.conditions[piece])).astype(np.int32)


@dataclass(frozen=True, eq=False)
class _Keys:
    """Keys of subgroups: the key of the run, and the batch."""

    axes: dict[str, AxisCodes]
    names: Mapping[str, NDArray[np.str_]]
    conditions: Conditions

    def of(self, labels: ObsLabels, piece: int, condition_numbers: NDArray[np.int32]) -> NDArray[np.int64]:
        """(n_combinations,) key of each combination of labels of a piece."""
        counts, found = labels.counts(piece), labels.codes(piece)
        codes: dict[str, NDArray[Any] | None] = {
            axis: None if known.column is None else known.new_code[found[known.column]]
            for axis, known in self.axes.items()
        }
        if len(dataset := self.axes["dataset"].new_code) > 1:
            codes["dataset"] = np.full(len(counts), dataset[labels.pieces[piece].file], np.int32)
        condition = None
        if self.conditions.labels:
            condition = condition_numbers[_own_conditions(labels, found, self.conditions.labels)[0]]
        key = encode(in_run_order(codes, condition), run_radices(self.names, self.conditions), len(counts))
        batch = np.zeros(len(counts), np.int64) if codes["batch"] is None else codes["batch"]
        return key * (len(self.names["batch"]) + 1) + batch + 1

    @property
    def n_possible(self) -> int:
        """Number of possible keys."""
        sizes = run_radices(self.names, self.conditions)
        return prod(size + 1 for size in sizes) * (len(self.names["batch"]) + 1)


def _own_conditions(
    labels: ObsLabels, codes: Mapping[str, NDArray[np.int32]], covariates: Sequence[str] | Mapping[str, Any]
) -> tuple[NDArray[np.int32], Conditions]:
    return Conditions.encode({name: (codes[name], labels.labels[name]) for name in covariates})


def group_cells(labels: ObsLabels, roles: Roles, dataset_names: Sequence[str], budget: Budget) -> CellGroups:
    """Group all cells.

    Parameters
    ----------
    labels
        Labels in all columns of the roles.
    dataset_names
        One name per file.

    Raises
    ------
    ConfigError
        If there are so many groups that their table does not fit into the memory limit.
    """
    axes, names, control_parts = _axes(labels, roles, dataset_names)
    conditions, numbers = _unite_conditions(labels, roles)
    keys = _Keys(axes, names, conditions)
    counter = _Counter(keys.n_possible, budget)
    for piece in range(len(labels.files)):
        counter.add(keys.of(labels, piece, numbers[piece]), labels.counts(piece))
    found, n_cells = counter.total()
    run_key, batch = np.divmod(found, len(names["batch"]) + 1)
    is_first = np.diff(run_key, prepend=-1) != 0
    run = np.cumsum(is_first) - 1
    cell_type, perturbation, condition, dataset = decode(run_key[is_first], run_radices(names, conditions))
    first = np.cumsum(n_cells) - n_cells
    start, n_obs = first[is_first], int(n_cells.sum())
    groups = Groups(
        roles=roles,
        labels=names,
        start=start,
        stop=np.append(start[1:], n_obs)[: len(start)],
        codes=dict(zip(RUN_AXES, (cell_type, perturbation, dataset), strict=True)),
        condition=condition,
        row_order=None,
        n_obs=n_obs,
        cells=CellArrays(None, np.empty(0, np.uint64)),
        known_batch_counts=BatchCounts(run, (batch - 1).astype(np.int32), n_cells),
        conditions=conditions,
        control_parts=control_parts,
    )
    return CellGroups(groups, axes, numbers, found, run)


def _axes(
    labels: ObsLabels, roles: Roles, dataset_names: Sequence[str]
) -> tuple[dict[str, AxisCodes], dict[str, NDArray[np.str_]], tuple[str, ...]]:
    axes: dict[str, AxisCodes] = {}
    names: dict[str, NDArray[np.str_]] = {}
    control_parts: tuple[str, ...] = ()
    columns = roles.columns()
    for axis in AXES:
        column = columns[axis]
        if column is None:
            axes[axis], names[axis] = AxisCodes(None, np.full(1, -1, np.int32)), label_array([ALL])
        elif axis == "dataset":
            names[axis] = label_array(sorted(dataset_names))
            axes[axis] = AxisCodes(None, np.append(np.searchsorted(names[axis], dataset_names), -1).astype(np.int32))
        else:
            texts = label_array([*map(str, labels.labels[column])])
            codes: NDArray[Any] = np.arange(len(texts), dtype=np.int32)
            if axis == "perturbation":
                codes, texts = rename_labels(codes, texts, roles)
                codes, texts, control_parts = combine_labels(codes, label_array([*map(str, texts)]), roles)
            axes[axis], names[axis] = AxisCodes(column, np.append(codes, -1).astype(np.int32)), texts
    return axes, names, control_parts


def _unite_conditions(labels: ObsLabels, roles: Roles) -> tuple[Conditions, list[NDArray[np.int32]]]:
    """Return all conditions, and for each piece the number of each condition of its own."""
    if not roles.covariates:
        return Conditions(), [np.zeros(1, np.int32)] * len(labels.files)
    parts = [_own_conditions(labels, labels.codes(k), roles.covariates)[1] for k in range(len(labels.files))]
    return Conditions.unite(parts)


class _Counter:
    """Counts cells by key: in a table of all possible keys if there are few, otherwise by merging sorted keys."""

    def __init__(self, n_possible: int, budget: Budget) -> None:
        self._table = np.zeros(n_possible, np.int64) if n_possible <= MAX_TABLE else None
        self._budget, self._parts = budget, [(np.empty(0, np.int64), np.empty(0, np.int64))]

    def add(self, keys: NDArray[np.int64], n_cells: NDArray[np.int64]) -> None:
        if self._table is not None:
            np.add.at(self._table, keys, n_cells)
            return
        self._parts.append((keys, n_cells))
        if sum(len(part) for part, _ in self._parts[1:]) > max(MAX_TABLE, len(self._parts[0][0])):
            self._merge()

    def _merge(self) -> None:
        keys, part_of = np.unique(np.concatenate([keys for keys, _ in self._parts]), return_inverse=True)
        total = np.zeros(len(keys), np.int64)
        np.add.at(total, part_of, np.concatenate([n_cells for _, n_cells in self._parts]))
        needed = _BYTES_PER_SUBGROUP * len(keys)
        if needed > self._budget.limit + MEMORY_SLACK:
            raise ConfigError(
                f"memory_limit: got {format_bytes(self._budget.limit)}, expected at least "
                f"{format_bytes(needed - MEMORY_SLACK)}, because the cells are in more than {len(keys):,} groups and "
                "batches, whose table is held in memory. Raise the limit, or name fewer covariates: a measured value "
                "is not a condition. No store was made."
            )
        self._parts = [(keys, total)]

    def total(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sorted keys that occur, and the number of cells of each."""
        if self._table is None:
            self._merge()
            keys, n_cells = self._parts[0]
        else:
            keys, n_cells = np.arange(len(self._table)), self._table
        occurs = n_cells > 0
        return keys[occurs], n_cells[occurs]
