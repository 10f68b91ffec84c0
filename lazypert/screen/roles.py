"""Roles of obs columns, and the axes that cells are grouped by."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from lazypert._internal.validation import require
from lazypert.errors import ConfigError, LabelNotFoundError, near_matches
from lazypert.screen.labels import label_text
from lazypert.screen.renames import Renames, check_renames, names_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ControlLabels: TypeAlias = str | tuple[str, ...]
"""The label of the controls, or several. ``*`` and ``?`` match any text and any character."""

ROLE_OF_AXIS = {
    "cell_type": "cell_type_col",
    "perturbation": "pert_col",
    "dataset": "dataset_col",
    "batch": "batch_col",
}
"""Axes of a screen, with the role of the obs column that fills each."""

AXES = tuple(ROLE_OF_AXIS)

RUN_AXES = ("cell_type", "perturbation", "dataset")
"""Axes that cells are sorted by; their condition counts before the dataset. The batch is not one of them: neighbours
would all be of one batch."""

OPTIONAL_ROLES = ("cell_type_col", "batch_col")
"""Roles that may be None if a screen has no such column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """The obs column of each role, and how to read the labels of perturbations.

    Attributes
    ----------
    pert_col, cell_type_col, batch_col, dataset_col
        obs columns.
    control_pert
        Labels of the controls: text, or a tuple of several.
    separator
        Text between the parts of a combination's label. The order of parts does not matter, and controls are not
        parts: with ``"+"``, ``B+A`` is ``A+B``, and ``A+ctrl`` is ``A``. None takes labels as they are.
    covariates
        Further obs columns, such as dose and time, whose labels together are the *condition* of a cell. Groups are then
        those of one cell type, perturbation and condition. A cell without a value stays in a group: its label is empty.
    rename_perturbations
        Names in place of labels, as sorted pairs; ``"strip"`` removes blanks around labels. None keeps them.
    """

    pert_col: str | None = None
    cell_type_col: str | None = None
    batch_col: str | None = None
    dataset_col: str | None = None
    control_pert: ControlLabels | None = None
    separator: str | None = None
    covariates: tuple[str, ...] = ()
    rename_perturbations: Renames | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "control_pert", control_labels("control_pert", self.control_pert))
        separator: Any = self.separator
        is_text = separator is None or (isinstance(separator, str) and separator != "")
        require(is_text, "separator", separator, "text, such as '+', or None")
        object.__setattr__(self, "covariates", covariate_names(self.covariates))
        object.__setattr__(self, "rename_perturbations", check_renames(self.rename_perturbations))

    @property
    def controls(self) -> tuple[str, ...]:
        """Labels of the controls, or patterns of them; empty if there are none."""
        given = self.control_pert
        return () if given is None else (given,) if isinstance(given, str) else given

    def is_control_label(self, label: str) -> bool:
        """Whether a label marks controls."""
        return any(label == name or (is_pattern(name) and fnmatchcase(label, name)) for name in self.controls)

    def columns(self) -> dict[str, str | None]:
        """Return the obs column of each of `AXES`; without one, all cells of a screen share a label."""
        return {axis: getattr(self, role) for axis, role in ROLE_OF_AXIS.items()}

    @property
    def has_columns(self) -> bool:
        """Whether any axis has a column."""
        return any(self.columns().values()) or bool(self.covariates)

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary for the store's attributes; without covariates, these are not in it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if not self.covariates:
            del values["covariates"]
        renames = values.pop("rename_perturbations")
        if renames is not None:  # stores without it are as they were before there was such a role
            values["rename_perturbations"] = renames if isinstance(renames, str) else names_of(renames)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Roles:
        """Make roles from the dictionary that `to_json` returns.

        Raises
        ------
        ConfigError
            If it has a role that this version does not know, without which the groups would be others.
        """
        unknown = sorted(set(value) - {field.name for field in fields(cls)})
        if unknown:
            raise ConfigError(f"roles: got {unknown[0]!r}, which this version of lazypert does not know. Upgrade it.")
        return cls(**value)


