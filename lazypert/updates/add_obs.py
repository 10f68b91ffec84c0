"""Adding obs columns to a finished store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lazypert._internal.validation import named_options, require_choice, require_flag, require_names
from lazypert.conversion.dataframe_writer import write_column
from lazypert.errors import ConfigError
from lazypert.updates.added_column import column_values
from lazypert.updates.barcode_table import OnUnknown, match_names, read_barcode_table
from lazypert.updates.checks import require_element_name
from lazypert.updates.store_update import StoreUpdate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from lazypert.store.store import Store

_ROLES = ("pert_col", "cell_type_col", "batch_col", "dataset_col")


@named_options
def add_obs(
    store: str | Path,
    table: pd.DataFrame | str | Path,
    *,
    columns: Sequence[str] | None = None,
    overwrite: bool = False,
    on_unknown: OnUnknown = "error",
    storage_options: Mapping[str, Any] | None = None,
    work_dir: str | Path | None = None,
) -> None:
    """Add obs columns to a store.

    Rows of the table are matched with cells by name. The store changes in one step: readers see all new columns or
    none, and a process that is killed leaves the store as it was. Datasets and sources that are open keep working, and
    see the columns once the store is opened again. What was converted keeps its digest, so that saved runs and loader
    states stay valid.

    Parameters
    ----------
    store
        A store: a local folder or a URL.
    table
        A DataFrame indexed by cell name, or a ``.csv``, ``.tsv``, ``.txt`` (tabs) or ``.parquet`` file. The cell names
        of a file are in a column such as ``cell_barcode``, ``barcode``, ``cell_name`` or ``cell``, or else in the first
        column.
    columns
        Columns of the table to add; None adds all.
    overwrite
        Replace columns of the same name. Columns that the cells are grouped by cannot be replaced.
    on_unknown
        Rows whose cell is not in the store are an ``"error"``, or left out with ``"ignore"``.
    storage_options
        Options for the URL; `convert` explains them.
    work_dir
        Local folder for temporary files, if `store` is a URL.

    Warns
    -----
    UserWarning
        If cells of the store are not in the table: they get missing values.

    Raises
    ------
    ConfigError
        If names are unknown, repeated or not text, a column exists or has a name that the store cannot have, or the
        store has an old format version.
    SourceMissingError, SourceFormatError
        If the file does not exist or cannot be read, or a column holds anything but text, categories, numbers and
        booleans.
    ColumnNotFoundError
        If one of `columns` does not exist.
    StoreNotFoundError, StoreDamagedError
        If there is no store, or its manifest is damaged.
    MachineError, DiskFullError
        If the store cannot be written to, object storage does not answer, or another process is writing to it.

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
    with StoreUpdate(store, storage_options, work_dir) as update:
        replaced = [name for name in names if name in update.store.obs_columns]
        _check_replaced(update.store, replaced, overwrite=overwrite)
        match = match_names(update.store, frame.index, ignore_unknown=on_unknown == "ignore")
        match.warn_of_missing("have missing values in the new columns")
        paths = [f"obs/{name}" for name in names]
        writer = update.start([f"obs/{name}" for name in replaced])
        for name in names:
            write_column(writer, "obs", name, column_values(name, frame[name], match.row))
        update.publish(paths, columns=names)


def _column_names(frame: pd.DataFrame) -> list[str]:
    if not len(frame.columns):
        raise ConfigError("table: got no columns beside the cell names, expected at least one.")
    return [require_element_name("table", name) for name in frame.columns]


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
