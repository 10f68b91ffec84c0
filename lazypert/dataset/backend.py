"""xarray backend: ``xr.open_dataset(store, engine="lazypert")`` opens the same Dataset, with any chunks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from lazypert._internal.paths import location
from lazypert.dataset.cell_column import CellColumn
from lazypert.dataset.store_access import remember_store
from lazypert.dataset.variables import dataset_attributes, store_variables
from lazypert.errors import ConfigError
from lazypert.store.format import MARKER
from lazypert.store.store import DEFAULT_CACHE_SIZE, Store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from lazypert.dataset.variables import EmbeddingArray, MatrixArray, VariableSpec


class _LazyArray(BackendArray):
    """An array of a store that xarray indexes when values are needed."""

    def __init__(self, array: MatrixArray | EmbeddingArray) -> None:
        self.array = array
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER_1VECTOR, self._read)

    def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
        return self.array[key]


class LazypertBackendEntrypoint(BackendEntrypoint):
    """Open lazypert stores with xarray."""

    description = "Open lazypert stores of perturbation screens"
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "storage_options", "cache_dir", "cache_size")

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: str | Path,
        *,
        drop_variables: str | Iterable[str] | None = None,
        storage_options: dict[str, Any] | None = None,
        cache_dir: str | Path | None = None,
        cache_size: int | str = DEFAULT_CACHE_SIZE,
    ) -> xr.Dataset:
        """Open a store; `lazypert.open` lists the variables."""
        store = Store(filename_or_obj, storage_options, cache_dir=cache_dir, cache_size=cache_size)
        dropped = {drop_variables} if isinstance(drop_variables, str) else set(drop_variables or ())
        variables: dict[str, xr.Variable] = {}
        coords: dict[str, xr.Variable] = {}
        for spec in store_variables(store):
            if spec.name not in dropped:
                (coords if spec.is_coord else variables)[spec.name] = _lazy_variable(spec)
        return remember_store(xr.Dataset(variables, coords, dataset_attributes(store)), store)

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether this is a folder with lazypert's marker; other Zarr stores are left to other backends."""
        if not isinstance(filename_or_obj, str | Path):
            return False
        try:
            metadata = Path(location("filename_or_obj", filename_or_obj), "zarr.json").read_text()
        except (OSError, UnicodeDecodeError, ConfigError):
            return False
        return f'"{MARKER}"' in metadata


def _lazy_variable(spec: VariableSpec) -> xr.Variable:
    """Make a variable that reads nothing until it is indexed, with its array's chunks as preferred chunks."""
    if isinstance(spec.array, np.ndarray | CellColumn):
        return xr.Variable(spec.dims, spec.array, spec.attrs)
    chunks, encoding = getattr(spec.array, "chunks", None), {}
    if chunks is not None:
        encoding = {"preferred_chunks": dict(zip(spec.dims, chunks, strict=True))}
    return xr.Variable(spec.dims, indexing.LazilyIndexedArray(_LazyArray(spec.array)), spec.attrs, encoding)
