"""What a Dataset becomes in AnnData: its tables, and its matrices block by block."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from lazypert.dataset.cell_column import CellColumn
from lazypert.dataset.variables import (
    CATEGORIES,
    CELL,
    CELL_NAME,
    ELEMENT,
    GENE,
    OBS_COLUMN,
    RECORDED,
    STORE_ROW,
    VAR_COLUMN,
)
from lazypert.errors import ConfigError
from lazypert.store.columns import take_column
from lazypert.store.format import RAW

if TYPE_CHECKING:
    from collections.abc import Iterator

    import xarray as xr
    from numpy.typing import DTypeLike

    from lazypert.store.store import Store

_BLOCK_BYTES = 32 * 1024**2
_PREFIXES = "(?:(?:obs|var|layer|obsm)_)*"  # of names that clashed


@dataclass(frozen=True)
class MatrixPart:
    """A matrix of a Dataset, read by blocks of cells.

    Attributes
    ----------
    element
        Where AnnData keeps it: ``"X"``, ``"layers/<name>"``, ``"obsm/<name>"`` or ``"raw/X"``.
    variable
        (cell, gene) or (cell, feature) values, lazy or in memory.
    is_sparse
        Whether AnnData gets it as a CSR matrix.
    dtype
        Dtype in AnnData.
    """

    element: str
    variable: xr.Variable
    is_sparse: bool
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and columns."""
        n_cells, n_columns = self.variable.shape
        return n_cells, n_columns

    def blocks(self) -> Iterator[Any]:
        """Yield consecutive rows as CSR matrices or arrays, 32 MiB each if dense; at least one block."""
        n_cells, width = self.shape
        n_rows = max(1, _BLOCK_BYTES // max(1, width * self.variable.dtype.itemsize))
        for start in range(0, max(1, n_cells), n_rows):
            block = np.asarray(self.variable[start : start + n_rows]).astype(self.dtype, copy=False)
            yield sparse.csr_matrix(block) if self.is_sparse else block


def obs_table(ds: xr.Dataset, store: Store) -> pd.DataFrame:
    """Return the obs table of a Dataset, indexed by cell name: columns of the store, and those that were assigned.

    A column that still is the store's has its dtype there, such as ordered categories.
    """
    columns: dict[str, Any] = {}
    for shown, variable in ds.variables.items():
        is_own = {CATEGORIES, RECORDED}.isdisjoint(variable.attrs) and shown not in (CELL_NAME, STORE_ROW)
        if variable.dims == (CELL,) and is_own:
            column, data = variable.attrs.get(OBS_COLUMN), variable.data
            if column is not None and isinstance(data, CellColumn):
                values = take_column(store, f"obs/{column}", np.asarray(data.rows, np.int64))
            else:
                values = np.asarray(variable)
            columns[_original_name(str(shown), column)] = values
    rows = ds[STORE_ROW].to_numpy()
    names = ds[CELL_NAME].to_numpy() if CELL_NAME in ds else take_column(store, "obs/_index", rows)
    return _without_unused_categories(pd.DataFrame(columns, index=pd.Index(names.astype(object))))


def var_table(ds: xr.Dataset, store: Store) -> pd.DataFrame:
    """Return the var table of a Dataset, indexed by gene name: columns of the store, and those that were assigned."""
    columns: dict[str, Any] = {}
    for shown, variable in ds.variables.items():
        if variable.dims == (GENE,) and shown != GENE:
            column = variable.attrs.get(VAR_COLUMN)
            values = pd.Series(np.asarray(variable))
            if column is not None:
                values = _restored(values, store.var[column].dtype)
            columns[_original_name(str(shown), column)] = values.array
    names = ds[GENE].to_numpy() if GENE in ds.coords else np.arange(ds.sizes[GENE]).astype(str)
    return _without_unused_categories(pd.DataFrame(columns, index=pd.Index(names.astype(object))))


def matrix_parts(ds: xr.Dataset, store: Store, dtype: DTypeLike | None) -> list[MatrixPart]:
    """Return the matrices of a Dataset: X, layers and obsm entries.

    Raises
    ------
    ConfigError
        If the Dataset has no cells or genes as dimensions, or a variable that AnnData has no place for.
    """
    if CELL not in ds.dims or GENE not in ds.dims:
        raise ConfigError(
            f"ds: got dimensions {tuple(map(str, ds.dims))}, expected {CELL!r} and {GENE!r}. "
            "Select single cells and genes with a list: ds.sel(gene=['TP53'])."
        )
    parts = []
    for shown, array in ds.data_vars.items():
        if array.dims in ((CELL,), (GENE,)):
            continue
        if CELL not in array.dims or array.ndim != 2:
            raise ConfigError(
                f"{shown}: got dimensions {tuple(map(str, array.dims))}, expected ({CELL!r}, {GENE!r}) or "
                f"({CELL!r}, <features>). AnnData has no place for it: leave it out with ds.drop_vars({shown!r})."
            )
        variable = array.variable.transpose(CELL, ...)
        path = str(variable.attrs.get(ELEMENT, ""))
        name = _original_name(str(shown), path.rpartition("/")[2] or None)
        is_layer = variable.dims[1] == GENE
        element = "X" if shown == "X" and is_layer else f"{'layers' if is_layer else 'obsm'}/{name}"
        element = RAW if path == RAW and not is_layer else element
        is_sparse = is_layer or path in store.matrices
        parts.append(MatrixPart(element, variable, is_sparse, np.dtype(dtype or variable.dtype)))
    return parts


def raw_table(ds: xr.Dataset, store: Store) -> pd.DataFrame:
    """Return the var table of raw; without its columns if other genes than all of raw's are left."""
    (dim,) = [array.dims[1] for array in ds.data_vars.values() if array.attrs.get(ELEMENT) == RAW]
    names = pd.Index(ds[dim].to_numpy().astype(object))
    return store.raw_var if names.equals(store.raw_var.index.astype(object)) else pd.DataFrame(index=names)


def _without_unused_categories(table: pd.DataFrame) -> pd.DataFrame:
    """Remove categories that no row has, as AnnData does in selections."""
    for name, values in table.items():
        if isinstance(values.dtype, pd.CategoricalDtype):
            table[name] = values.cat.remove_unused_categories()
    return table


def _original_name(shown: str, column: str | None) -> str:
    """Name in AnnData: the original one where the Dataset only added a prefix to it, and otherwise the Dataset's."""
    if column is not None and re.fullmatch(_PREFIXES + re.escape(column), shown):
        return column
    return shown


def _restored(values: pd.Series[Any], dtype: Any) -> pd.Series[Any]:
    """Convert values back to their pandas dtype in the store, unless they have changed to others."""
    try:
        restored = values.astype(dtype)
    except (TypeError, ValueError):
        return values
    return restored if restored.isna().equals(values.isna()) else values
