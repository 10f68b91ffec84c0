"""The variables of a store's Dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from lazypert.store.columns import LazyColumn, numeric_column, open_column
from lazypert.store.format import TABLES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.store.matrix import Matrix
    from lazypert.store.store import Store


CELL, GENE = "cell", "gene"


CELL_NAME, STORE_ROW = "cell_name", "store_row"


CODES = "_code"


ROW_ATTRS = {"description": "row of the store"}


STORE, STORAGE_OPTIONS = "store", "storage_options"


_BLOCK_BYTES = 32 * 1024**2


@dataclass(frozen=True)
class MatrixArray:
    """A sparse matrix that shows itself densely, block by block, in a float dtype that is exact."""

    matrix: Matrix
    ndim = 2

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and genes."""
        return self.matrix.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Float dtype."""
        return self.matrix.dense_dtype

    @property
    def chunks(self) -> tuple[int, int]:
        """Rows that make a block of about 32 MiB, and all columns: rows are what is stored together."""
        rows = _BLOCK_BYTES // max(1, self.shape[1] * self.dtype.itemsize)
        return max(1, min(rows, self.shape[0])), max(1, self.shape[1])

    def __getitem__(self, key: Any) -> NDArray[Any]:
        rows, cols = key if isinstance(key, tuple) else (key, slice(None))
        picked, squeeze = rows, isinstance(rows, int | np.integer)
        if squeeze:
            picked = np.array([rows])
        if isinstance(picked, slice):
            start, stop, step = picked.indices(self.shape[0])
            whole = step == 1
            block = self.matrix.read(start, max(start, stop)) if whole else None
            picked = None if whole else np.arange(start, stop, step)
        else:
            picked, block = np.asarray(picked), None
            if picked.dtype == bool:
                picked = np.flatnonzero(picked)
        if block is None:
            assert picked is not None
            block = self.matrix.read_rows(np.where(picked < 0, picked + self.shape[0], picked))
        if not (isinstance(cols, slice) and cols == slice(None)):
            wanted = np.atleast_1d(np.arange(self.shape[1])[cols])
            unique, back = np.unique(wanted, return_inverse=True)
            new_col = np.full(self.shape[1], -1, dtype=np.int32)
            new_col[unique] = np.arange(len(unique))
            dense = block.select_cols(new_col, len(unique)).to_dense(self.dtype)[:, back]
        else:
            dense = block.to_dense(self.dtype)
        if isinstance(cols, int | np.integer):
            dense = dense[:, 0]
        return dense[0] if squeeze else dense

    def to_dask(self) -> da.Array:
        """Lazy dense array; nothing is read."""
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
        """As stored."""
        return np.dtype(self.array.dtype)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        return np.asarray(self.array[key])

    def to_dask(self) -> da.Array:
        """Lazy array in the chunks of the store."""
        return da.from_array(self, chunks=self.array.chunks, asarray=False, meta=np.empty((0, 0), self.dtype))


@dataclass(frozen=True)
class VariableSpec:
    """One variable of the Dataset: where it belongs, and its array, eager (small) or readable by pieces."""

    name: str
    dims: tuple[str, ...]
    array: LazyColumn | MatrixArray | EmbeddingArray | NDArray[Any] | Any
    is_coord: bool
    attrs: dict[str, Any]


def variables_of(store: Store) -> list[VariableSpec]:
    """Every variable of a store, under a name that no other has.

    obs and var columns keep their names where they can; an obs column that is named like a
    dimension or like an earlier variable becomes ``obs_<name>``, others ``var_``, ``layer_`` and
    ``obsm_<name>``.
    """
    taken = {CELL, GENE, CELL_NAME, STORE_ROW, "X"}

    def free(name: str, prefix: str) -> str:
        while name in taken:
            name = f"{prefix}_{name}"
        taken.add(name)
        return name

    parts = [
        VariableSpec("X", (CELL, GENE), MatrixArray(store.matrix()), False, {}),
        VariableSpec(GENE, (GENE,), np.asarray(store.var.index, dtype=object), True, {}),
        VariableSpec(CELL_NAME, (CELL,), open_column(store, "obs/_index"), True, {}),
    ]
    for column in store.obs_columns:
        path = f"obs/{column}"
        name = free(column, "obs")
        parts.append(VariableSpec(name, (CELL,), open_column(store, path), True, {"obs_column": column}))
        if store.encoding(path) == "categorical":
            codes = numeric_column(store.open_array(f"{path}/codes"))
            labels = [str(label) for label in store.read_categories(path)]
            parts.append(VariableSpec(free(f"{name}{CODES}", "obs"), (CELL,), codes, True, {"categories": labels}))
    for name, noted in (("total_counts", "total"), ("n_genes_by_counts", "n_genes")) if store.has_cell_stats else ():
        parts.append(
            VariableSpec(
                free(name, "noted"), (CELL,), numeric_column(store.open_array(f"{TABLES}/facts/{noted}")), True, {}
            )
        )
    for column in store.var.columns:
        values = np.asarray(store.var[column])
        parts.append(VariableSpec(free(str(column), "var"), (GENE,), values, True, {"var_column": str(column)}))
    for path in store.matrices:
        kind, _, name = path.partition("/")
        if kind == "layers":
            array = MatrixArray(store.open_matrix(path))
            parts.append(VariableSpec(free(name, "layer"), (CELL, GENE), array, False, {}))
        elif kind == "obsm":
            unique = free(name, "obsm")
            parts.append(VariableSpec(unique, (CELL, f"{unique}_dim"), MatrixArray(store.open_matrix(path)), False, {}))
    for name, embedding in store.obsm.items():
        unique = free(name, "obsm")
        parts.append(VariableSpec(unique, (CELL, f"{unique}_dim"), EmbeddingArray(embedding), False, {}))
    return parts


def attributes(store: Store) -> dict[str, Any]:
    """Dataset attributes: what the screen is, in words."""
    roles, summary = store.roles, store.attrs["summary"]
    said = f"{store.n_obs:,} cells x {store.n_vars:,} genes"
    if roles.pert_col is not None:
        said += f"; {summary['n_perturbations']:,} perturbations"
        if roles.control_pert is not None:
            said += f", controls {roles.control_pert!r} ({summary['n_controls']:,} cells)"
    if roles.cell_type_col is not None:
        said += f"; {summary['n_cell_types']:,} cell types"
    if roles.batch_col is not None:
        said += f"; {summary['n_batches']:,} batches"
    given = {key: value for key, value in roles.to_json().items() if value is not None}
    return {"screen": said, **given, STORE: store.location}
