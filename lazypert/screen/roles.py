"""Roles of obs columns, and the axes that cells are grouped by."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypedDict

ROLE_OF_AXIS = {
    "cell_type": "cell_type_col",
    "perturbation": "pert_col",
    "dataset": "dataset_col",
    "batch": "batch_col",
}
"""Axes of a screen, with the role of the obs column that fills each."""

AXES = tuple(ROLE_OF_AXIS)

RUN_AXES = ("cell_type", "perturbation", "dataset")
"""Axes that cells are sorted by. The batch is not one of them: neighbours would all be of one batch."""

OPTIONAL_ROLES = ("cell_type_col", "batch_col")
"""Roles that may be None if a screen has no such column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """The obs column of each role, and the label that marks the controls."""

    pert_col: str | None = None
    cell_type_col: str | None = None
    batch_col: str | None = None
    dataset_col: str | None = None
    control_pert: str | None = None

    def columns(self) -> dict[str, str | None]:
        """Return the obs column of each of `AXES`; without one, all cells of a screen share a label."""
        return {axis: getattr(self, role) for axis, role in ROLE_OF_AXIS.items()}

    @property
    def has_columns(self) -> bool:
        """Whether any axis has a column."""
        return any(self.columns().values())

    def to_json(self) -> dict[str, str | None]:
        """Return a plain dictionary for the store's attributes."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, value: dict[str, str | None]) -> Roles:
        """Make roles from the dictionary that `to_json` returns."""
        return cls(**value)


class RolesKwargs(TypedDict, total=False):
    """Keyword arguments of `Roles`."""

    pert_col: str | None
    cell_type_col: str | None
    batch_col: str | None
    dataset_col: str | None
    control_pert: str | None
