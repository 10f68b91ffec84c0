"""A split as a column of an xarray Dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from lazypert.errors import ConfigError
from lazypert.splits.digest import iterate_cells
from lazypert.splits.names import SPLITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows

_N_COMPARED = 4096
"""Cells whose name hashes are compared to see whether a Dataset is that of the split's cells."""


def column_of_dataset(groups: Groups, parts: Sequence[Rows], ds: xr.Dataset) -> xr.DataArray:
    """(cell,) split of each cell of a Dataset; see `SplitResult.as_column`."""
    rows = ds["store_row"].to_numpy()
    code_of_row = np.full(int(rows.max(initial=-1)) + 1, -1, dtype=np.int8)
    for cells in iterate_cells(groups, parts):
        inside = cells.row < len(code_of_row)
        code_of_row[cells.row[inside]] = cells.split[inside]
    codes = code_of_row[rows]
    _require_same_cells(groups, rows[codes >= 0], ds)
    names = np.array([*SPLITS, ""], dtype=object)  # code -1 selects the last
    return xr.DataArray(names[codes], dims="cell", name="split")


def _require_same_cells(groups: Groups, rows: NDArray[np.int64], ds: xr.Dataset) -> None:
    compared = rows[np.linspace(0, len(rows) - 1, min(len(rows), _N_COMPARED)).astype(np.int64)]
    if not len(compared):
        return
    try:
        is_same = bool((groups.cells.hashes(compared) == ds.pert.groups.cells.hashes(compared)).all())
    except IndexError:
        is_same = False
    if not is_same:
        raise ConfigError(
            "ds: got a Dataset of other cells than those that were split. Open the store that was split, or split this "
            "Dataset: ds.pert.split(...)."
        )
