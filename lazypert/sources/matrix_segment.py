"""The part of a screen that lies in one store's matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.store.matrix import Matrix
    from lazypert.store.store import Store, StoredCellStats


@dataclass(frozen=True, slots=True)
class MatrixSegment:
    """Some rows of a screen: a store's matrix, and which of its columns each gene of the screen is.

    Attributes
    ----------
    first_row
        Number of the matrix's first row in the screen.
    matrix
        Where the values are.
    column_of
        (n_genes,) int32 column of each of the screen's genes, -1 where it was not measured.
    labels, cell_stats
        What conversion noted of these very cells and groups, and the perturbations it numbered;
        None where it noted nothing, or the cells are grouped otherwise.
    """

    first_row: int
    matrix: Matrix
    column_of: NDArray[np.int32]
    labels: NDArray[np.str_] | None = None
    cell_stats: StoredCellStats | None = None


def store_segment(store: Store, layer: str | None, groups: Groups) -> MatrixSegment:
    """Return a whole store as one part, with what conversion noted if its cells are grouped as they were then."""
    part = MatrixSegment(0, store.matrix(layer), np.arange(store.n_vars, dtype=np.int32))
    # The very table that conversion left: a selection of as many cells may repeat some and lack others.
    as_stored = groups.start is store.groups.start and groups.row_order is store.groups.row_order
    if layer is not None or not as_stored or groups.roles.control_pert != store.roles.control_pert:
        return part
    return replace(part, labels=store.groups.labels["perturbation"], cell_stats=store.cell_stats)
