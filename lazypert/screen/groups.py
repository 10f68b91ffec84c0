"""Groups of cells, as a table of runs: everything else is arithmetic on these few intervals."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lazypert._internal.inverse_permutation import inverse
from lazypert.errors import LabelNotFoundError, near_matches
from lazypert.screen.cell_order import order_cells
from lazypert.screen.cell_table import BatchCounts, CellArrays, code_dtype
from lazypert.screen.combinations import combined_label, controls_in
from lazypert.screen.conditions import Conditions
from lazypert.screen.group_table import group_table
from lazypert.screen.labels import label_array, rename
from lazypert.screen.roles import AXES, RUN_AXES, missing_controls, no_such_control
from lazypert.screen.rows import Rows
from lazypert.screen.run_keys import decode, encode, in_run_order, run_radices
from lazypert.screen.selected_groups import select_in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from lazypert.screen.cell_table import CellTable
    from lazypert.screen.roles import Roles

ALL = "all"
"""Label of every cell on an axis that has no column."""

_CELLS_AT_ONCE = 1_048_576


@dataclass(frozen=True, eq=False)
class Groups:
    """The cells of a screen, grouped by (cell_type, perturbation, condition, dataset).

    A condition is a combination of labels of the covariates; without covariates, all cells have the same one. Inside a
    run, cells are in the order of a hash of their names, so that any interval is a simple random sample of the run.

    Attributes
    ----------
    roles
        Columns that cells are grouped by, and the control label.
    labels
        For each of `AXES`, its (n_labels,) sorted labels.
    start, stop
        (n_runs,) int64 positions of each run. Runs cover all cells without overlap, sorted by their
        labels, with missing labels last.
    codes
        For each of `RUN_AXES`, (n_runs,) int32 codes, -1 for a missing label.
    condition
        (n_runs,) int32 number of each run's condition.
    row_order
        (n_obs,) store row of each position, or None if positions are rows.
    n_obs
        Number of cells.
    cells
        Batch codes and name hashes of single cells, by store row.
    known_batch_counts
        What `batch_counts` would count, if it is known.
    conditions
        The conditions, in the order of their numbers.
    control_parts
        Control labels, or patterns of them, that occur as parts of combinations.
    """

    roles: Roles
    labels: dict[str, NDArray[np.str_]]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    codes: dict[str, NDArray[np.int32]]
    condition: NDArray[np.int32]
    row_order: NDArray[np.integer] | None
    n_obs: int
    cells: CellTable
    known_batch_counts: BatchCounts | None = None
    conditions: Conditions = field(default_factory=Conditions)
    control_parts: tuple[str, ...] = ()

    @classmethod
    def from_codes(
        cls,
        codes: Mapping[str, NDArray[np.integer] | None],
        labels: Mapping[str, NDArray[np.str_]],
        roles: Roles,
        hashes: NDArray[np.uint64],
        *,
        conditions: tuple[NDArray[np.int32], Conditions] | None = None,
        rows: NDArray[np.integer] | None = None,
        cells: CellTable | None = None,
        read_names: Callable[[NDArray[np.integer]], NDArray[Any]] | None = None,
    ) -> Groups:
        """Group cells by their codes.

        Parameters
        ----------
        codes
            For each of `AXES`: (n_obs,) integers, -1 for a missing label; or None, or no entry, if the screen
            has no such column.
        labels
            For each of `AXES`: its labels (ignored if codes are None).
        hashes
            (n_obs,) name hash of each cell, from `lazypert.screen.cell_order.name_hashes`.
        conditions
            (n_obs,) number of each cell's condition, and the conditions, as `Conditions.encode` returns them; None
            without covariates.
        rows
            (n_obs,) store row of each cell, if these are not all cells of a store in order.
        cells
            Table of all cells of the store; None makes one of `codes` and `hashes`, which then must be those
            of all rows.
        read_names
            For a table that is made: reads the names of cells by row.
        """
        codes = {axis: codes.get(axis) for axis in AXES}
        names = {axis: label_array([ALL] if codes[axis] is None else [*map(str, labels[axis])]) for axis in AXES}
        control_parts: tuple[str, ...] = ()
        if codes["perturbation"] is not None:
            codes["perturbation"], names["perturbation"], control_parts = combine_labels(
                codes["perturbation"], names["perturbation"], roles
            )
        n_obs, (condition, known) = len(hashes), conditions or (None, Conditions())
        assert tuple(known.labels) == roles.covariates
        sizes = run_radices(names, known)
        key = encode(in_run_order(codes, condition), sizes, n_obs)
        order, hashes = order_cells(key, hashes)
        key = key[order]
        first = np.flatnonzero(np.diff(key, prepend=-1) != 0)
        if rows is not None:
            order = np.asarray(rows)[order]
        is_in_order = bool((order == np.arange(n_obs)).all())
        if cells is None:
            batch = codes["batch"]
            batch = None if batch is None else batch.astype(code_dtype(len(names["batch"])))
            cells = CellArrays(batch, hashes, read_names)
        cell_type, perturbation, condition_of_run, dataset = decode(key[first], sizes)
        return cls(
            roles=roles,
            labels=names,
            start=first.astype(np.int64),
            stop=np.append(first[1:], n_obs)[: len(first)].astype(np.int64),
            codes=dict(zip(RUN_AXES, (cell_type, perturbation, dataset), strict=True)),
            condition=condition_of_run,
            row_order=None if is_in_order else order.astype("i4" if order.max(initial=0) < 2**31 else "i8", copy=False),
            n_obs=n_obs,
            cells=cells,
            conditions=known,
            control_parts=control_parts,
        )

    def select(self, rows: NDArray[np.integer]) -> Groups:
        """Return the groups of some of the cells, with the same labels and codes. No column is read.

        These groups must be those of all rows of a store.

        Parameters
        ----------
        rows
            (n,) store rows, in any order; a row may occur several times.
        """
        if (selected := select_in_order(self, rows)) is not None:
            return selected
        positions = rows if self.row_order is None else inverse(self.row_order)[rows]
        run, columns = self.run_of(positions.astype(np.int64)), self.roles.columns()
        codes: dict[str, NDArray[np.int32] | None]
        codes = {axis: None if columns[axis] is None else self.codes[axis][run] for axis in RUN_AXES}
        codes["batch"] = None if columns["batch"] is None else self.batch_of(rows)
        chosen = Groups.from_codes(
            codes,
            self.labels,
            self.roles,
            self.cells.hashes(rows),
            conditions=(self.condition[run], self.conditions) if self.roles.covariates else None,
            rows=rows,
            cells=self.cells,
        )
        return replace(chosen, control_parts=self.control_parts)

    def __len__(self) -> int:
        return len(np.unique(self.ids[self.ids >= 0]))

    def __repr__(self) -> str:
        plurals = {
            "cell_type": "cell types",
            "perturbation": "perturbations",
            "dataset": "datasets",
            "batch": "batches",
        }
        counts = {axis: len(labels) for axis, labels in self.labels.items()}
        listed = ", ".join(f"{n:,} {axis.replace('_', ' ') if n == 1 else plurals[axis]}" for axis, n in counts.items())
        if self.roles.covariates:
            listed += f", {len(self.conditions):,} condition{'s' * (len(self.conditions) != 1)}"
        return f"Groups({self.n_obs:,} cells in {len(self):,} groups and {len(self.start):,} runs: {listed})"

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """(n_runs,) group id ``(cell_type * n_perturbations + perturbation) * n_conditions + condition``.

        It is -1 if the cell type or the perturbation is missing. Without covariates there is one condition, number 0.
        """
        return np.where(self.pair_ids < 0, -1, self.pair_ids * len(self.conditions) + self.condition)

    @cached_property
    def pair_ids(self) -> NDArray[np.int64]:
        """(n_runs,) ``cell_type * n_perturbations + perturbation``, in any condition; -1 if either is missing."""
        cell_type, pert = self.codes["cell_type"], self.codes["perturbation"]
        ids = cell_type.astype(np.int64) * len(self.labels["perturbation"]) + pert
        return np.where((cell_type < 0) | (pert < 0), -1, ids)

    @cached_property
    def matching_ids(self) -> NDArray[np.int64]:
        """(n_runs,) id of the (cell_type, dataset), within which cells are matched with controls."""
        dataset = self.codes["dataset"].astype(np.int64) + 1  # 0 for a missing label
        return (self.codes["cell_type"].astype(np.int64) + 1) * (len(self.labels["dataset"]) + 1) + dataset

    @cached_property
    def batch_counts(self) -> BatchCounts:
        """Number of cells of each run by batch."""
        if self.known_batch_counts is not None:
            return self.known_batch_counts
        n_batches, parts = len(self.labels["batch"]), [BatchCounts.none()]
        for begin in range(0, self.n_obs, _CELLS_AT_ONCE):
            positions = np.arange(begin, min(self.n_obs, begin + _CELLS_AT_ONCE))
            run = self.run_of(positions)
            rows = positions if self.row_order is None else self.row_order[positions]
            parts.append(BatchCounts.count(run, self.batch_of(rows), n_batches))
        return BatchCounts.total(parts, n_batches)

    def batch_of(self, rows: NDArray[np.integer]) -> NDArray[np.int32]:
        """(n,) batch codes of cells by store row, -1 for a missing label."""
        codes = self.cells.batch_codes()
        return np.zeros(len(rows), np.int32) if codes is None else codes[rows].astype(np.int32)

    def subgroup_of(self, run: NDArray[np.integer], rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """(n,) number of each cell's (run, batch) in `batch_counts`, from its run and store row."""
        n_batches = len(self.labels["batch"])
        key = run.astype(np.int64) * (n_batches + 1) + self.batch_of(rows) + 1
        return np.searchsorted(self.batch_counts.keys(n_batches), key)

    def run_of_rows(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """(n,) run of each store row, -1 for rows of the store that are in none."""
        if self.row_order is None:
            return np.where(rows < self.n_obs, self.run_of(rows.astype(np.int64)), -1)
        return np.where(rows < len(self._run_by_row), self._run_by_row.take(rows, mode="clip"), -1).astype(np.int64)

    def runs_between(self, start: int, stop: int) -> NDArray[np.int64]:
        """(stop - start,) run of each of consecutive store rows, -1 for rows that are in none."""
        if self.row_order is None:
            bounds = np.append(self.start[self._by_start], self.n_obs).clip(start, min(stop, self.n_obs))
            runs = np.repeat(np.arange(len(self.start))[self._by_start], np.diff(bounds))
        else:
            runs = self._run_by_row[start:stop].astype(np.int64)
        return np.append(runs, np.full(stop - start - len(runs), -1))

    @cached_property
    def _run_by_row(self) -> NDArray[np.integer]:
        """(n_rows,) run of each store row, up to the last one that is in a run."""
        assert self.row_order is not None
        dtype = code_dtype(len(self.start))
        n_rows = int(self.row_order.max(initial=-1)) + 1
        return self.expand(np.arange(len(self.start), dtype=dtype), n_rows)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n_runs,) number of cells in each run."""
        return self.stop - self.start

    @cached_property
    def is_control_code(self) -> NDArray[np.bool_]:
        """(n_perturbations,) whether a perturbation label marks controls; all False if the roles name none."""
        labels, is_control = self.labels["perturbation"], self.roles.is_control_label
        return np.fromiter((is_control(str(label)) for label in labels), dtype=bool, count=len(labels))

    @cached_property
    def is_control(self) -> NDArray[np.bool_]:
        """(n_runs,) whether a run's cells are controls."""
        return np.append(self.is_control_code, False)[self.codes["perturbation"]]  # code -1 indexes the appended False

    def require_controls(self, *, all_labels: bool = True) -> None:
        """Check that the control labels occur.

        Parameters
        ----------
        all_labels
            Whether each of several labels must occur, or only one of them. Where combinations are read, one must, and
            the others may occur as parts only.

        Raises
        ------
        LabelNotFoundError
            If one does not occur, or a pattern matches no label; near matches are listed.
        """
        known, controls = self.labels["perturbation"].tolist(), self.roles.controls
        missing = missing_controls(self.roles, known)
        if missing and len(missing) == len(controls):
            raise no_such_control(missing[0], known, self.roles.pert_col)
        missing = missing_controls(self.roles, [*known, *self.control_parts]) if all_labels else []
        if missing:
            raise no_such_control(missing[0], known, self.roles.pert_col)

    @property
    def n_unlabelled(self) -> int:
        """Number of cells without a cell type or a perturbation: they are in no group, split or pool."""
        return int(self.sizes[self.ids < 0].sum())

    def code_of(self, axis: str, label: str) -> int:
        """Return the code of a label.

        Raises
        ------
        LabelNotFoundError
            If it does not occur; near matches are listed.
        """
        if axis == "perturbation":
            label = combined_label(label, self.roles)
        codes = np.flatnonzero(self.labels[axis] == label)
        if not len(codes):
            raise LabelNotFoundError(
                f"{axis}: got {label!r}, expected a label in obs column {self.roles.columns()[axis]!r}. "
                f"{near_matches(label, self.labels[axis])}"
            )
        return int(codes[0])

    def rows(self, runs: NDArray[np.bool_] | NDArray[np.integer]) -> Rows:
        """Return the rows of the chosen runs, in run order."""
        return Rows(self.start[runs], self.stop[runs], self.row_order)

    def run_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the run that contains each position."""
        by_start = self._by_start
        run = np.searchsorted(self.start[by_start], positions, side="right") - 1
        return run if isinstance(by_start, slice) else by_start[run]

    @cached_property
    def _by_start(self) -> NDArray[np.int64] | slice:
        """Runs sorted by position; only in concatenated screens are they not in this order already."""
        return slice(None) if (np.diff(self.start) >= 0).all() else np.argsort(self.start, kind="stable")

    def expand(self, per_run: NDArray[Any], n_rows: int | None = None) -> NDArray[Any]:
        """Expand one value per run to one value per row, in row order.

        Parameters
        ----------
        per_run
            (n_runs,) values.
        n_rows
            Rows of the store, if the groups cover only some of them; the other rows get -1 or False.

        Returns
        -------
        (n_rows,) values.
        """
        by_start = self._by_start
        per_position = np.repeat(per_run[by_start], self.sizes[by_start])
        if self.row_order is None and n_rows in (None, self.n_obs):
            return per_position
        per_row = np.full(n_rows or self.n_obs, False if per_position.dtype == bool else -1, dtype=per_position.dtype)
        per_row[slice(len(per_position)) if self.row_order is None else self.row_order] = per_position
        return per_row

    def table(self) -> pd.DataFrame:
        """Return one row per group: its labels, number of cells and of batches, and whether it holds controls.

        Each covariate is a column too, after the perturbation; its label is empty where it is missing. Rows are sorted
        by their labels, those of covariates by their values if they are numbers.
        """
        return group_table(self)


def combine_labels(
    codes: NDArray[np.integer], labels: NDArray[np.str_], roles: Roles
) -> tuple[NDArray[np.integer], NDArray[np.str_], tuple[str, ...]]:
    """Give all combinations of the same parts one label.

    Returns
    -------
    Codes, labels, and the control labels that occur as parts of combinations.
    """
    if roles.separator is None:
        return codes, labels, ()
    control_parts = controls_in(map(str, labels), roles)
    combined = [combined_label(str(label), roles) for label in labels]
    if combined != labels.tolist():
        codes, labels = rename(codes, combined)
    return codes, labels, control_parts


class HasGroups(Protocol):
    """Anything with groups: a source, or the accessor of a Dataset."""

    @property
    def groups(self) -> Groups:
        """Groups of its cells."""
        ...
