"""The screen behind a Dataset: its store, and the groups of the Dataset's cells."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from lazypert.dataset.cell_rows import are_all, as_array, cell_rows
from lazypert.dataset.dataset_source import require_stored_labels
from lazypert.dataset.store_access import reopen_store
from lazypert.dataset.variables import STORE, STORE_ROW
from lazypert.errors import ConfigError

if TYPE_CHECKING:
    import xarray as xr

    from lazypert.screen.groups import Groups
    from lazypert.store.store import Store


class OpenedScreen:
    """A Dataset from `lazypert.open`, or a selection of its cells.

    Raises
    ------
    ConfigError
        If the Dataset is neither.
    """

    def __init__(self, ds: xr.Dataset) -> None:
        if STORE not in ds.attrs or STORE_ROW not in ds.coords:
            raise ConfigError(
                "ds.pert needs a Dataset from lazypert.open(...), or a selection of one. This one has no "
                f"{STORE!r} attribute or no {STORE_ROW!r} coordinate. Arithmetic drops attributes: "
                "use xr.set_options(keep_attrs=True), or select first and compute afterwards."
            )
        self._ds = ds

    @cached_property
    def store(self) -> Store:
        """The store behind the Dataset; opened once."""
        return reopen_store(self._ds)

    @cached_property
    def groups(self) -> Groups:
        """Cells of this Dataset, grouped by cell type, perturbation, dataset and batch, as in the store."""
        store = self.store
        require_stored_labels(self._ds, store)
        if self._is_complete:
            return store.groups
        return store.groups.select(as_array(cell_rows(self._ds)))

    @property
    def _is_complete(self) -> bool:
        """Whether the Dataset has all cells of the store, in the store's order."""
        return are_all(cell_rows(self._ds), self.store.n_obs)
