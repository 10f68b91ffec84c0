"""One screen as a source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.errors import no_such_column
from lazypert.sources.matrix_segment import store_segment
from lazypert.store.columns import open_column
from lazypert.store.grouping import group_cells

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.sources.config import PerturbationSourceConfig
    from lazypert.sources.matrix_segment import MatrixSegment
    from lazypert.store.matrix import Matrix
    from lazypert.store.store import Store
from lazypert.sources.base import PerturbationSource
from lazypert.sources.cache import open_or_convert


class PerturbationAnnDataSource(PerturbationSource):
    """A screen: an ``.h5ad`` file, converted on first use, or a store.

    Opening reads tables only; matrices are read when cells are asked for.

    Parameters
    ----------
    config
        The screen and how to look at it.
    store
        A store that is open already, in place of ``config.file_path``.
    groups
        Groups to use in place of those of the config's roles, such as those of a selection of the cells.

    Raises
    ------
    ColumnNotFoundError, LabelNotFoundError
        When a column or the control label does not occur.
    """

    def __init__(
        self, config: PerturbationSourceConfig, *, store: Store | None = None, groups: Groups | None = None
    ) -> None:
        self.config = config
        self.store = open_or_convert(config) if store is None else store
        self._matrix = self.store.matrix(config.layer)
        for column in config.additional_obs:
            self.store.require_obs(column, "additional_obs")
        if config.embedding_key is not None:
            _ = self.read_embedding(np.empty(0, dtype=np.int64))
        self._groups = group_cells(self.store, config.roles) if groups is None else groups
        _ = self._groups.control_code, self.hvg_indices  # an unknown control label or gene column stops here

    def __repr__(self) -> str:
        return f"PerturbationAnnDataSource({self.store.path!r}: {self.n_rows:,} cells x {self.store.n_vars:,} genes)"

    @property
    def groups(self) -> Groups:
        """Cells, grouped; from the store's own table when it was made for the same columns."""
        return self._groups

    @property
    def n_rows(self) -> int:
        """Number of cells, controls included."""
        return self.store.n_obs

    @property
    def var(self) -> pd.DataFrame:
        """The var table."""
        return self.store.var

    @property
    def matrix(self) -> Matrix:
        """The store's matrix."""
        return self._matrix

    def segments(self, layer: str | None) -> list[MatrixSegment]:
        """Return the store's matrix."""
        return [store_segment(self.store, layer, self.groups)]

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The matrix."""
        return (self.matrix,)

    @property
    def stores(self) -> tuple[Store, ...]:
        """The store."""
        return (self.store,)

    def read_embedding(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """(n, width) rows of the embedding, float32."""
        key = self.config.embedding_key
        if key in self.store.obsm:
            array = self.store.obsm[key]
            return np.asarray(array.oindex[np.asarray(rows)] if len(rows) else array[:0], dtype=np.float32)
        if f"obsm/{key}" in self.store.matrices:
            return self.store.open_matrix(f"obsm/{key}").read_rows(rows).to_dense(np.float32)
        known = [*self.store.obsm, *(n.removeprefix("obsm/") for n in self.store.matrices if n.startswith("obsm/"))]
        raise no_such_column("embedding_key", str(key), "an obsm entry", known)

    def read_obs(self, column: str, rows: NDArray[np.integer]) -> NDArray[Any]:
        """(n,) values of an obs column."""
        return open_column(self.store, f"obs/{self.store.require_obs(column)}")[np.asarray(rows)]

    def obs_names(self, rows: NDArray[np.integer]) -> NDArray[Any]:
        """(n,) cell names."""
        return open_column(self.store, "obs/_index")[np.asarray(rows)]
