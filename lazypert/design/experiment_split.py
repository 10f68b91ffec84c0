"""Splitting a screen according to an experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazypert.design.experiment import ExperimentConfig, assign_split
from lazypert.splits.split_result import SplitResult, split_by_run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lazypert.screen.groups import Groups
    from lazypert.splits.names import Split


def split_experiment(experiment: ExperimentConfig, groups: Groups, owners: Mapping[str, str]) -> SplitResult:
    """Assign the runs of a screen to the splits of an experiment.

    Parameters
    ----------
    experiment
        What to train on and what to hold out.
    groups
        The cells of all files of the experiment's datasets. A dataset label is a name in `owners`, or
        ``<name>/<file>`` for a file inside a store of several files. A single file may have any dataset labels.
    owners
        For the name of each file, in order, the dataset of the experiment that the file belongs to.

    Raises
    ------
    LabelNotFoundError
        If a held-out cell type or perturbation does not occur.
    """
    check_held_out(experiment, groups)
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


def check_held_out(experiment: ExperimentConfig, groups: Groups) -> None:
    """Check that every held-out label occurs: a misspelt one would be trained on instead of held out.

    Raises
    ------
    LabelNotFoundError
        If one does not occur.
    """
    for zero in experiment.zeroshot:
        groups.code_of("cell_type", zero.cell_type)
    for few in experiment.fewshot:
        groups.code_of("cell_type", few.cell_type)
        for label in (*few.val_perturbations, *few.test_perturbations):
            groups.code_of("perturbation", label)


def _owner(label: str, owners: Mapping[str, str]) -> str:
    """Dataset of the experiment that a dataset label belongs to: that of the longest matching name."""
    if label in owners:
        return owners[label]
    prefixes = [name for name in owners if label.startswith(f"{name}/")]
    return owners[max(prefixes, key=len)] if prefixes else next(iter(owners.values()))
