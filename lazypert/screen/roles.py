"""Roles: which obs columns say what a cell is, and the axes that cells are grouped by."""

from __future__ import annotations

from dataclasses import dataclass, fields

AXES = ("cell_type", "perturbation", "dataset", "batch")
"""What a cell is, in sort order. A column that a screen lacks counts as one label for all cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Which obs columns say what a cell is, and which label marks the controls."""

    pert_col: str | None = None
    cell_type_col: str | None = None
    batch_col: str | None = None
    dataset_col: str | None = None
    control_pert: str | None = None

    def columns(self) -> tuple[str | None, str | None, str | None, str | None]:
        """Key columns in sort order: cell type, perturbation, dataset, batch."""
        return self.cell_type_col, self.pert_col, self.dataset_col, self.batch_col

    def to_json(self) -> dict[str, str | None]:
        """Plain dictionary for the store's attributes."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, value: dict[str, str | None]) -> Roles:
        """Inverse of `to_json`."""
        return cls(**value)
