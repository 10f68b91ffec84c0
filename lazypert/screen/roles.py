"""Roles: which obs columns say what a cell is, and the axes that cells are grouped by."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypedDict

ROLE_OF_AXIS = {
    "cell_type": "cell_type_col",
    "perturbation": "pert_col",
    "dataset": "dataset_col",
    "batch": "batch_col",
}
"""What cells are grouped by, in sort order, and the role of the obs column that says it."""

AXES = tuple(ROLE_OF_AXIS)

OPTIONAL_ROLES = ("cell_type_col", "batch_col")
"""Roles that callers may set to None for a screen that has no such column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Which obs columns say what a cell is, and which label marks the controls."""

    pert_col: str | None = None
    cell_type_col: str | None = None
    batch_col: str | None = None
    dataset_col: str | None = None
    control_pert: str | None = None

    def columns(self) -> dict[str, str | None]:
        """obs column of each of `AXES`; cells of a screen without one count as having the same label."""
        return {axis: getattr(self, role) for axis, role in ROLE_OF_AXIS.items()}

    @property
    def has_columns(self) -> bool:
        """Whether any axis has a column."""
        return any(self.columns().values())

    def to_json(self) -> dict[str, str | None]:
        """Plain dictionary for the store's attributes."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, value: dict[str, str | None]) -> Roles:
        """Inverse of `to_json`."""
        return cls(**value)


class RolesKwargs(TypedDict, total=False):
    """Keyword arguments of `Roles`."""

    pert_col: str | None
    cell_type_col: str | None
    batch_col: str | None
    dataset_col: str | None
    control_pert: str | None
