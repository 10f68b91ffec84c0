"""Tables by cell name: matching their rows with the cells of a store."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from lazypert.conversion.obs_tables import by_barcode
from lazypert.errors import ConfigError, no_such_column
from lazypert.screen.cell_order import name_hashes
from lazypert.store.format import COLUMN_SHARD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.store.store import Store

OnUnknown = Literal["error", "ignore"]

_SHOWN = 3


def read_barcode_table(table: Any, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return a table indexed by cell name.

    Parameters
    ----------
    table
        A DataFrame or the path of a file; `lazypert.conversion.obs_tables` says where its cell names are.
    columns
        Columns to keep, in this order. None keeps all.

    Raises
    ------
    ConfigError
        If it is not a table, the file has another format, or names are missing, repeated or not text.
    SourceFormatError
        If the file cannot be read.
    ColumnNotFoundError
        If one of `columns` does not exist.
    """
    _, frame = by_barcode("table", table)
    if columns is not None:
        for name in columns:
            if name not in frame.columns:
                raise no_such_column("columns", name, "a column of the table", frame.columns)
        frame = frame[list(columns)]
    repeated = frame.columns[frame.columns.duplicated()]
    if len(repeated):
        raise ConfigError(f"table: got two columns named {repeated[0]!r}, expected different names. Rename one.")
    check_names("table", frame.index)
    return frame


def check_names(name: str, names: pd.Index[Any]) -> None:
    """Raise `ConfigError` unless cell names are texts that differ.

    Parameters
    ----------
    name
        The option that holds them.
    """
    kind = pd.api.types.infer_dtype(names, skipna=False)
    is_text = isinstance(names.dtype, pd.CategoricalDtype | pd.StringDtype) or kind == "string"
    if len(names) and (isinstance(names, pd.MultiIndex) or not is_text or names.hasnans):
        raise ConfigError(
            f"{name}: got an index of {'several levels' if isinstance(names, pd.MultiIndex) else kind}, expected cell "
            "names (text, none missing). Use table.set_index(<column of cell names>)."
        )
    if not names.is_unique:
        repeated = names[names.duplicated()].unique()
        raise ConfigError(
            f"{name}: got {_examples(repeated)} more than once ({len(repeated):,} names), expected every cell once. "
            "Combine or drop the repeated rows."
        )


@dataclass(frozen=True, slots=True)
class NameMatch:
    """Rows of a table for the cells of a store.

    Attributes
    ----------
    row
        (n_obs,) int64 row of the table for each cell of the store, -1 for none.
    examples
        Names of the first cells without one.
    """

    row: NDArray[np.int64]
    examples: tuple[str, ...]

    @property
    def n_missing(self) -> int:
        """Number of cells without a row."""
        return int((self.row < 0).sum())

    def warn_of_missing(self, consequence: str) -> None:
        """Warn the caller of the caller if cells have no row; `consequence` continues a sentence about these cells."""
        if not self.n_missing:
            return
        names = ", ".join(map(repr, self.examples)) + (", ..." if self.n_missing > len(self.examples) else "")
        warnings.warn(
            f"table: {self.n_missing:,} of the store's {len(self.row):,} cells are not in the table ({names}) and "
            f"{consequence}.",
            UserWarning,
            stacklevel=4,
        )


def match_names(store: Store, names: pd.Index[Any], *, ignore_unknown: bool = False) -> NameMatch:
    """Match unique names with the cells of a store.

    Names of the store are read a million at a time. Memory: pandas' hash table of `names`, about 30 bytes each, and
    24 bytes for each cell of the store.

    Parameters
    ----------
    ignore_unknown
        Whether names that the store does not have are left out; otherwise they are an error.

    Raises
    ------
    ConfigError
        If the store's names are not unique, no name matches, or some are unknown.
    """
    text, row = store.open_strings("obs/_index"), np.empty(store.n_obs, dtype=np.int64)
    hashes = np.empty(store.n_obs, dtype=np.uint64)
    examples: list[str] = []
    for start in range(0, store.n_obs, COLUMN_SHARD):
        block = text.read(start, min(store.n_obs, start + COLUMN_SHARD))
        rows = names.get_indexer(pd.Index(block, dtype=object))
        row[start : start + len(block)], hashes[start : start + len(block)] = rows, name_hashes(block)
        examples.extend(map(str, block[np.flatnonzero(rows < 0)[: _SHOWN - len(examples)]]))
    _check_unique(store, hashes)
    is_known = np.zeros(len(names), dtype=bool)
    is_known[row[row >= 0]] = True
    if not len(names):
        raise ConfigError("table: got no rows, expected a row for each cell.")
    if store.n_obs and not is_known.any():
        raise ConfigError(
            f"table: none of its {len(names):,} cell names is in the store. Its names are such as "
            f"{_examples(names)}, those of the store {_examples(text.read(0, min(_SHOWN, store.n_obs)))}. "
            "Change the table's names."
        )
    unknown = names[~is_known]
    if len(unknown) and not ignore_unknown:
        raise ConfigError(
            f"table: got {len(unknown):,} of {len(names):,} cell names that the store does not have: "
            f"{_examples(unknown)}. Check the names; to leave these rows out, pass on_unknown='ignore'."
        )
    return NameMatch(row, tuple(examples))


def _check_unique(store: Store, hashes: NDArray[np.uint64]) -> None:
    """Raise an error if two cells of a store have the same name; `hashes` are those of the names."""
    ordered = np.sort(hashes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return
    rows = np.flatnonzero(np.isin(hashes, repeated))
    text = store.open_strings("obs/_index")
    found = pd.Series([text.read(int(row), int(row) + 1)[0] for row in rows[:1000]])  # enough to show some
    names = found[found.duplicated()].unique()
    if len(names):
        raise ConfigError(
            f"store: several cells of {store.path!r} share a name, such as {_examples(names)}, so rows cannot be "
            "matched with them. Pass an array in the store's order, or convert a file with unique names."
        )


def _examples(names: Any) -> str:
    return ", ".join(repr(str(name)) for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
