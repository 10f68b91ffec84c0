"""Cells that take part in a split: those with labels that are neither excluded nor in too small a group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypert.errors import ConfigError, LabelNotFoundError, near_matches
from lazypert.screen.combinations import combined_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.splits.config import SplitRule


def usable_runs(groups: Groups, rule: SplitRule) -> NDArray[np.bool_]:
    """(n_runs,) whether a run's cells take part in a split.

    Raises
    ------
    LabelNotFoundError
        If an excluded label does not occur, unless ``rule.missing`` is ``"ignore"``.
    ConfigError
        If the control label is excluded, or no cell is left.
    """
    used = groups.ids >= 0
    excluded = np.zeros_like(used)
    for axis, name in (("perturbation", "exclude_perturbations"), ("cell_type", "exclude_cell_types")):
        codes = find_codes(groups, axis, getattr(rule, name), used, name, rule)
        if axis == "perturbation":
            refuse_control(groups, codes, name)
        excluded |= np.isin(groups.codes[axis], codes)
    kept = used & ~excluded
    if rule.min_cells_per_group:
        _, group = np.unique(groups.ids, return_inverse=True)
        n_cells = np.bincount(group, weights=np.where(kept, groups.sizes, 0))[group]
        kept &= groups.is_control | (n_cells >= rule.min_cells_per_group)
    if used.any() and not kept.any():
        raise ConfigError(
            f"exclude_perturbations, exclude_cell_types, min_cells_per_group: got {rule.exclude_perturbations!r}, "
            f"{rule.exclude_cell_types!r} and {rule.min_cells_per_group}, which leave no cell to split. Exclude less."
        )
    return kept


def find_codes(
    groups: Groups, axis: str, labels: Sequence[str], used: NDArray[np.bool_], option: str, rule: SplitRule
) -> list[int]:
    """Codes of labels.

    Parameters
    ----------
    used
        (n_runs,) bool: the labels of these runs occur.
    option
        Name of the option, for errors.

    Raises
    ------
    LabelNotFoundError
        If a label does not occur, unless ``rule.missing`` is ``"ignore"``.
    """
    occurring = np.unique(groups.codes[axis][used]).tolist()
    code_of = {str(groups.labels[axis][code]): code for code in occurring}
    column = groups.roles.columns()[axis] or axis
    if axis == "perturbation":
        labels = [combined_label(label, groups.roles) for label in labels]
    found = require_labels(labels, code_of, option, f"a label of obs column {column!r}", rule)
    return [code_of[label] for label in found]


def require_labels(
    labels: Sequence[str], known: Sequence[str] | dict[str, int], option: str, expected: str, rule: SplitRule
) -> list[str]:
    """Return the labels that occur.

    Raises
    ------
    LabelNotFoundError
        If a label does not occur, unless ``rule.missing`` is ``"ignore"``.
    """
    found = []
    for label in labels:
        if label in known:
            found.append(label)
        elif rule.missing == "error":
            raise LabelNotFoundError(
                f"{option}: got {label!r}, expected {expected} that occurs among the cells to split. "
                f"{near_matches(label, known)} With missing='ignore', labels that do not occur are left out."
            )
    return found


def refuse_control(groups: Groups, codes: Sequence[int], option: str) -> None:
    """Raise `ConfigError` if one of the codes is that of a control label."""
    controls = [str(groups.labels["perturbation"][code]) for code in codes if groups.is_control_code[code]]
    if controls:
        raise ConfigError(
            f"{option}: got {controls[0]!r}, which marks the controls, expected perturbations only. "
            "Remove it: every split is compared with controls."
        )


def holds_nothing_out(option: str, value: object, why: str) -> ConfigError:
    """Return the error for a rule that would hold nothing out."""
    return ConfigError(
        f"{option}: got {value!r}, {why}, so nothing would be held out. Name labels that occur, or a larger fraction."
    )
