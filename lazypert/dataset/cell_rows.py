"""Store rows of the cells of a Dataset, as a range wherever they are one: a list of all rows takes 8 bytes per cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypert.dataset.cell_column import CellColumn
from lazypert.dataset.variables import STORE_ROW
from lazypert.errors import ConfigError
from lazypert.screen.rows import count_distinct

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray


def cell_rows(ds: xr.Dataset) -> range | NDArray[np.int64]:
    """(n_cells,) store rows of a Dataset, in its order."""
    column = ds.variables[STORE_ROW].data
    if isinstance(column, CellColumn) and column.column.read is np.arange:
        return column.rows
    return np.atleast_1d(np.asarray(column, np.int64))


def as_array(rows: range | NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) rows as an array."""
    return np.arange(rows.start, rows.stop, rows.step) if isinstance(rows, range) else rows


def are_all(rows: range | NDArray[np.int64], n_obs: int) -> bool:
    """Whether these are all rows of a store, in its order."""
    if len(rows) != n_obs:
        return False
    return rows == range(n_obs) if isinstance(rows, range) else bool((rows == np.arange(n_obs)).all())


def positions_in(rows: range | NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of the cells of a Dataset whose rows are among `wanted`, ascending."""
    if not isinstance(rows, range):
        return np.flatnonzero(np.isin(rows, wanted))
    if not len(rows):
        return np.empty(0, np.int64)
    low, high = sorted((rows[0], rows[-1]))
    inside = wanted[(wanted >= low) & (wanted <= high)]
    positions, rest = np.divmod(inside - rows.start, rows.step)
    return np.sort(positions[rest == 0])


def unique_rows(ds: xr.Dataset, purpose: str) -> range | NDArray[np.int64]:
    """(n_cells,) store rows of a Dataset; raise `ConfigError` if a cell occurs more than once."""
    rows = cell_rows(ds)
    if isinstance(rows, range) or count_distinct(rows) == len(rows):
        return rows
    raise ConfigError(
        f"Some cells occur more than once in this selection, but {purpose} counts each cell once. "
        "Select cells without repeats, and repeat them afterwards."
    )
