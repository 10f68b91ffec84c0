"""Opening a store as an xarray Dataset, in which everything along ``cell`` is lazy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr

from lazypert._internal.validation import named_options
from lazypert.dataset.store_access import remember_store
from lazypert.dataset.variables import (
    EmbeddingArray,
    MatrixArray,
    dataset_attributes,
    store_variables,
)
from lazypert.store.store import DEFAULT_CACHE_SIZE, Store

if TYPE_CHECKING:
    from pathlib import Path

    from zarr.abc.store import Store as ZarrStore


@named_options
def open(  # noqa: A001
    store: str | Path | ZarrStore,
    *,
    storage_options: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    cache_size: int | str = DEFAULT_CACHE_SIZE,
) -> xr.Dataset:
    """Open a store as a lazy Dataset.

    Reads metadata, gene names and category labels, but no matrix and nothing per cell. Rows are in store
    order. In grouped order this is not the file's order; the store's table ``source_row`` maps rows back.

    Parameters
    ----------
    store
        A folder; a URL, such as ``"s3://bucket/screen.zarr"``; or a Zarr store, such as `zarr.storage.ObjectStore` or
        the store of an Icechunk session.
    storage_options
        Options for URLs, those of fsspec or obstore: ``anon``, ``key``, ``secret``, ``endpoint_url``,
        ``requester_pays``, ... Besides, ``request_timeout`` (60 seconds for one request), ``max_retries`` (5 for a
        request that fails, after pauses that double) and ``max_connections`` (96 requests at a time).
    cache_dir
        Folder on the local disk that keeps what is read from a URL or a Zarr store; processes share it.
    cache_size
        Bytes that all stores may take in that folder; what was not used for longest is deleted.

    Returns
    -------
    Dataset with dims ``cell`` and ``gene``.

    - ``X`` and the layers: (cell, gene) Dask arrays, float32 where that is exact, made dense block by block.
    - ``raw``, if the store has it: (cell, ``raw_gene``), with its own genes.
    - obsm entries: (cell, ``<name>_dim``) Dask arrays.
    - Coordinates along ``cell``: ``cell_name``, ``store_row``, and every obs column; a categorical
      column also gives ``<name>_code`` (int32, -1 for missing). None is an index. Their values are read when they
      are used, as in ``ds.X.groupby("perturbation")`` or ``ds.isel(cell=ds.batch == "b1")``; computing or
      loading X leaves them in the store.
    - ``total_counts`` and ``n_genes_by_counts``: (cell,) sum of X and number of genes detected, recorded
      during conversion. Where obs already has a column of that name, they are called ``noted_<name>``.
    - Coordinates along ``gene``: ``gene``, which is the index, and every var column.

    Raises
    ------
    StoreNotFoundError
        When there is no complete lazypert store at that location.
    ConfigError
        When a URL or an option cannot be used, or a package is missing that reads such URLs.
    StorageError
        When object storage does not answer, or refuses access.

    Examples
    --------
    >>> import lazypert as lp
    >>> ds = lp.open("screen.zarr")  # doctest: +SKIP
    >>> ds.pert.select(perturbation="TP53").X.sel(gene=["TP53"]).mean().compute()  # doctest: +SKIP
    """
    opened = Store(store, storage_options, cache_dir=cache_dir, cache_size=cache_size)
    variables: dict[str, xr.Variable] = {}
    coords: dict[str, xr.Variable] = {}
    for spec in store_variables(opened):
        array = spec.array.to_dask() if isinstance(spec.array, MatrixArray | EmbeddingArray) else spec.array
        (coords if spec.is_coord else variables)[spec.name] = xr.Variable(spec.dims, array, spec.attrs)
    return remember_store(xr.Dataset(variables, coords, dataset_attributes(opened)), opened)
