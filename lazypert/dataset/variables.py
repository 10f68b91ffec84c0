"""The variables of a store's Dataset: their names, dimensions and arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from lazypert.dataset.cell_column import CellColumn
from lazypert.store.columns import LazyColumn, code_column, numeric_column, open_column
from lazypert.store.format import RAW, TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lazypert.store.matrix import Matrix
    from lazypert.store.store import Store

# Dimensions and coordinates of every Dataset.
CELL, GENE = "cell", "gene"
CELL_NAME, STORE_ROW = "cell_name", "store_row"
_ROW = "row of the store"

CODES = "_code"
"""Suffix of the variable that holds the codes of a categorical column."""

OBS_COLUMN, VAR_COLUMN, ELEMENT = "obs_column", "var_column", "element"
"""Attributes of a variable that name its column, or its element such as ``"layers/counts"``, in AnnData."""

CATEGORIES, RECORDED = "categories", "recorded"
"""Attributes of variables that AnnData has no column for: codes of categories, and totals from conversion."""

STORE = "store"
"""Dataset attribute with the location of the store."""

# The C library reuses smaller blocks; larger ones are new memory each time, which costs as much as decoding.
_BLOCK_BYTES = 16 * 1024**2


@dataclass(frozen=True)
class MatrixArray:
    """A sparse matrix as a dense array, which is read block by block.

    Values have a float dtype that represents them exactly.
    """

    matrix: Matrix
    ndim = 2

    def __repr__(self) -> str:
        return f"MatrixArray({self.matrix.name!r}: {self.shape[0]:,} x {self.shape[1]:,} {self.dtype})"

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and columns."""
        return self.matrix.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 where that is exact, otherwise float64."""
        return self.matrix.dense_dtype

    @property
    def chunks(self) -> tuple[int, int]:
        """As many rows as fit in about 16 MiB, and all columns, because rows are stored contiguously."""
        rows = _BLOCK_BYTES // max(1, self.shape[1] * self.dtype.itemsize)
        return max(1, min(rows, self.shape[0])), max(1, self.shape[1])

    def __getitem__(self, key: Any) -> NDArray[Any]:
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        block = self.matrix.read_rows(np.atleast_1d(self._row_numbers(rows)))
        if isinstance(columns, slice) and columns == slice(None):
            dense = block.to_dense(self.dtype)
        else:
            wanted = np.atleast_1d(np.arange(self.shape[1])[columns])
            unique, inverse = np.unique(wanted, return_inverse=True)
            new_col = np.full(self.shape[1], -1, dtype=np.int32)
            new_col[unique] = np.arange(len(unique))
            dense = block.select_cols(new_col, len(unique)).to_dense(self.dtype)[:, inverse]
        if isinstance(columns, int | np.integer):
            dense = dense[:, 0]
        return dense[0] if isinstance(rows, int | np.integer) else dense

    def _row_numbers(self, key: Any) -> NDArray[np.integer]:
        """Convert an integer, a slice, a mask or a list to non-negative row numbers."""
        if isinstance(key, slice):
            return np.arange(*key.indices(self.shape[0]))
        rows = np.asarray(key)
        if rows.dtype == bool:
            return np.flatnonzero(rows)
        return np.where(rows < 0, rows + self.shape[0], rows)

    def to_dask(self) -> da.Array:
        """Make a lazy dense array; nothing is read."""
        return da.from_array(self, chunks=self.chunks, asarray=False, meta=np.empty((0, 0), self.dtype))


@dataclass(frozen=True)
class EmbeddingArray:
    """A dense embedding of a store."""

    array: Any
    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and features."""
        n, width = self.array.shape
        return int(n), int(width)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Stored dtype."""
        return np.dtype(self.array.dtype)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        return np.asarray(self.array[key])

    def to_dask(self) -> da.Array:
        """Make a lazy array with the chunks of the store."""
        return da.from_array(self, chunks=self.array.chunks, asarray=False, meta=np.empty((0, 0), self.dtype))


@dataclass(frozen=True)
class VariableSpec:
    """One variable of a Dataset.

    Attributes
    ----------
    name, dims, attrs
        Name, dimensions and attributes in the Dataset.
    array
        Values: in memory if there are few, otherwise an array that is read when it is used or indexed.
    is_coord
        Whether the variable is a coordinate.
    """

    name: str
    dims: tuple[str, ...]
    array: CellColumn | MatrixArray | EmbeddingArray | NDArray[Any]
    is_coord: bool
    attrs: dict[str, Any]


class _Names:
    """Variable names that are in use."""

    def __init__(self, *reserved: str) -> None:
        self._used = set(reserved)

    def unique(self, name: str, prefix: str) -> str:
        """Return `name`, prefixed until no other variable has it."""
        while name in self._used:
            name = f"{prefix}_{name}"
        self._used.add(name)
        return name


def store_variables(store: Store) -> list[VariableSpec]:
    """Return every variable of a store's Dataset, each with a unique name.

    An obs column whose name is taken by a dimension or an earlier variable becomes ``obs_<name>``. Likewise
    ``noted_<name>`` for cell statistics, ``var_<name>``, ``layer_<name>`` and ``obsm_<name>``. AnnData's ``raw`` is
    ``raw`` over the dimension ``raw_gene``.
    """
    names = _Names(CELL, GENE, CELL_NAME, STORE_ROW, "X")
    row_numbers = LazyColumn(store.n_obs, np.dtype(np.int64), np.arange)
    return [
        VariableSpec("X", (CELL, GENE), MatrixArray(store.matrix()), False, {ELEMENT: "X"}),
        VariableSpec(GENE, (GENE,), np.asarray(store.var.index, dtype=object), True, {}),
        VariableSpec(CELL_NAME, (CELL,), CellColumn(open_column(store, "obs/_index"), is_text=True), True, {}),
        VariableSpec(STORE_ROW, (CELL,), CellColumn(row_numbers, is_text=False), True, {"description": _ROW}),
        *_obs_variables(store, names),
        *_cell_stats_variables(store, names),
        *_var_variables(store, names),
        *_matrix_variables(store, names),
    ]


def _obs_variables(store: Store, names: _Names) -> Iterator[VariableSpec]:
    for column in store.obs_columns:
        path = f"obs/{column}"
        name = names.unique(column, "obs")
        encoding = store.encoding(path)
        values = CellColumn(open_column(store, path), is_text="string" in encoding)
        yield VariableSpec(name, (CELL,), values, True, {OBS_COLUMN: column})
        if encoding == "categorical":
            codes = CellColumn(code_column(store, path), is_text=False)
            labels = [str(label) for label in store.read_categories(path)]
            yield VariableSpec(names.unique(f"{name}{CODES}", "obs"), (CELL,), codes, True, {CATEGORIES: labels})


def _cell_stats_variables(store: Store, names: _Names) -> Iterator[VariableSpec]:
    if store.has_cell_stats:
        for name, array in (("total_counts", "total"), ("n_genes_by_counts", "n_genes")):
            column = CellColumn(numeric_column(store.open_array(f"{TABLES}/facts/{array}")), is_text=False)
            yield VariableSpec(names.unique(name, "noted"), (CELL,), column, True, {RECORDED: "during conversion"})


def _var_variables(store: Store, names: _Names) -> Iterator[VariableSpec]:
    for column in store.var.columns:
        values = np.asarray(store.var[column])
        yield VariableSpec(names.unique(str(column), "var"), (GENE,), values, True, {VAR_COLUMN: str(column)})


def _matrix_variables(store: Store, names: _Names) -> Iterator[VariableSpec]:
    """Yield layers, raw with its own genes, sparse obsm entries and embeddings."""
    for path in store.matrices:
        kind, _, key = path.partition("/")
        if kind == "layers":
            name = names.unique(key, "layer")
            yield VariableSpec(name, (CELL, GENE), MatrixArray(store.open_matrix(path)), False, {ELEMENT: path})
        elif path == RAW:
            name = names.unique("raw", "layer")
            dim = names.unique(f"{name}_gene", "raw")
            yield VariableSpec(name, (CELL, dim), MatrixArray(store.open_matrix(path)), False, {ELEMENT: path})
            yield VariableSpec(dim, (dim,), np.asarray(store.raw_var.index, dtype=object), True, {})
        elif kind == "obsm":
            name = names.unique(key, "obsm")
            yield VariableSpec(
                name, (CELL, f"{name}_dim"), MatrixArray(store.open_matrix(path)), False, {ELEMENT: path}
            )
    for key, embedding in store.obsm.items():
        name = names.unique(key, "obsm")
        yield VariableSpec(name, (CELL, f"{name}_dim"), EmbeddingArray(embedding), False, {ELEMENT: f"obsm/{key}"})


def dataset_attributes(store: Store) -> dict[str, Any]:
    """Return the Dataset's attributes: a description of the screen, its roles, and the store's location."""
    roles, summary = store.roles, store.attrs["summary"]
    description = f"{store.n_obs:,} cells x {store.n_vars:,} genes"
    if roles.pert_col is not None:
        description += f"; {summary['n_perturbations']:,} perturbations"
        if roles.control_pert is not None:
            description += f", controls {', '.join(map(repr, roles.controls))} ({summary['n_controls']:,} cells)"
    if roles.cell_type_col is not None:
        description += f"; {summary['n_cell_types']:,} cell types"
    if roles.batch_col is not None:
        description += f"; {summary['n_batches']:,} batches"
    given_roles = {role: value for role, value in roles.to_json().items() if isinstance(value, str | list)}
    return {"screen": description, **given_roles, STORE: store.location}
