"""Labels of cells as integer codes, by store row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups


_MAX_KEPT_BYTES = 16 * 1024**2
"""Codes of all cells that take at most this many bytes are kept in memory once they are asked for."""


class CellCodes(ABC):
    """The codes and labels of a source's cells."""

    @property
    @abstractmethod
    def groups(self) -> Groups:
        """Cells, grouped by cell type, perturbation, dataset and batch."""

    @property
    @abstractmethod
    def n_rows(self) -> int:
        """Number of rows of the stores; the groups may cover only some of them."""

    def get_pert_codes(self) -> NDArray[np.int32]:
        """(n_obs,) perturbation codes by store row; -1 where the label is missing."""
        return self._codes("perturbation")

    def get_cell_type_codes(self) -> NDArray[np.int32]:
        """(n_obs,) cell type codes by store row; -1 where the label is missing."""
        return self._codes("cell_type")

    def get_batch_codes(self) -> NDArray[np.int32]:
        """(n_obs,) batch codes by store row; -1 where the label is missing."""
        return self._codes("batch")

    def get_condition_codes(self) -> NDArray[np.int32]:
        """(n_obs,) number of each cell's condition by store row; 0 for every cell without covariates."""
        return self._codes("condition")

    @property
    def conditions(self) -> pd.DataFrame:
        """One row per condition, by its number, and a column for each covariate: labels, empty where missing."""
        return self.groups.conditions.table()

    def codes_of(self, axis: str, rows: NDArray[np.integer]) -> NDArray[np.int32]:
        """(n,) codes of cells by store row, on an axis or ``"condition"``; -1 where the label is missing."""
        groups = self.groups
        if axis == "batch":
            return groups.batch_of(rows)
        per_run = groups.condition if axis == "condition" else groups.codes[axis]
        run = groups.run_of_rows(rows)
        return np.where(run < 0, np.int32(-1), per_run[run])

    def _codes(self, axis: str) -> NDArray[np.int32]:
        if axis in self._code_cache:
            return self._code_cache[axis]
        if axis == "batch":
            codes = self._batch_codes()
        elif axis == "condition":
            codes = self.groups.expand(self.groups.condition, self.n_rows)
        else:
            codes = self.groups.expand(self.groups.codes[axis], self.n_rows)
        if codes.nbytes <= _MAX_KEPT_BYTES:
            self._code_cache[axis] = codes
        return codes

    def _batch_codes(self) -> NDArray[np.int32]:
        codes = self.groups.cells.batch_codes()
        return np.zeros(self.n_rows, np.int32) if codes is None else codes.astype(np.int32)

    @cached_property
    def _code_cache(self) -> dict[str, NDArray[np.int32]]:
        return {}

    def get_pert_categories(self) -> NDArray[np.str_]:
        """(n_perturbations,) sorted labels."""
        return self.groups.labels["perturbation"]

    def get_cell_type_categories(self) -> NDArray[np.str_]:
        """(n_cell_types,) sorted labels."""
        return self.groups.labels["cell_type"]

    def get_batch_categories(self) -> NDArray[np.str_]:
        """(n_batches,) sorted labels."""
        return self.groups.labels["batch"]

    def get_control_mask(self) -> NDArray[np.bool_]:
        """(n_obs,) bool by store row: whether each cell is a control."""
        return self.groups.expand(self.groups.is_control, self.n_rows)

    def get_group_codes(self) -> NDArray[np.int64]:
        """(n_obs,) ``cell_type_code * n_perturbations + pert_code`` by store row; -1 where one is missing.

        With covariates, it is this times the number of conditions plus ``condition_code``.
        """
        return self.groups.expand(self.groups.ids, self.n_rows)
