"""Adding obs columns and embeddings to a finished store."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from lazypert._internal.validation import require_choice, require_flag, require_names
from lazypert.conversion.dataframe_writer import InMemoryColumn, is_column_name, write_column
from lazypert.errors import ConfigError
from lazypert.updates.added_column import column_values
from lazypert.updates.barcode_table import check_names, match_names, read_barcode_table
from lazypert.updates.store_update import StoreUpdate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert.store.store import Store
    from lazypert.updates.barcode_table import NameMatch

OnUnknown = Literal["error", "ignore"]

_BLOCK_BYTES = 32 * 1024**2
_ROLES = ("pert_col", "cell_type_col", "batch_col", "dataset_col")


def add_obs(
    store: str | Path,
    table: pd.DataFrame | str | Path,
    *,
    columns: Sequence[str] | None = None,
    overwrite: bool = False,
    on_unknown: OnUnknown = "error",
) -> None:
    """Add obs columns to a store.

    Rows of the table are matched with cells by name. The store changes in one step: readers see all new columns or
    none, and a process that is killed leaves the store as it was. Datasets and sources that are open keep working, and
    see the columns once the store is opened again. What was converted keeps its digest, so that saved runs and loader
    states stay valid.

    Parameters
    ----------
    store
        A local store.
    table
        A DataFrame indexed by cell name, or a ``.csv``, ``.tsv``, ``.txt`` (tabs) or ``.parquet`` file. The cell names
        of a file are in the column ``cell_barcode``, ``cell_name``, ``cell_id``, ``barcode``, ``barcodes``, ``cell`` or
        ``obs_names``, or else in the first column.
    columns
        Columns of the table to add; None adds all.
    overwrite
        Replace columns of the same name. Columns that the cells are grouped by cannot be replaced.
    on_unknown
        Rows whose cell is not in the store are an ``"error"``, or left out with ``"ignore"``.

    Warns
    -----
    UserWarning
        If cells of the store are not in the table: they get missing values.

    Raises
    ------
    ConfigError
        If names are unknown, repeated or not text, a column exists or has an unsupported dtype or name, or the store
        is remote or of an old format version.
    ColumnNotFoundError
        If one of `columns` does not exist.
    StoreNotFoundError, StoreDamagedError
        If there is no store, or its manifest is damaged.
    MachineError, DiskFullError
        If the store cannot be written to, or another process is writing to it.

    Examples
    --------
    >>> import lazypert as lp
    >>> lp.add_obs("screen.zarr", "guide_calls.csv", columns=["guide", "n_guides"])  # doctest: +SKIP
    """
    require_flag("overwrite", overwrite)
    require_choice("on_unknown", on_unknown, OnUnknown)
    chosen = None if columns is None else require_names("columns", columns)
    frame = read_barcode_table(table, chosen)
    names = _column_names(frame)
    with StoreUpdate(store) as update:
        replaced = [name for name in names if name in update.store.obs_columns]
        _check_replaced(update.store, replaced, overwrite=overwrite)
        match = match_names(update.store, frame.index, ignore_unknown=on_unknown == "ignore")
        _warn_of_missing(match, "have missing values in the new columns")
        paths = [f"obs/{name}" for name in names]
        writer = update.start([f"obs/{name}" for name in replaced])
        for name in names:
            write_column(writer, "obs", name, InMemoryColumn(column_values(name, frame[name], match.row)))
        update.publish(paths, columns=names)


def add_obsm(
    store: str | Path,
    name: str,
    values: pd.DataFrame | NDArray[Any],
    *,
    obs_names: Sequence[str] | None = None,
    on_unknown: OnUnknown = "error",
) -> None:
    """Add an embedding to a store, in one step as `add_obs` does.

    Parameters
    ----------
    store
        A local store.
    name
        Name of the new obsm entry, such as ``"X_scvi"``.
    values
        (n_obs, width) numbers in the order of the store, which is that of ``anndata.read_zarr``; any array that can
        be sliced by rows, such as one of Zarr or h5py, is written block by block. Or a DataFrame indexed by cell name.
    obs_names
        Names of the cells of the rows of `values`, if these are in another order.
    on_unknown
        As in `add_obs`.

    Warns
    -----
    UserWarning
        If cells of the store have no row: their values are NaN.

    Raises
    ------
    ConfigError
        If the entry exists, or the values have another shape or are not numbers; otherwise as in `add_obs`.

    Examples
    --------
    >>> import lazypert as lp
    >>> lp.add_obsm("screen.zarr", "X_scvi", latent, obs_names=adata.obs_names)  # doctest: +SKIP
    """
    require_choice("on_unknown", on_unknown, OnUnknown)
    check_element_name("name", name)
    if isinstance(values, pd.DataFrame):
        if obs_names is not None:
            raise ConfigError("obs_names: got names beside a DataFrame, whose index holds them. Leave obs_names out.")
        obs_names, values = values.index, _numbers_of(values)
    shape, dtype = _shape_and_dtype(values)
    with StoreUpdate(store) as update:
        opened = update.store
        known = [*opened.obsm, *(path.removeprefix("obsm/") for path in opened.matrices if path.startswith("obsm/"))]
        if name in known:
            raise ConfigError(f"name: got {name!r}, which the store's obsm has already. Choose another name.")
        n_rows, expected = (opened.n_obs, "in the store's order") if obs_names is None else (len(obs_names), "as names")
        if shape[0] != n_rows:
            raise ConfigError(
                f"values: got {shape[0]:,} rows, expected {n_rows:,}, {expected}. "
                "Pass obs_names, or a DataFrame indexed by cell name, to match rows by name."
            )
        read: Callable[[int, int], NDArray[Any]] = lambda start, stop: np.asarray(values[start:stop])  # noqa: E731
        if obs_names is not None:
            index = pd.Index(obs_names)
            check_names("obs_names", index)
            match = match_names(opened, index, ignore_unknown=on_unknown == "ignore")
            _warn_of_missing(match, f"are NaN in obsm/{name}")
            if match.n_missing and dtype.kind != "f":
                dtype = np.dtype("f8" if dtype.itemsize > 2 else "f4")
            read = _reader_by_row(values, match.row, dtype)
        array = update.start().dense(f"obsm/{name}", (opened.n_obs, shape[1]), dtype)
        rows = array.chunks[0]
        step = max(1, _BLOCK_BYTES // (rows * shape[1] * dtype.itemsize)) * rows
        for start in range(0, opened.n_obs, step):
            array[start : start + step] = read(start, min(opened.n_obs, start + step)).astype(dtype, copy=False)
        update.publish([f"obsm/{name}"])


def check_element_name(option: str, name: Any) -> None:
    """Raise `ConfigError` if text cannot be the name of a column, embedding or layer."""
    if not isinstance(name, str) or not is_column_name(name):
        raise ConfigError(
            f"{option}: got the name {name!r}, expected text of at most 255 bytes without '/' that is none of '.', "
            "'..', '_index', 'zarr.json' and '__lazypert__'. Rename it."
        )


def _column_names(frame: pd.DataFrame) -> list[str]:
    for name in frame.columns:
        check_element_name("table", name)
    if not len(frame.columns):
        raise ConfigError("table: got no columns beside the cell names, expected at least one.")
    return [str(name) for name in frame.columns]


def _check_replaced(store: Store, replaced: Sequence[str], *, overwrite: bool) -> None:
    grouped_by = {getattr(store.roles, role): role for role in _ROLES}
    grouped_by |= dict.fromkeys(store.roles.covariates, "covariate")
    for name in replaced:
        if name in grouped_by:
            raise ConfigError(
                f"table: got the column {name!r}, which is the {grouped_by[name]} that the store's cells are grouped "
                "by and cannot be replaced. Rename the column, and choose it with ds.pert.regroup(...) or in a config."
            )
    if replaced and not overwrite:
        raise ConfigError(
            f"table: got the column {replaced[0]!r}, which the store has already. Rename it, leave it out with "
            "columns=[...], or pass overwrite=True to replace it."
        )


def _warn_of_missing(match: NameMatch, consequence: str) -> None:
    if match.n_missing:
        warnings.warn(f"table: {match.describe_missing()} and {consequence}.", UserWarning, stacklevel=3)


def _numbers_of(frame: pd.DataFrame) -> NDArray[Any]:
    for name, dtype in frame.dtypes.items():
        if dtype.kind not in "fiu":
            raise ConfigError(f"values: got the column {name!r} of {dtype}, expected numbers. Leave it out.")
    has_missing = any(not isinstance(dtype, np.dtype) for dtype in frame.dtypes)
    return frame.to_numpy(dtype=np.float64, na_value=np.nan) if has_missing else frame.to_numpy()


def _shape_and_dtype(values: Any) -> tuple[tuple[int, int], np.dtype[Any]]:
    shape, dtype = getattr(values, "shape", None), getattr(values, "dtype", None)
    if shape is None or dtype is None or len(shape) != 2 or hasattr(values, "tocsr"):
        raise ConfigError(
            f"values: got {type(values).__name__}{'' if shape is None else f' of shape {tuple(shape)}'}, expected a "
            "dense (cells, width) array or a DataFrame."
        )
    dtype = np.dtype(dtype).newbyteorder("=")
    if dtype.kind not in "fiu" or dtype.itemsize > 8 or not shape[1]:
        raise ConfigError(f"values: got {dtype} of width {shape[1]}, expected integers or floats, and a column.")
    return (int(shape[0]), int(shape[1])), np.dtype("f4") if dtype == np.float16 else dtype


def _reader_by_row(values: Any, row: NDArray[np.int64], dtype: np.dtype[Any]) -> Callable[[int, int], NDArray[Any]]:
    """Return a function of (start, stop) that reads the values for cells of the store, NaN where `row` is -1."""

    def read(start: int, stop: int) -> NDArray[Any]:
        rows = row[start:stop]
        wanted = np.unique(rows[rows >= 0])  # h5py reads rows only in ascending order
        block = np.full((len(rows), values.shape[1]), np.nan if dtype.kind == "f" else 0, dtype=dtype)
        block[rows >= 0] = np.asarray(values[wanted])[np.searchsorted(wanted, rows[rows >= 0])]
        return block

    return read
