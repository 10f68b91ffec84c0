"""Column selection: which columns of a sparse matrix are wanted, and where each goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class ColumnSelection:
    """Which columns are wanted, and where to.

    Attributes
    ----------
    lookup
        Unsigned output column of each column; `n_columns` for those left out. As long as a power of
        two: what a column number has beyond is cut off, so that no content of a store leads elsewhere,
        and none needs to be asked about.
    keeps
        uint8, as long: 1 for each column that is wanted.
    n_columns
        Columns wanted.
    """

    lookup: NDArray[Any]
    keeps: NDArray[np.uint8]
    n_columns: int

    @classmethod
    def from_indices(cls, wanted: NDArray[np.integer], n_cols: int) -> ColumnSelection:
        """Table of ``wanted[0]`` becoming column 0, and so on, of `n_cols` columns."""
        kind = np.uint16 if len(wanted) < 2**16 else np.uint32
        lookup: NDArray[Any] = np.full(1 << max(0, n_cols - 1).bit_length(), len(wanted), kind)
        lookup[wanted] = np.arange(len(wanted))
        return cls(lookup, (lookup < len(wanted)).astype(np.uint8), len(wanted))

    def for_matrix(self, column: NDArray[np.integer]) -> ColumnSelection:
        """Table of another matrix whose columns are these: its column ``j`` is `column[j]`, or none for -1."""
        lookup = np.full(1 << max(0, len(column) - 1).bit_length(), self.n_columns, self.lookup.dtype)
        lookup[: len(column)] = np.where(column >= 0, self.lookup[column], self.n_columns)
        return ColumnSelection(lookup, (lookup < self.n_columns).astype(np.uint8), self.n_columns)
