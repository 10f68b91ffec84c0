"""Adding an embedding to a finished store, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert._internal.validation import named_options, require_choice
from lazypert.errors import ConfigError
from lazypert.updates.barcode_table import OnUnknown, check_names, match_names
from lazypert.updates.checks import as_dense, numeric_dtype, require_element_name
from lazypert.updates.store_update import StoreUpdate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert.store.store import Store

_BLOCK_BYTES = 32 * 1024**2


@named_options
def add_obsm(
    store: str | Path,
    name: str,
    values: pd.DataFrame | NDArray[Any],
    *,
    obs_names: Sequence[str] | None = None,
    on_unknown: OnUnknown = "error",
    storage_options: Mapping[str, Any] | None = None,
    work_dir: str | Path | None = None,
) -> None:
    """Add an embedding to a store, in one step as `add_obs` does.

    Parameters
    ----------
    store
        A store: a local folder or a URL.
    name
        Name of the new obsm entry, such as ``"X_scvi"``.
    values
        (n_obs, width) numbers in the order of the store, which is that of ``anndata.read_zarr``; any array that can
        be sliced by rows, such as one of Zarr or h5py, is written block by block. Or a DataFrame indexed by cell name.
    obs_names
        Names of the cells of the rows of `values`, if these are in another order.
    on_unknown, storage_options, work_dir
        As in `add_obs`.

    Warns
    -----
    UserWarning
        If cells of the store have no row: their values are NaN.

    Raises
    ------
    ConfigError
        If the entry exists, or the values have another shape, are masked or are not numbers; otherwise as in
        `add_obs`.

    Examples
    --------
    >>> import lazypert as lp
    >>> lp.add_obsm("screen.zarr", "X_scvi", latent, obs_names=adata.obs_names)  # doctest: +SKIP
    """
    require_choice("on_unknown", on_unknown, OnUnknown)
    require_element_name("name", name)
    if isinstance(values, pd.DataFrame):
        if obs_names is not None:
            raise ConfigError("obs_names: got names beside a DataFrame, whose index holds them. Leave obs_names out.")
        obs_names, values = values.index, _numbers_of(values)
    dtype = _checked_dtype(values)
    with StoreUpdate(store, storage_options, work_dir) as update:
        opened = update.store
        _require_new(opened, name)
        _require_length(opened, values.shape[0], obs_names)
        row = None
        if obs_names is not None:
            index = pd.Index(obs_names)
            check_names("obs_names", index)
            match = match_names(opened, index, ignore_unknown=on_unknown == "ignore")
            match.warn_of_missing(f"are NaN in obsm/{name}")
            row = match.row
            if match.n_missing and dtype.kind != "f":
                dtype = np.dtype("f8" if dtype.itemsize > 2 else "f4")
        array = update.start().dense(f"obsm/{name}", (opened.n_obs, values.shape[1]), dtype)
        step = max(1, _BLOCK_BYTES // (array.chunks[0] * values.shape[1] * dtype.itemsize)) * array.chunks[0]
        for start in range(0, opened.n_obs, step):
            array[start : start + step] = _read(values, row, slice(start, min(opened.n_obs, start + step)), dtype)
        update.publish([f"obsm/{name}"])


def _numbers_of(frame: pd.DataFrame) -> NDArray[Any]:
    for name, dtype in frame.dtypes.items():
        if dtype.kind not in "fiu":
            raise ConfigError(f"values: got the column {name!r} of {dtype}, expected numbers. Leave it out.")
    has_missing = any(not isinstance(dtype, np.dtype) for dtype in frame.dtypes)
    return frame.to_numpy(dtype=np.float64, na_value=np.nan) if has_missing else frame.to_numpy()


def _checked_dtype(values: Any) -> np.dtype[Any]:
    """Return the dtype to store values with, after checking that they are a dense matrix of numbers."""
    shape = getattr(values, "shape", None)
    if shape is None or not hasattr(values, "dtype") or len(shape) != 2 or hasattr(values, "tocsr"):
        raise ConfigError(
            f"values: got {type(values).__name__}{'' if shape is None else f' of shape {tuple(shape)}'}, expected a "
            "dense (cells, width) array or a DataFrame."
        )
    dtype = numeric_dtype("values", values)
    if dtype.kind == "b" or not shape[1]:
        raise ConfigError(f"values: got {dtype} of width {shape[1]}, expected integers or floats, and a column.")
    return dtype


def _require_new(store: Store, name: str) -> None:
    sparse = (path.removeprefix("obsm/") for path in store.matrices if path.startswith("obsm/"))
    if name in (*store.obsm, *store.obsm_frames, *sparse):
        raise ConfigError(f"name: got {name!r}, which the store's obsm has already. Choose another name.")


def _require_length(store: Store, n_rows: int, obs_names: Sequence[str] | None) -> None:
    expected, why = (store.n_obs, "in the store's order") if obs_names is None else (len(obs_names), "as names")
    if n_rows != expected:
        raise ConfigError(
            f"values: got {n_rows:,} rows, expected {expected:,}, {why}. "
            "Pass obs_names, or a DataFrame indexed by cell name, to match rows by name."
        )


def _read(values: Any, row: NDArray[np.int64] | None, cells: slice, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Read the values of some cells of the store: row `row` of each, NaN where that is -1; None if in their order."""
    if row is None:
        return as_dense("values", values[cells]).astype(dtype, copy=False)
    rows = row[cells]
    has_row = rows >= 0
    wanted, place = np.unique(rows[has_row], return_inverse=True)  # h5py reads rows only in ascending order
    block = np.full((len(rows), values.shape[1]), np.nan if dtype.kind == "f" else 0, dtype=dtype)
    block[has_row] = as_dense("values", values[wanted])[place]
    return block
