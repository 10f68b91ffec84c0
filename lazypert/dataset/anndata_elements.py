"""What a store keeps besides cells and genes, for the cells and genes of a Dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert.dataset.cell_rows import as_array, cell_rows
from lazypert.dataset.variables import CELL_NAME, GENE
from lazypert.store.columns import take_column

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from lazypert.store.store import Store


def stored_elements(ds: xr.Dataset, store: Store) -> dict[str, dict[str, Any]]:
    """Return ``uns``, ``varm`` and ``varp`` of a store, and the tables in its ``obsm``.

    varm and varp are left out if the genes of the Dataset cannot be found in the store by name, because
    names repeat or were assigned.
    """
    found = {"uns": store.read_elements("uns"), "varm": {}, "varp": {}, "obsm": _obsm_frames(ds, store)}
    genes = _positions(ds, store)
    if genes is not None:
        found["varm"] = {name: _take(value, genes) for name, value in store.read_elements("varm").items()}
        found["varp"] = {name: value[genes][:, genes] for name, value in store.read_elements("varp").items()}
    return found


def _positions(ds: xr.Dataset, store: Store) -> NDArray[np.int64] | None:
    """(n_genes,) number in the store of each gene of a Dataset; None if that is not certain."""
    if GENE not in ds.coords:
        return None
    known, names = pd.Index(store.var.index.astype(object)), pd.Index(ds[GENE].to_numpy().astype(object))
    if names.equals(known):
        return np.arange(len(known))
    if not known.is_unique:
        return None
    positions = known.get_indexer(names)
    return None if (positions < 0).any() else positions.astype(np.int64)


def _take(value: Any, rows: NDArray[np.int64]) -> Any:
    return value.iloc[rows] if isinstance(value, pd.DataFrame) else value[rows]


def _obsm_frames(ds: xr.Dataset, store: Store) -> dict[str, pd.DataFrame]:
    """Read the tables in obsm for the cells of a Dataset."""
    frames = store.obsm_frames
    if not frames:
        return {}
    rows = as_array(cell_rows(ds))
    names = ds[CELL_NAME].to_numpy() if CELL_NAME in ds else take_column(store, "obs/_index", rows)
    index = pd.Index(names.astype(object))
    return {
        name: pd.DataFrame(
            {column: take_column(store, f"obsm/{name}/{column}", rows) for column in columns}, index=index
        )
        for name, columns in frames.items()
    }
