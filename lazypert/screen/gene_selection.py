"""Genes that are asked for by name, as a selection of columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lazypert.errors import ConfigError, no_such_column
from lazypert.sparse.columns import ColumnSelection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def select_genes(genes: Sequence[str], names: pd.Index) -> ColumnSelection:
    """Select genes of a matrix, in the order in which they are asked for.

    Parameters
    ----------
    genes
        Names of genes.
    names
        (n_cols,) names of all columns.

    Raises
    ------
    ColumnNotFoundError
        If there is no such gene.
    ConfigError
        If a gene is named twice, or several have its name.
    """
    requested = pd.Index(genes, dtype=object)
    absent = requested[~requested.isin(names)]
    if len(absent):
        raise no_such_column("genes", absent[0], "a gene of the screen", names)
    repeated = requested[requested.duplicated() | requested.isin(names[names.duplicated()])]
    if len(repeated):
        raise ConfigError(
            f"genes: got {repeated[0]!r}, which occurs more than once in genes or in the screen, expected unique names."
        )
    indices: NDArray[np.integer] = names.get_indexer_for(requested) if len(requested) else np.empty(0, np.int64)
    return ColumnSelection.from_indices(indices, len(names))
