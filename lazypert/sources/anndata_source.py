"""One screen as a source of cells."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.errors import no_such_column
from lazypert.screen.control_column import marked_labels, marks_of
from lazypert.screen.labels import factorise
from lazypert.screen.renames import rename_labels
from lazypert.screen.roles import missing_controls
from lazypert.sources.base import PerturbationSource
from lazypert.sources.cache import is_store, open_or_convert
from lazypert.sources.config import roles_of_store
from lazypert.sources.matrix_segment import store_segment
from lazypert.store.columns import open_column
from lazypert.store.group_by_columns import group_cells

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.sources.config import PerturbationSourceConfig
    from lazypert.sources.matrix_segment import MatrixSegment
    from lazypert.store.matrix import Matrix
    from lazypert.store.store import Store


class PerturbationAnnDataSource(PerturbationSource):
    """One screen: a store, or an ``.h5ad`` file that is converted on first use.

    Opening reads tables only; matrices are read when cells are requested.

    Parameters
    ----------
    config
        The screen and how to read it. If it names a store that lacks a default column or the default control label,
        the store's own is used.
    store
        A store that is already open; used in place of ``config.file_path``.
    groups
        Groups to use in place of those of the config's roles, such as the groups of a selection of cells.
    all_controls
        Whether each of several labels in ``config.control_pert`` must occur, or only one of them.

    Raises
    ------
    ColumnNotFoundError
        When a column, layer or embedding does not exist.
    LabelNotFoundError
        When the control label does not occur.
    """

    def __init__(
        self,
        config: PerturbationSourceConfig,
        *,
        store: Store | None = None,
        groups: Groups | None = None,
        all_controls: bool = True,
    ) -> None:
        self.store = open_or_convert(config) if store is None else store
        if store is None and is_store(config.file_path):
            config = replace(config, **_missing_roles(self.store, config))
        if config.control_col is not None:
            config = replace(config, control_pert=_marked_controls(self.store, config))
        self.config = config
        self._matrix = self.store.matrix(config.layer)
        for column in config.additional_obs:
            self.store.require_obs(column, "additional_obs")
        if config.embedding_key is not None:
            _ = self.read_embedding(np.empty(0, dtype=np.int64))
        self._groups = group_cells(self.store, config.roles) if groups is None else groups
        self._groups.require_controls(all_labels=all_controls)
        _ = self.hvg_indices  # raise now if hvg_col is unknown

    def __repr__(self) -> str:
        return f"PerturbationAnnDataSource({self.store.path!r}: {self.n_rows:,} cells x {self.get_n_genes():,} genes)"

    @property
    def groups(self) -> Groups:
        """Cells, grouped by cell type, perturbation, dataset and batch."""
        return self._groups

    @property
    def n_rows(self) -> int:
        """Number of cells, including controls."""
        return self.store.n_obs

    @property
    def var(self) -> pd.DataFrame:
        """The var table of the configured layer."""
        return self.layer_var(self.config.layer)

    @property
    def stores(self) -> tuple[Store, ...]:
        """The store."""
        return (self.store,)

    def content_digests(self, obs: Sequence[str] = ()) -> tuple[str, ...]:
        """Digest of the store's content, including what was added to it and is used: by the config, or in `obs`."""
        return (self.store.digest_with([*self.config.elements, *(f"obs/{name}" for name in obs)]),)

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The store's matrix."""
        return (self.matrix,)

    @property
    def matrix(self) -> Matrix:
        """The store's matrix: X, or the configured layer."""
        return self._matrix

    def layer_var(self, layer: str | None) -> pd.DataFrame:
        """Return the var table of a layer, which differs for raw; None for `layer` selects X."""
        return self.store.matrix_var(layer)

    def segments(self, layer: str | None) -> list[MatrixSegment]:
        """Return the store as one segment; None for `layer` selects X."""
        return [store_segment(self.store, layer, self.groups)]

    def read_embedding(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Read (n, width) float32 rows of the embedding."""
        key = self.config.embedding_key
        if key in self.store.obsm:
            array = self.store.obsm[key]
            return np.asarray(array.oindex[np.asarray(rows)] if len(rows) else array[:0], dtype=np.float32)
        if f"obsm/{key}" in self.store.matrices:
            return self.store.open_matrix(f"obsm/{key}").read_rows(rows).to_dense(np.float32)
        sparse_keys = [name.removeprefix("obsm/") for name in self.store.matrices if name.startswith("obsm/")]
        raise no_such_column("embedding_key", str(key), "an obsm entry", [*self.store.obsm, *sparse_keys])

    def read_obs(self, column: str, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Read (n,) values of an obs column."""
        return open_column(self.store, f"obs/{self.store.require_obs(column)}")[np.asarray(rows)]

    def obs_names(self, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Read (n,) cell names."""
        return open_column(self.store, "obs/_index")[np.asarray(rows)]


def _missing_roles(store: Store, config: PerturbationSourceConfig) -> dict[str, Any]:
    """Roles of a store in place of defaults that would not occur in it."""
    own = roles_of_store(store.roles, config)
    for name in ("pert_col", "cell_type_col", "batch_col"):
        if getattr(config, name) in store.obs_columns:
            own.pop(name, None)
    if own.get("pert_col", config.pert_col) != store.roles.pert_col:
        return {name: value for name, value in own.items() if name.endswith("_col") or name == "covariates"}
    labels = store.groups.labels["perturbation"].tolist()
    if len(missing_controls(config.roles, labels)) < len(config.roles.controls):
        own.pop("control_pert", None)
    return own


def _marked_controls(store: Store, config: PerturbationSourceConfig) -> tuple[str, ...]:
    """Labels of the controls that ``config.control_col`` marks."""
    column = store.require_obs(str(config.control_col), "control_col")
    codes, labels = factorise(store.read_column(f"obs/{store.require_obs(config.pert_col, 'pert_col')}"))
    codes, labels = rename_labels(codes, labels, config.roles)
    return marked_labels(column, codes, labels, marks_of(column, store.read_column(f"obs/{column}")))
