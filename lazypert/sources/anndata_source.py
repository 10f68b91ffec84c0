"""One screen as a source."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.errors import ColumnNotFoundError, near_matches
from lazypert.sources.matrix_part import store_part
from lazypert.sparse.row_view import PlacedRows, one_after_another
from lazypert.store.columns import column_of
from lazypert.store.grouping import groups_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.sources.config import PerturbationSourceConfig
    from lazypert.sources.matrix_part import MatrixPart
    from lazypert.sparse.columns import ColumnTable
    from lazypert.sparse.csr import CSRBlock
    from lazypert.sparse.row_view import Place
    from lazypert.store.matrix import Matrix
    from lazypert.store.store import Store
from lazypert.sources.base import PerturbationSource
from lazypert.sources.cache import open_or_convert


class PerturbationAnnDataSource(PerturbationSource):
    """A screen: an ``.h5ad``, converted on first use, or a store.

    Opening reads tables only; matrices are read when cells are asked for.

    Raises
    ------
    ColumnNotFoundError, LabelNotFoundError
        When a column or the control label does not occur.
    """

    def __init__(self, config: PerturbationSourceConfig) -> None:
        self.config = config
        self.store = open_or_convert(config)
        self.matrix = self.store.matrix(config.layer)
        for column in config.additional_obs:
            self.store.require_obs(column, "additional_obs")
        if config.embedding_key is not None:
            _ = self.read_embedding(np.empty(0, dtype=np.int64))
        _ = self.groups, self.hvg_indices

    def __repr__(self) -> str:
        return f"PerturbationAnnDataSource({self.store.path!r}: {self.n_rows:,} cells x {self.store.n_vars:,} genes)"

    @cached_property
    def groups(self) -> Groups:
        """Cells, grouped; from the store's own table when it was made for the same columns."""
        groups = groups_of(self.store, self.config.roles)
        _ = groups.control_code  # an unknown control label stops here
        return groups

    @property
    def n_rows(self) -> int:
        """Number of cells, controls included."""
        return self.store.n_obs

    @property
    def var(self) -> pd.DataFrame:
        """The var table."""
        return self.store.var

    def parts(self, layer: str | None) -> list[MatrixPart]:
        """Return the store's matrix."""
        return [store_part(self.store, layer, self.groups)]

    def read_counts(self, rows: NDArray[np.integer]) -> CSRBlock:
        """Rows of the matrix, in the order asked."""
        return self.matrix.read_rows(rows)

    def read_placed(
        self,
        rows: NDArray[np.integer],
        *,
        place: Place = one_after_another,
        empty: Callable[[int, Any], NDArray[Any]] = np.empty,
    ) -> PlacedRows:
        """Rows of the matrix at the places asked for; see `Matrix.read_placed`."""
        return self.matrix.read_placed(rows, place=place, empty=empty, narrow=True)

    def read_selected(self, rows: NDArray[np.integer], columns: ColumnTable, *, totals: bool = False) -> PlacedRows:
        """Wanted columns of rows, and the rows' totals over all; see `Matrix.read_selected`."""
        return self.matrix.read_selected(rows, columns, totals=totals)

    def read_dense(
        self,
        rows: NDArray[np.integer],
        columns: ColumnTable,
        *,
        target_sum: float | None = None,
        empty: Callable[[tuple[int, int], Any], NDArray[Any]] = np.empty,
    ) -> NDArray[np.float32]:
        """(n, n_columns) float32 wanted columns of rows; see `Matrix.read_dense`."""
        return self.matrix.read_dense(rows, columns, target_sum=target_sum, empty=empty)

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
            return self.store.sparse(f"obsm/{key}").read_rows(rows).to_dense(np.float32)
        known = [*self.store.obsm, *(n.removeprefix("obsm/") for n in self.store.matrices if n.startswith("obsm/"))]
        raise ColumnNotFoundError(f"embedding_key={key!r} is not in obsm. {near_matches(str(key), known)}")

    def read_obs(self, column: str, rows: NDArray[np.integer]) -> NDArray[Any]:
        """(n,) values of an obs column."""
        return column_of(self.store, f"obs/{self.store.require_obs(column)}")[np.asarray(rows)]

    def obs_names(self, rows: NDArray[np.integer]) -> NDArray[Any]:
        """(n,) cell names."""
        return column_of(self.store, "obs/_index")[np.asarray(rows)]
