"""``xr.open_dataset(store, engine="lazypert")``: the same Dataset, chunked as the caller asks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from lazypert.dataset.variables import CELL, ROW_ATTRS, STORAGE_OPTIONS, STORE_ROW, attributes, variables_of
from lazypert.store.columns import LazyColumn
from lazypert.store.format import MARKER
from lazypert.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


class _Lazy(BackendArray):
    """A part of a store, indexed by xarray when values are wanted."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER_1VECTOR, self._read)

    def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
        found: NDArray[Any] = self.array[key]
        return found


class LazypertBackendEntrypoint(BackendEntrypoint):
    """Opens lazypert stores with xarray."""

    description = "Open lazypert stores of perturbation screens"
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "storage_options")

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: str | Path,
        *,
        drop_variables: str | Iterable[str] | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> xr.Dataset:
        """Open a store; see `lazypert.open` for what is in it."""
        store = Store(filename_or_obj, storage_options)
        dropped = {drop_variables} if isinstance(drop_variables, str) else set(drop_variables or ())
        variables: dict[str, xr.Variable] = {}
        rows = LazyColumn(store.n_obs, np.dtype(np.int64), np.arange)
        coords: dict[str, xr.Variable] = {
            STORE_ROW: xr.Variable((CELL,), indexing.LazilyIndexedArray(_Lazy(rows)), ROW_ATTRS),
        }
        for part in variables_of(store):
            if part.name in dropped:
                continue
            array, encoding = part.array, {}
            if not isinstance(array, np.ndarray):
                chunks = getattr(array, "chunks", None)
                if chunks is not None:
                    encoding = {"preferred_chunks": dict(zip(part.dims, chunks, strict=True))}
                array = indexing.LazilyIndexedArray(_Lazy(array))
            variable = xr.Variable(part.dims, array, part.attrs, encoding)
            (coords if part.is_coord else variables)[part.name] = variable
        ds = xr.Dataset(variables, coords, attributes(store))
        ds.encoding[STORAGE_OPTIONS] = storage_options
        return ds

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether this is a folder with lazypert's marker; other Zarr stores are left to others."""
        if not isinstance(filename_or_obj, str | Path):
            return False
        try:
            head = (Path(filename_or_obj) / "zarr.json").read_text()
        except (OSError, UnicodeDecodeError):
            return False
        return f'"{MARKER}"' in head
