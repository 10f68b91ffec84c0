"""A store as an xarray Dataset: dims ``cell`` and ``gene``, everything with a cell axis lazy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import xarray as xr

from lazypert.store.store import Store

if TYPE_CHECKING:
    from pathlib import Path

from lazypert.dataset.variables import CELL, ROW_ATTRS, STORAGE_OPTIONS, STORE_ROW, attributes, variables_of


def open(store: str | Path, *, storage_options: dict[str, Any] | None = None) -> xr.Dataset:  # noqa: A001
    """Open a store as a lazy Dataset.

    Reads metadata, gene names and category labels; no matrix and no cell. Rows are the store's,
    which in grouped order are not the file's: the table ``source_row`` of the store maps back.

    Parameters
    ----------
    store
        A folder or a URL.
    storage_options
        Passed to fsspec for URLs.

    Returns
    -------
    Dataset with dims ``cell`` and ``gene``.

    - ``X`` and the layers: (cell, gene) Dask arrays, float32 where exact, dense block by block.
    - obsm: (cell, ``<name>_dim``) Dask arrays.
    - Coordinates on ``cell``: ``cell_name``, ``store_row``, and every obs column; a categorical
      column also gives ``<name>_code`` (-1 is missing). All are Dask arrays, none is an index.
    - ``total_counts`` and ``n_genes_by_counts``: (cell,) sum of X and number of genes detected, noted
      when the screen was converted. Where obs has such columns, these are ``noted_<name>``.
    - Coordinates on ``gene``: ``gene``, the index, and every var column.

    Raises
    ------
    StoreNotFoundError
        When there is no finished lazypert store.

    Examples
    --------
    >>> import lazypert as lp
    >>> ds = lp.open("screen.zarr")  # doctest: +SKIP
    >>> ds.pert.select(perturbation="TP53").X.sel(gene=["TP53"]).mean().compute()  # doctest: +SKIP
    """
    opened = Store(store, storage_options)
    variables: dict[str, Any] = {}
    coords: dict[str, Any] = {}
    for part in variables_of(opened):
        array = part.array.to_dask() if hasattr(part.array, "to_dask") else part.array
        (coords if part.is_coord else variables)[part.name] = xr.Variable(part.dims, array, part.attrs)
    rows = da.arange(opened.n_obs, chunks=1_048_576, dtype=np.int64)
    coords[STORE_ROW] = xr.Variable((CELL,), rows, ROW_ATTRS)
    ds = xr.Dataset(variables, coords, attributes(opened))
    ds.encoding[STORAGE_OPTIONS] = storage_options
    return ds
