"""Splitting a screen according to an experiment."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lazypert.design.experiment_entries import FewshotEntry, ZeroshotEntry
from lazypert.errors import LabelNotFoundError, near_matches
from lazypert.screen.combinations import combined_label
from lazypert.splits.names import split_name
from lazypert.splits.split_result import SplitResult, split_by_run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lazypert.design.experiment import ExperimentConfig
    from lazypert.screen.groups import Groups
    from lazypert.screen.roles import Roles
    from lazypert.splits.names import Split


def assign_split(
    config: ExperimentConfig, dataset: str, cell_type: str, perturbation: str, *, is_control: bool
) -> Split | None:
    """Return the split of the cells with one perturbation of one cell type of one dataset.

    ======================================  =====================================
    the cell type is                        its cells go to
    ======================================  =====================================
    in ``[zeroshot]``                       that split, including controls
    in ``[fewshot]``: a control             train
    in ``[fewshot]``: listed in ``test``    test, even if also listed in ``val``
    in ``[fewshot]``: listed in ``val``     valid
    in ``[fewshot]``: any other             train, even if not in ``[training]``
    neither, dataset in ``[training]``      train
    neither, dataset not in ``[training]``  None: not used
    ======================================  =====================================

    Perturbed cells go where cell-load puts them, with one exception: a perturbation in both lists is
    in both splits in cell-load, and only in ``test`` here, so that no model is selected on its test
    cells. Controls of a few-shot cell type differ: cell-load
    divides them among the splits in proportion to the perturbed cells, whereas here all of them train. A control
    listed in ``val`` or ``test`` remains a control, as in cell-load.

    Parameters
    ----------
    config
        The experiment.
    dataset
        A name declared in ``[datasets]``.
    cell_type, perturbation
        Labels as in the screen.
    is_control
        Whether `perturbation` is the control.

    Raises
    ------
    ConfigError
        If the experiment has no such dataset.

    Examples
    --------
    >>> from lazypert.design.experiment import DatasetEntry
    >>> config = ExperimentConfig(
    ...     datasets=(DatasetEntry(name="a", path="a.h5ad"),),
    ...     fewshot=(FewshotEntry(dataset="a", cell_type="K562", val_perturbations=("TP53",)),),
    ... )
    >>> assign_split(config, "a", "K562", "TP53", is_control=False)
    'valid'
    >>> assign_split(config, "a", "RPE1", "TP53", is_control=False) is None
    True
    """
    config.dataset_path(dataset)  # raises for an undeclared dataset, which would otherwise be silently ignored
    split = config.get_zeroshot_celltypes(dataset).get(cell_type)
    if split is not None:
        return split_name(split)
    entry = config.get_fewshot_celltypes(dataset).get(cell_type)
    if entry is None:
        return "train" if dataset in config.training_datasets else None
    if is_control:
        return "train"
    if perturbation in entry.test_perturbations:
        return "test"
    return "valid" if perturbation in entry.val_perturbations else "train"


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
