"""A segment: the rows of a screen that lie in one store's matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.store.matrix import Matrix
    from lazypert.store.store import Store
    from lazypert.store.stored_cell_stats import StoredCellStats


@dataclass(frozen=True, slots=True, eq=False)
class MatrixSegment:
    """One store's matrix, and how its rows and columns map to those of the screen.

    Attributes
    ----------
    first_row
        Row of the screen that corresponds to the matrix's first row.
    matrix
        The matrix.
    column_of
        (n_genes,) int32 column of each gene of the screen in this layer, -1 where the gene was not measured.
    labels
        (n_perturbations,) labels that the arrays of `cell_stats` refer to, or None.
    cell_stats
        Cell statistics recorded during conversion; None if none were recorded, or if the screen's groups
        differ from the store's own.
    """

    first_row: int
    matrix: Matrix
    column_of: NDArray[np.int32]
    labels: NDArray[np.str_] | None = None
    cell_stats: StoredCellStats | None = None


def store_segment(store: Store, layer: str | None, groups: Groups) -> MatrixSegment:
    """Return a complete store as one segment, with its cell statistics if they are valid for `groups`."""
    matrix = store.matrix(layer)
    segment = MatrixSegment(0, matrix, np.arange(matrix.shape[1], dtype=np.int32))
    # Compare identity: a selection with the same number of cells may repeat some of them and lack others.
    is_own_table = groups.start is store.groups.start and groups.row_order is store.groups.row_order
    if (
        layer is not None
        or not is_own_table
        or not np.array_equal(groups.is_control_code, store.groups.is_control_code)
    ):
        return segment
    return replace(segment, labels=store.groups.labels["perturbation"], cell_stats=store.cell_stats)
