"""Column selections: which columns of a sparse matrix to read, and their order in the output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class ColumnSelection:
    """Columns of a matrix that are read, and their order in the output.

    Attributes
    ----------
    lookup
        (2**k,) unsigned output column of each column; `n_columns` for columns that are not selected. The
        length is a power of two so that kernels can mask column numbers: whatever a damaged store holds,
        no lookup is out of bounds, and none needs a bounds check.
    is_selected
        (2**k,) uint8: 1 for each selected column.
    n_columns
        Number of selected columns.
    """

    lookup: NDArray[Any]
    is_selected: NDArray[np.uint8]
    n_columns: int

    def __repr__(self) -> str:
        return f"ColumnSelection({self.n_columns:,} columns)"

    @classmethod
    def from_indices(cls, indices: NDArray[np.integer], n_cols: int) -> ColumnSelection:
        """Select columns of a matrix with `n_cols` columns: ``indices[0]`` becomes column 0, and so on."""
        dtype = np.uint16 if len(indices) < 2**16 else np.uint32
        lookup: NDArray[Any] = np.full(1 << max(0, n_cols - 1).bit_length(), len(indices), dtype)
        lookup[indices] = np.arange(len(indices))
        return cls(lookup, (lookup < len(indices)).astype(np.uint8), len(indices))

    def for_matrix(self, column: NDArray[np.integer]) -> ColumnSelection:
        """Select the same columns of a matrix that orders them differently.

        Parameters
        ----------
        column
            (n_cols,) for each column of that matrix, the corresponding column of this one; -1 for none.
        """
        lookup = np.full(1 << max(0, len(column) - 1).bit_length(), self.n_columns, self.lookup.dtype)
        lookup[: len(column)] = np.where(column >= 0, self.lookup[column], self.n_columns)
        return ColumnSelection(lookup, (lookup < self.n_columns).astype(np.uint8), self.n_columns)