def joint_roles(screens: Sequence[tuple[Roles, Iterable[str]]]) -> Roles:
    """Return the roles of several screens together: columns of the first, and the control labels of all.

    Parameters
    ----------
    screens
        Roles and perturbation labels of each screen, with the controls among the parts of its combinations.

    Raises
    ------
    ConfigError
        If a label marks controls in one screen only and occurs in another, also as a part of a combination; or the
        separators or covariates differ.
    LabelNotFoundError
        If a control label occurs in none of the screens that it is given for.
    """
    labels_of = [(roles, sorted(map(str, labels))) for roles, labels in screens]
    _require_each(labels_of)
    controls = {label for roles, labels in labels_of for label in labels if roles.is_control_label(label)}
    for roles, labels in labels_of:
        parts = {part for label in labels for part in label.split(roles.separator)} if roles.separator else set()
        for label in sorted(controls.intersection(parts.union(labels))):
            if not roles.is_control_label(label):
                raise ConfigError(
                    f"control_pert: got {label!r} for one screen, but it is a perturbation in another (control_pert="
                    f"{roles.control_pert!r}). Rename it in one of them, or pass it for both."
                )
    separators = {roles.separator for roles, _ in labels_of}
    require(len(separators) == 1, "separator", sorted(separators, key=repr), "the same for all screens")
    covariates = {roles.covariates for roles, _ in screens}
    require(len(covariates) == 1, "covariates", sorted(covariates), "the same columns, in one order, for all screens")
    # The labels of each have their names already.
    return replace(labels_of[0][0], control_pert=tuple(sorted(controls)) or None, rename_perturbations=None)


def _require_each(screens: Sequence[tuple[Roles, Sequence[str]]]) -> None:
    """Raise `LabelNotFoundError` if a control label occurs in none of the screens that it is given for."""
    known: dict[str, set[str]] = {}
    for roles, labels in screens:
        for control in roles.controls:
            known.setdefault(control, set()).update(labels)
    for control, occurring in known.items():
        if missing_controls(Roles(control_pert=control), occurring):
            raise no_such_control(control, sorted(occurring), screens[0][0].pert_col)


def missing_controls(roles: Roles, labels: Iterable[str]) -> list[str]:
    """Return the control labels, or patterns of them, that match none of the labels."""
    labels = set(labels)
    return [
        name
        for name in roles.controls
        if name not in labels and not (is_pattern(name) and any(fnmatchcase(label, name) for label in labels))
    ]


def no_such_control(name: str, labels: Sequence[str], column: str | None) -> LabelNotFoundError:
    """Return the error for a control label that does not occur."""
    expected = "a pattern that matches a label" if is_pattern(name) else "a label"
    return LabelNotFoundError(
        f"control_pert: got {name!r}, expected {expected} in obs column {column!r}. {near_matches(name, labels)}"
    )


def control_labels(name: str, value: Any) -> ControlLabels | None:
    """Return the labels of controls as text, and several as a tuple.

    Raises
    ------
    ConfigError
        If there is none, one is empty, or one is given twice.
    """
    if value is None:
        return None
    if getattr(value, "ndim", 0) == 1:  # an array, or a column of pandas
        value = list(value)
    if not isinstance(value, list | tuple):
        require(not isinstance(value, set | dict), name, value, "a label, or a tuple of labels")
        value = [value]
    labels = tuple(map(label_text, value))
    require(len(labels) > 0 and all(labels), name, value, "a label that is not empty, or a tuple of them")
    require(len(set(labels)) == len(labels), name, value, "each label once")
    return labels[0] if len(labels) == 1 else labels


def covariate_names(value: Any) -> tuple[str, ...]:
    """Return the names of covariates as a tuple; text is one name.

    Raises
    ------
    ConfigError
        If a name is not text or is empty, or is given twice.
    """
    names = [value] if isinstance(value, str) else value
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) and name for name in names)
    require(is_list, "covariates", value, "names of obs columns, such as ('dose', 'time')")
    require(len(set(names)) == len(names), "covariates", value, "each column once")
    return tuple(names)


def is_pattern(label: str) -> bool:
    """Whether a control label has wildcards."""
    return "*" in label or "?" in label


class RolesKwargs(TypedDict, total=False):
    """Keyword arguments of `Roles`."""

    pert_col: str | None
    cell_type_col: str | None
    batch_col: str | None
    dataset_col: str | None
    control_pert: ControlLabels | None
    separator: str | None
    covariates: tuple[str, ...]
    rename_perturbations: Renames | None
