"""Splitting a screen according to an experiment."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lazypert.design.experiment import ExperimentConfig, assign_split
from lazypert.design.experiment_entries import FewshotEntry, ZeroshotEntry
from lazypert.errors import LabelNotFoundError, near_matches
from lazypert.screen.combinations import combined_label
from lazypert.splits.split_result import SplitResult, split_by_run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lazypert.screen.groups import Groups
    from lazypert.screen.roles import Roles
    from lazypert.splits.names import Split


def split_experiment(experiment: ExperimentConfig, groups: Groups, owners: Mapping[str, str]) -> SplitResult:
    """Assign the runs of a screen to the splits of an experiment.

    Parameters
    ----------
    experiment
        What to train on and what to hold out; with a separator, the parts of its perturbations are in any order.
    groups
        The cells of all files of the experiment's datasets. A dataset label is a name in `owners`, or
        ``<name>/<file>`` for a file inside a store of several files. A single file may have any dataset labels.
    owners
        For the name of each file, in order, the dataset of the experiment that the file belongs to.

    Raises
    ------
    LabelNotFoundError
        If a held-out cell type does not occur in its dataset, or a held-out perturbation in its cell type.
    """
    experiment = _with_labels_of(groups.roles, experiment)
    check_held_out(experiment, groups, owners)
    names: list[Split | None] = []
    for run in range(len(groups.start)):
        if groups.ids[run] < 0:
            names.append(None)
            continue
        label = {axis: str(groups.labels[axis][code[run]]) for axis, code in groups.codes.items()}
        dataset = _owner(label["dataset"], owners)
        is_control = bool(groups.is_control[run])
        names.append(
            assign_split(experiment, dataset, label["cell_type"], label["perturbation"], is_control=is_control)
        )
    return split_by_run(groups, names)


def _with_labels_of(roles: Roles, experiment: ExperimentConfig) -> ExperimentConfig:
    """Give combinations that are held out the labels that groups have for them."""
    entries = tuple(
        replace(
            entry,
            val_perturbations=tuple(combined_label(label, roles) for label in entry.val_perturbations),
            test_perturbations=tuple(combined_label(label, roles) for label in entry.test_perturbations),
        )
        for entry in experiment.fewshot
    )
    return replace(experiment, fewshot=entries)


def check_held_out(experiment: ExperimentConfig, groups: Groups, owners: Mapping[str, str]) -> None:
    """Check that there are cells for everything that is held out: an entry without any would hold nothing out.

    Parameters
    ----------
    experiment, groups, owners
        As in `split_experiment`.

    Raises
    ------
    LabelNotFoundError
        If a dataset has no cells of a cell type, or the cell type none with a perturbation, that is held out of it.
    """
    perturbations: dict[str, dict[str, set[str]]] = {}
    for run in np.flatnonzero(groups.ids >= 0):
        dataset, cell_type, perturbation = (
            str(groups.labels[axis][groups.codes[axis][run]]) for axis in ("dataset", "cell_type", "perturbation")
        )
        of_dataset = perturbations.setdefault(_owner(dataset, owners), {})
        of_dataset.setdefault(cell_type, set()).add(perturbation)
    entries: tuple[ZeroshotEntry | FewshotEntry, ...] = (*experiment.zeroshot, *experiment.fewshot)
    for entry in entries:
        cell_types = perturbations.get(entry.dataset, {})
        section = "zeroshot" if isinstance(entry, ZeroshotEntry) else "fewshot"
        if entry.cell_type not in cell_types:
            raise LabelNotFoundError(
                f"[{section}] {entry.key!r}: got the cell type {entry.cell_type!r}, expected one of dataset "
                f"{entry.dataset!r}. {near_matches(entry.cell_type, sorted(cell_types))}"
            )
    for few in experiment.fewshot:
        known = sorted(perturbations[few.dataset][few.cell_type])
        for label in (*few.val_perturbations, *few.test_perturbations):
            if label not in known and not groups.roles.is_control_label(label):
                raise LabelNotFoundError(
                    f"[fewshot] {few.key!r}: got the perturbation {label!r}, expected one of cell type "
                    f"{few.cell_type!r} in dataset {few.dataset!r}. {near_matches(label, known)}"
                )


def _owner(label: str, owners: Mapping[str, str]) -> str:
    """Dataset of the experiment that a dataset label belongs to: that of the longest matching name."""
    if label in owners:
        return owners[label]
    prefixes = [name for name in owners if label.startswith(f"{name}/")]
    return owners[max(prefixes, key=len)] if prefixes else next(iter(owners.values()))
