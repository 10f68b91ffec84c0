"""Features of 10x matrices by type: genes, and guides, antibodies or peaks counted in the same cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.converter import RowBlock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

GENE_EXPRESSION = "Gene Expression"


def columns_by_matrix(feature_types: Sequence[str] | None) -> dict[str, NDArray[np.int64]]:
    """Columns of each matrix among all features: genes are X, and every other type is an obsm entry.

    A file without types, or without genes, has one matrix with all of its features.

    Parameters
    ----------
    feature_types
        (n_features,) type of each feature; None if the file does not say.
    """
    types = np.asarray([] if feature_types is None else feature_types, dtype=object)
    if GENE_EXPRESSION not in types:
        return {}
    found = {"X": np.flatnonzero(types == GENE_EXPRESSION)}
    for other in dict.fromkeys(types):
        if other != GENE_EXPRESSION:
            found[_matrix_name(str(other))] = np.flatnonzero(types == other)
    return found if len(found) > 1 else {}


def select(block: RowBlock, numbers: NDArray[np.int64]) -> RowBlock:
    """Keep some columns of a block, numbered from 0."""
    new_col = np.full(block.csr.n_cols, -1, dtype=np.int32)
    new_col[numbers] = np.arange(len(numbers), dtype=np.int32)
    return RowBlock(block.first_row, block.csr.select_cols(new_col, len(numbers)))


def names_of(names: NDArray[Any], columns: dict[str, NDArray[np.int64]], matrix: str) -> NDArray[Any] | None:
    """(n_columns,) names of the features of an obsm entry; None for X."""
    return names[columns[matrix]] if matrix in columns and matrix != "X" else None


def _matrix_name(feature_type: str) -> str:
    name = feature_type.replace("/", "_").strip(".")
    return f"obsm/{name or 'features'}"
