"""The interface that one screen and several screens share: cells with codes, labels and features."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lazypert._internal.randomness import generator
from lazypert._internal.validation import require, require_choice, require_integer
from lazypert.errors import ConfigError, no_such_column
from lazypert.screen.gene_alignment import gene_labels
from lazypert.sources.cell_codes import CellCodes
from lazypert.sources.feature_file import read_feature_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import jax
    import pandas as pd
    from numpy.typing import NDArray

    from lazypert.screen.rows import Rows
    from lazypert.sources.config import PerturbationSourceConfig
    from lazypert.sources.matrix_segment import MatrixSegment
    from lazypert.sparse.row_reader import RowReader
    from lazypert.store.matrix import Matrix
    from lazypert.store.store import Store


class PerturbationSource(CellCodes):
    """Cells of one screen, or of several.

    Row numbers are rows of the store. With several stores they continue from one store to the next.

    Attributes
    ----------
    config
        Options of the source; with several screens, those of the first.
    """

    config: PerturbationSourceConfig

    # Subclasses provide these.

    @property
    @abstractmethod
    def var(self) -> pd.DataFrame:
        """The var table of the configured layer, over the shared genes."""

    @property
    @abstractmethod
    def stores(self) -> tuple[Store, ...]:
        """The stores, in the order of their rows."""

    @abstractmethod
    def content_digests(self, obs: Sequence[str] = ()) -> tuple[str, ...]:
        """Digest of each store's content, including what was added to it and is used here.

        Parameters
        ----------
        obs
            obs columns that are used beside those of the config.
        """

    @property
    @abstractmethod
    def matrices(self) -> tuple[Matrix, ...]:
        """The matrix of each store."""

    @property
    @abstractmethod
    def matrix(self) -> RowReader:
        """The matrix of all cells, over the shared genes."""

    @abstractmethod
    def layer_var(self, layer: str | None) -> pd.DataFrame:
        """Return the var table of a layer, over the shared genes: raw has its own. None for `layer` selects X."""

    @abstractmethod
    def segments(self, layer: str | None) -> Sequence[MatrixSegment]:
        """Return one segment per store, in the order of their rows; None for `layer` selects X.

        Columns are those of the genes of `layer_var`.
        """

    @abstractmethod
    def read_embedding(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Read (n, width) float32 rows of the embedding."""

    @abstractmethod
    def read_obs(self, column: str, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Read (n,) values of an obs column."""

    @abstractmethod
    def obs_names(self, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Read (n,) cell names."""

    # Cells

    def __len__(self) -> int:
        return self.n_rows if self._visible_rows is None else len(self._visible_rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one cell; with ``should_yield_controls=False``, the `index`-th cell that is not a control."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"Cell {index} is out of range for a source of {len(self):,} cells.")
        index += len(self) if index < 0 else 0
        return self.element(index if self._visible_rows is None else int(self._visible_rows[index]))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index in range(len(self)):
            yield self[index]

    def element(self, row: int) -> dict[str, Any]:
        """Return one cell by its store row: the fields of `batch`, without their first dimension."""
        batch = self.batch(np.array([row]))
        return {key: value[0] for key, value in batch.items()}

    def batch(self, rows: NDArray[np.integer]) -> dict[str, Any]:
        """Return cells by their store rows.

        Parameters
        ----------
        rows
            (n,) store rows; repeats are allowed.

        Returns
        -------
        NumPy arrays by name:

        - ``counts``: (n, n_features) float32 features in the configured output space.
        - ``pert_code``, ``cell_type_code``, ``batch_code``: (n,) int32, -1 where the label is missing.
        - ``pert_name``, ``cell_type_name``, ``batch_name``: (n,) labels, empty where missing.
        - ``is_control``: (n,) bool.
        - With covariates, ``condition_code``: (n,) int32, and ``condition_name``: (n, n_covariates) labels, empty where
          missing; see `conditions`.
        - ``pert_emb``, ``cell_type_onehot``, ``batch_onehot``: (n, width) float32, zeros where the label is
          missing.
        - Each of ``additional_obs``, and ``barcode`` with ``include_barcodes``: (n,).
        """
        rows = np.asarray(rows, dtype=np.int64)
        codes = {axis: self.codes_of(axis, rows) for axis in ("perturbation", "cell_type", "batch")}
        names = {axis: np.append(self.groups.labels[axis], "")[code] for axis, code in codes.items()}
        out = {
            "counts": self.read_features(rows),
            "pert_code": codes["perturbation"],
            "cell_type_code": codes["cell_type"],
            "batch_code": codes["batch"],
            "is_control": np.append(self.groups.is_control_code, False)[codes["perturbation"]],
            "pert_emb": _take_features(self.perturbation_features, codes["perturbation"]),
            "cell_type_onehot": _onehot(codes["cell_type"], len(self.groups.labels["cell_type"])),
            "batch_onehot": _onehot(codes["batch"], len(self.groups.labels["batch"])),
            "pert_name": names["perturbation"],
            "cell_type_name": names["cell_type"],
            "batch_name": names["batch"],
        }
        if self.groups.roles.covariates:
            out["condition_code"] = self.codes_of("condition", rows)
            labels = self.groups.conditions.labels.values()
            out["condition_name"] = np.stack([np.append(texts, "")[out["condition_code"]] for texts in labels], axis=1)
        out |= {column: self.read_obs(column, rows) for column in self.config.additional_obs}
        if self.config.include_barcodes:
            out["barcode"] = self.obs_names(rows)
        return out

    def get_batch(self, batch_size: int, key: jax.Array | None = None) -> dict[str, Any]:
        """Draw random cells without replacement; see `batch` for the fields.

        Parameters
        ----------
        batch_size
            Number of cells.
        key
            JAX key that determines which cells are drawn; None uses the config's seed.

        Raises
        ------
        ConfigError
            When `batch_size` is not between 1 and the number of cells.
        """
        batch_size = require_integer("batch_size", batch_size, 1)
        require(batch_size <= len(self), "batch_size", batch_size, f"at most {len(self)}, the source's cell count")
        words: tuple[int, ...] = (self.config.seed,)
        if key is not None:
            import jax

            words = tuple(int(word) for word in np.asarray(jax.random.key_data(key)).ravel())
        chosen = generator(*words).choice(len(self), batch_size, replace=False, shuffle=True)
        return self.batch(chosen if self._visible_rows is None else self._visible_rows[chosen])

    @cached_property
    def _visible_rows(self) -> Rows | NDArray[np.integer] | None:
        """Rows that indexing and iteration cover, ascending; None for all."""
        groups = self.groups
        is_selection = groups.n_obs != self.n_rows
        if not is_selection and self.config.should_yield_controls:
            return None
        chosen = np.ones(len(groups.start), bool) if self.config.should_yield_controls else ~groups.is_control
        if groups.row_order is None:  # intervals, which take little memory
            runs = np.flatnonzero(chosen)
            return groups.rows(runs[np.argsort(groups.start[runs], kind="stable")])
        rows = groups.rows(chosen)[:].astype(groups.row_order.dtype)
        rows.sort()
        return rows

    # Features

    @property
    def n_features(self) -> int:
        """Width of `read_features`."""
        if self.config.output_space == "embedding":
            return int(self.read_embedding(np.empty(0, dtype=np.int64)).shape[1])
        return len(self.get_gene_names("gene" if self.config.output_space == "gene" else "all"))

    def read_features(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """Read (n, n_features) float32 features of cells, in the configured output space."""
        if self.config.output_space == "embedding":
            return self.read_embedding(rows)
        block = self.matrix.read_rows(rows)
        if self.config.output_space == "gene":
            columns = self.hvg_indices
            assert columns is not None
            new_col = np.full(block.n_cols, -1, dtype=np.int32)
            new_col[columns] = np.arange(len(columns))
            block = block.select_cols(new_col, len(columns))
        return block.to_dense(np.float32)

    @cached_property
    def hvg_indices(self) -> NDArray[np.int64] | None:
        """(n_variable,) columns of the highly variable genes, ascending; None without `hvg_col`.

        Raises
        ------
        ColumnNotFoundError
            When there is no such var column.
        ConfigError
            When the column holds neither booleans nor numbers.
        """
        name = self.config.hvg_col
        if name is None:
            return None
        if name not in self.var.columns:
            raise no_such_column("hvg_col", name, "a var column", self.var.columns)
        column = self.var[name]
        if column.dtype.kind not in "biuf":
            raise ConfigError(
                f"hvg_col: got {name!r}, a {column.dtype} column, expected a boolean column that marks variable genes."
            )
        return np.flatnonzero(column.to_numpy(dtype=bool, na_value=False))

    @cached_property
    def perturbation_features(self) -> NDArray[np.float32]:
        """(n_perturbations, width) float32: the features in `perturbation_features_file`, or one-hot vectors."""
        labels = self.get_pert_categories()
        if self.config.perturbation_features_file is None:
            return np.eye(len(labels), dtype=np.float32)
        return read_feature_table(self.config.perturbation_features_file, labels, self.groups.is_control_code)

    def get_onehot_map(self) -> dict[str, jax.Array]:
        """Return a JAX array for each perturbation: its row of `perturbation_features`."""
        import jax.numpy as jnp

        features = self.perturbation_features
        return {str(name): jnp.asarray(features[i]) for i, name in enumerate(self.get_pert_categories())}

    # Labels

    def obs_labels(self, column: str) -> list[str] | None:
        """Return the sorted labels of a categorical obs column of strings; None for any other column."""
        labels: set[str] = set()
        for store in self.stores:
            path = f"obs/{store.require_obs(column)}"
            categories = store.read_categories(path) if store.encoding(path) == "categorical" else np.empty(0)
            if categories.dtype.kind in "biuf":
                return None
            labels |= set(map(str, categories))
        return sorted(labels)

    # Genes and sizes

    def gene_labels(self, var_gene_col: str | None) -> NDArray[np.str_]:
        """(n_genes,) gene names from a var column; None uses the var index."""
        return gene_labels(self.var, var_gene_col)

    def get_gene_names(self, output_space: Literal["all", "gene"] = "all") -> list[str]:
        """Return names from the var index: of ``"all"`` genes, or only of the highly variable ones (``"gene"``)."""
        require_choice("output_space", output_space, ("all", "gene"))
        names = self.var.index.astype(str)
        if output_space == "gene" and self.hvg_indices is not None:
            names = names[self.hvg_indices]
        return list(names)

    def get_n_genes(self) -> int:
        """Return the number of genes."""
        return len(self.var)

    def get_var_dims(self) -> dict[str, int]:
        """Return the sizes that a model needs: genes, features, cells, perturbations, cell types, batches.

        With covariates, ``n_conditions`` too.
        """
        n_conditions = {"n_conditions": len(self.groups.conditions)} if self.groups.roles.covariates else {}
        return {
            "n_genes": self.get_n_genes(),
            "n_features": self.n_features,
            "n_cells": len(self),
            "n_perts": len(self.get_pert_categories()),
            "n_cell_types": len(self.get_cell_type_categories()),
            "n_batches": len(self.get_batch_categories()),
            **n_conditions,
        }

    @property
    def nnz_per_cell(self) -> float:
        """Mean number of stored values per cell."""
        return float(sum(matrix.stats["nnz"] for matrix in self.matrices)) / max(1, self.n_rows)


def _take_features(table: NDArray[np.float32], codes: NDArray[np.int32]) -> NDArray[np.float32]:
    """(n, width) rows of a table by code; zeros for code -1."""
    return np.where(codes[:, None] >= 0, table[codes], np.float32(0))


def _onehot(codes: NDArray[np.int32], n: int) -> NDArray[np.float32]:
    """(n_codes, n) one-hot vectors; zeros for code -1."""
    return (codes[:, None] == np.arange(n)).astype(np.float32)
