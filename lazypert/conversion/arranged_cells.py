"""Arranging the cells of a store: reading their labels and names, and finding the row of each."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.tasks import run
from lazypert._internal.texts import bounds_of
from lazypert.conversion.array_files import ArrayFile, Counting, Spread
from lazypert.conversion.cell_buckets import Buckets
from lazypert.conversion.cell_groups import group_cells
from lazypert.conversion.cell_pieces import cell_pieces, piece_bounds
from lazypert.conversion.cell_sort import BucketSorter, NameCounter, NameReader, PiecePlacer
from lazypert.conversion.checkpoints import load_checkpoint, save_checkpoint
from lazypert.conversion.notes import NO_CONTROLS, odd_labels, repeated_names, too_many_conditions
from lazypert.conversion.obs_labels import ObsLabels
from lazypert.screen.control_column import controls_by_count, marks_of_labels
from lazypert.screen.renames import rename_labels
from lazypert.screen.roles import missing_controls, no_such_control

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.conversion.array_files import CellNumbers
    from lazypert.conversion.cell_groups import CellGroups
    from lazypert.conversion.cell_pieces import Piece
    from lazypert.conversion.plan import ConversionPlan
    from lazypert.progress import Report
    from lazypert.screen.groups import Groups
    from lazypert.screen.roles import Roles

_DONE = "cells.json"


@dataclass(frozen=True, eq=False)
class ArrangedCells:
    """The cells in the order of the store. Nothing is held in memory for each cell.

    Attributes
    ----------
    groups
        Groups of the rows, or of the positions in `order`.
    pieces
        How the cells of the files are divided among tasks.
    source_row
        (n_obs,) source row of each row of the store.
    destination
        (n_obs,) row in the store of each source row.
    order
        (n_obs,) store row of each position of the groups; None if positions are rows.
    name_hash, subgroup
        (n_obs,) name hash of each row, and number of its run and batch.
    names
        Files with the names of each piece, as in `Texts`; none if they are in the store.
    """

    groups: Groups
    pieces: Sequence[Piece]
    source_row: CellNumbers
    destination: CellNumbers
    order: CellNumbers | None
    name_hash: CellNumbers
    subgroup: CellNumbers
    names: Sequence[ArrayFile]

    def forget_names(self) -> None:
        """Delete the names, once they are in the store."""
        for file in self.names:
            file.remove()


def arrange_cells(plan: ConversionPlan, work: Path, report: Report | None) -> ArrangedCells:
    """Read the labels and names of all cells, and sort the cells by group and hash.

    The work of an interrupted run is reused. The plan gets the labels of controls that a column marks, and notes.

    Parameters
    ----------
    work
        A folder for temporary files.

    Raises
    ------
    LabelNotFoundError
        If a control label does not occur.
    ConfigError
        If the column of controls does not mark labels, or there are too many groups for the memory limit.
    """
    work.mkdir(exist_ok=True)
    roles, control_col = plan.options.roles, plan.options.control_col
    role_columns = {axis: name for axis, name in roles.columns().items() if axis != "dataset"}
    named = [*role_columns.values(), *roles.covariates, control_col]
    columns = list(dict.fromkeys(name for name in named if name is not None))
    pieces = cell_pieces(plan.readers, plan.piece_cells)
    labels = ObsLabels.read(plan.readers, pieces, columns, work, workers=plan.budget.workers, report=report)
    _name_marked_controls(plan, labels)
    roles = plan.options.roles
    notes = _odd_labels(labels, roles)
    if roles.pert_col is not None and roles.control_pert is None:
        notes.append(NO_CONTROLS)
    _require_controls(labels, roles)
    known = group_cells(labels, roles, plan.dataset_names, plan.budget)
    groups = known.groups
    notes += too_many_conditions(groups)
    if groups.n_unlabelled:
        notes.append(f"{groups.n_unlabelled} cells have no cell type or no perturbation: they are in no group")
    found = _Sorted.load(work) or _sort(plan, labels, known, work, report)
    plan.notes += [*repeated_names(found.repeats, found.n_shared, plan.readers), *notes]
    in_source = piece_bounds(pieces)
    begins = bounds_of(np.array([file.arrays["cell"][1] for file in found.cells], np.int64))
    if plan.is_grouped:
        where: dict[str, Any] = {
            "source_row": Spread(found.cells, "cell", begins),
            "destination": Spread(found.placed, "position", in_source),
            "order": None,
            "name_hash": Spread(found.cells, "hash", begins),
            "subgroup": Spread(found.cells, "subgroup", begins),
        }
    else:
        is_in_order = all(file.notes["is_in_order"] for file in found.cells)
        where = {
            "source_row": Counting(plan.n_obs, plan.row_dtype),
            "destination": Counting(plan.n_obs, plan.row_dtype),
            "order": None if is_in_order else Spread(found.cells, "cell", begins),
            "name_hash": Spread(found.placed, "hash", in_source),
            "subgroup": Spread(found.placed, "subgroup", in_source),
        }
    return ArrangedCells(groups=groups, pieces=pieces, names=found.names, **where)


def _name_marked_controls(plan: ConversionPlan, labels: ObsLabels) -> None:
    """Replace the column that marks controls by their labels."""
    column, pert_col = plan.options.control_col, plan.options.roles.pert_col
    if column is None or pert_col is None:
        return
    table = labels.table(pert_col, column)
    is_mark = marks_of_labels(column, labels.labels[column], int(table[:, -1].sum()))
    codes, texts = _perturbations(labels, plan.options.roles)
    n_cells, n_marked = np.zeros((2, len(texts) + 1), np.int64)
    for total, counts in ((n_cells, table.sum(axis=1)), (n_marked, table[:, :-1][:, is_mark].sum(axis=1))):
        np.add.at(total, np.append(codes, -1), counts)
    roles = replace(plan.options.roles, control_pert=controls_by_count(column, texts, n_cells, n_marked))
    plan.options = replace(plan.options, roles=roles, control_col=None)


def _odd_labels(labels: ObsLabels, roles: Roles) -> list[str]:
    """Notes about labels that look like mistakes."""
    notes = []
    if roles.pert_col is not None:
        codes, texts = _perturbations(labels, roles)
        n_cells = np.zeros(len(texts), np.int64)
        np.add.at(n_cells, codes, labels.table(roles.pert_col)[:-1])
        notes += odd_labels(roles.pert_col, texts, n_cells)
    for name in (roles.cell_type_col, *roles.covariates):
        if name is not None:
            notes += odd_labels(name, labels.labels[name], labels.table(name)[:-1])
    return notes


def _perturbations(found: ObsLabels, roles: Roles) -> tuple[NDArray[np.int32], NDArray[np.str_]]:
    """Code of each label of perturbations, and the labels that they get."""
    labels = found.labels[str(roles.pert_col)]
    return rename_labels(np.arange(len(labels), dtype=np.int32), labels, roles)


def _require_controls(found: ObsLabels, roles: Roles) -> None:
    """Raise `LabelNotFoundError` if a control label occurs neither as a label nor as a part of one."""
    if roles.pert_col is None:
        return
    labels: list[str] = _perturbations(found, roles)[1].tolist()
    parts = [part for label in labels for part in label.split(roles.separator)] if roles.separator else []
    missing = missing_controls(roles, [*labels, *parts])
    if missing:
        raise no_such_control(missing[0], labels, roles.pert_col)


@dataclass(frozen=True)
class _Sorted:
    """The files that sorting leaves.

    Attributes
    ----------
    cells
        By bucket: cells, hashes and subgroups.
    placed
        By piece: what `PiecePlacer` gathered.
    names
        By piece: names; empty once they are in the store.
    """

    cells: list[ArrayFile]
    placed: list[ArrayFile]
    names: list[ArrayFile]
    repeats: list[int]
    n_shared: int

    @classmethod
    def load(cls, work: Path) -> _Sorted | None:
        """Return what an interrupted run sorted, if all its files are intact."""
        record = load_checkpoint(work / _DONE)
        with contextlib.suppress(KeyError, TypeError):  # there is none, or not one of this version
            files: dict[str, list[Any]] = {
                kind: [ArrayFile.from_checkpoint(work / name) for name in record[kind]]  # type: ignore[index]
                for kind in ("cells", "placed", "names")
            }
            if None not in files["cells"] + files["placed"]:
                files["names"] = [] if None in files["names"] else files["names"]
                return cls(**files, repeats=record["repeats"], n_shared=record["shared"])  # type: ignore[index]
        (work / _DONE).unlink(missing_ok=True)
        return None

    def save(self, work: Path) -> None:
        """Save the checkpoint that all cells are sorted."""
        record: dict[str, Any] = {"repeats": self.repeats, "shared": self.n_shared}
        for kind in ("cells", "placed", "names"):
            record[kind] = [Path(file.path).name for file in getattr(self, kind)]
        save_checkpoint(work / _DONE, record)


def _sort(plan: ConversionPlan, labels: ObsLabels, groups: CellGroups, work: Path, report: Report | None) -> _Sorted:
    """Run all tasks of sorting."""
    pieces, dtype = labels.pieces, plan.row_dtype
    buckets = Buckets.of(groups.groups.sizes, plan.bucket_cells)
    n_ranges = max(1, -(-plan.n_obs // plan.bucket_cells))
    how: dict[str, Any] = {"workers": plan.budget.workers, "report": report}
    reader = NameReader(plan.readers, labels, groups, buckets, n_ranges, dtype)
    read = run(
        NameReader.read, [(reader, piece, work) for piece in pieces], phase="obs: reading names", size=_sizes, **how
    )
    divided = [cells for cells, _ in read]
    counter = NameCounter(divided, pieces, len(plan.readers))
    tasks: list[tuple[Any, ...]] = [(counter, k, work / f"repeats-{k:06d}.bin") for k in range(n_ranges)]
    counts = run(NameCounter.count, tasks, phase="obs: counting names", size=_size, **how)
    sorter = BucketSorter(divided, buckets, groups.run, piece_bounds(pieces), plan.is_grouped, dtype)
    moves: list[ArrayFile | None] = [None] * buckets.n_buckets
    parts = [bucket for bucket in range(buckets.n_buckets) if buckets.part_of_run(bucket) is not None]
    if parts:
        tasks = [(sorter, bucket, work / f"moves-{bucket:06d}.bin") for bucket in parts]
        found = run(BucketSorter.find_moves, tasks, phase="obs: comparing names", size=_size, **how)
        for bucket, moved in zip(parts, found, strict=True):
            moves[bucket] = moved
    begins = bounds_of(sorter.n_cells(moves)).tolist()
    tasks = [(sorter, bucket, begins[bucket], moves, work) for bucket in range(buckets.n_buckets)]
    sorted_cells = run(BucketSorter.sort, tasks, phase="obs: sorting cells", size=_sizes, **how)
    back = [returned for _, returned in sorted_cells]
    placer = PiecePlacer(back, pieces, ("position",) if plan.is_grouped else ("hash", "subgroup"))
    tasks = [(placer, piece, work / f"placed-{piece.number:06d}.bin") for piece in pieces]
    placed = run(PiecePlacer.place, tasks, phase="obs: placing cells", size=_size, **how)
    repeats = np.sum([file.read("repeats") for file in counts], axis=0).tolist()
    n_shared = sum(file.notes["shared"] for file in counts)
    done = _Sorted([cells for cells, _ in sorted_cells], placed, [names for _, names in read], repeats, n_shared)
    done.save(work)
    for file in [*divided, *counts, *back, *(moved for moved in moves if moved is not None)]:
        file.remove()
    return done


def _size(file: ArrayFile) -> int:
    return file.size


def _sizes(files: tuple[ArrayFile, ...]) -> int:
    return sum(file.size for file in files)
