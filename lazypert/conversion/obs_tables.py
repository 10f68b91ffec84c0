"""Tables of obs columns in other files, such as guide calls: reading them, and finding each cell's row by barcode."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert._internal.machine import raise_machine_error
from lazypert._internal.paths import local_path
from lazypert.conversion.table_columns import storable
from lazypert.errors import ConfigError, SourceFormatError, SourceMissingError
from lazypert.screen.labels import join_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt", ".txt.gz", ".parquet")
"""Endings of the files that can be read."""

BARCODE_COLUMNS = (
    "cell_barcode",
    "barcode",
    "barcodes",
    "cell_name",
    "cell_id",
    "cell",
    "cellid",
    "obs_names",
    "index",
)
"""Names, in lower case, by which the column of barcodes is recognised; ``cell_barcode`` is Cell Ranger's."""

_CALLS = {"cell_barcode", "num_features", "feature_call", "num_umis"}  # columns of Cell Ranger's guide calls
_ALWAYS_TEXT = "num_umis"  # of calls: "12|30" for two guides, so that "12" must be text as well
_NOT_A_VALUE = ["", "NA", "NaN", "nan"]  # "None" and "null" may be labels
_WELL = re.compile(r"-\d+$")  # the number that Cell Ranger appends to a barcode: its GEM well
_TABLE = "the path of a .csv, .tsv or .parquet file, or a DataFrame"
_EXPECTED = f"a table: {_TABLE}; or a list of them"


@dataclass(frozen=True, eq=False)
class ObsTable:
    """A table of obs columns.

    Attributes
    ----------
    name
        What messages call it: the name of its file, or ``"the DataFrame"``.
    frame
        (n_rows, n_columns) columns, indexed by barcode: text without repeats or missing values.
    """

    name: str
    frame: pd.DataFrame

    def __repr__(self) -> str:
        return f"ObsTable({self.name!r}, {len(self.frame):,} rows, {[*self.frame.columns]})"


def read_obs_tables(option: str, tables: Any) -> list[ObsTable]:
    """Read one table or several.

    Tables with the same columns are stacked, such as the calls of several samples. Others must have no column in
    common.

    Parameters
    ----------
    option
        Name of the option that holds the tables, for error messages.
    tables
        Paths and DataFrames, one or a list. The barcodes are in the index of a DataFrame if that is text; otherwise in
        the column named as in `BARCODE_COLUMNS`, or else in the first column of a file.

    Raises
    ------
    ConfigError
        If something is not a table, or two tables have some columns in common, but not all.
    SourceMissingError, SourceFormatError
        If a file does not exist or cannot be read, has no column apart from the barcodes, or a barcode is missing or
        occurs more than once.
    """
    given = list(tables) if isinstance(tables, list | tuple) else [tables]
    if not given:
        raise ConfigError(f"{option}: got an empty list, expected {_EXPECTED}.")
    stacks: list[list[ObsTable]] = []
    for value in given:
        table = _read_table(option, value)
        columns = set(table.frame.columns)
        for stack in stacks:
            known = stack[0]
            if columns == set(known.frame.columns):
                stack.append(table)
                break
            if shared := sorted(columns & set(known.frame.columns)):
                raise ConfigError(
                    f"{option}: got the column {shared[0]!r} in both {known.name} and {table.name}, expected tables "
                    "with the same columns, which are stacked, or without a column in common. Rename or drop it."
                )
        else:
            stacks.append([table])
    return [_stacked(stack) for stack in stacks]


def rows_of_cells(table: ObsTable, names: NDArray[Any]) -> NDArray[np.int32]:
    """(n_cells,) row of the table of each cell; -1 for a cell without a row.

    Parameters
    ----------
    names
        (n_cells,) cell names.
    """
    found: NDArray[np.int32] = table.frame.index.get_indexer(pd.Index(names, dtype=object)).astype(np.int32)
    return found


def no_match(table: ObsTable, names: Iterable[str], where: str) -> SourceFormatError:
    """Make the error for a table none of whose barcodes is the name of a cell.

    Parameters
    ----------
    names
        Cell names, or the first of them.
    where
        What has the cells, such as the name of a file.
    """
    names, barcodes = [str(name) for name in names], table.frame.index
    bare = {_WELL.sub("", barcode) for barcode in barcodes}
    n_bare = sum(_WELL.sub("", name) in bare for name in names)
    if n_bare:
        cell = next(name for name in names if _WELL.sub("", name) in bare)
        barcode = next(barcode for barcode in barcodes if _WELL.sub("", barcode) == _WELL.sub("", cell))
        return SourceFormatError(
            f"{table.name}: no barcode is the name of a cell of {where}, but {n_bare:,} are if the number at their "
            f"end is left out: the table has {barcode!r}, and the cells have {cell!r}. The number tells samples apart, "
            "so it is never ignored. Make the barcodes of the table the same as the names of the cells. No store was "
            "made."
        )
    shown = names[0] if names else None
    first = barcodes[0] if len(barcodes) else None
    return SourceFormatError(
        f"{table.name}: no barcode is the name of a cell of {where}: the table has {first!r}, and the cells "
        f"have {shown!r}. Check that they belong together, and that the barcodes are in a column named "
        f"{BARCODE_COLUMNS[0]!r}, in the first column of the file, or in the index of the DataFrame. No store was made."
    )


def by_barcode(option: str, value: Any) -> tuple[str, pd.DataFrame]:
    """Return what messages call a table, and the table as it is, indexed by barcode.

    Raises
    ------
    ConfigError
        If it is not a table.
    SourceMissingError, SourceFormatError
        If the file does not exist or cannot be read, or a DataFrame has no barcodes.
    """
    if isinstance(value, pd.DataFrame):
        return "the DataFrame", _indexed("the DataFrame", value)
    if not isinstance(value, str | os.PathLike):
        hint = " Pass a dict only for several sources, with a table for each." if isinstance(value, Mapping) else ""
        raise ConfigError(f"{option}: got {type(value).__name__}, expected {_TABLE}.{hint}")
    path = local_path(option, value, "Copy the table to this machine first. Nothing was written.")
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise ConfigError(f"{option}: got {str(path)!r}, expected a file that ends with {', '.join(SUFFIXES)}.")
    if not path.is_file():
        raise SourceMissingError(f"{option}: there is no file {str(path)!r}. Check the path.")
    return path.name, _indexed(path.name, _read_parquet(path)) if suffix == ".parquet" else _read_text(path, suffix)


def _read_table(option: str, value: Any) -> ObsTable:
    return _checked(*by_barcode(option, value))


def _read_text(path: Path, suffix: str) -> pd.DataFrame:
    separator = "," if suffix.startswith(".csv") else "\t"
    try:
        first_line = pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str, keep_default_na=False)
        header = [str(name) for name in pd.read_csv(path, sep=separator, nrows=0).columns]
        first = header[0] if header else ""
        is_index = first.startswith("Unnamed:")  # as pandas writes an index
        key = first if is_index else _barcode_column(header) or first
        texts = [key, _ALWAYS_TEXT] if set(header) >= _CALLS else [key]
        # Barcodes are text, even if they look like numbers or, such as "NA", like missing values.
        missing = {name: _NOT_A_VALUE for name in header if name != key}
        dtypes, options = dict.fromkeys(texts, str), {"keep_default_na": False, "low_memory": False}
        frame = pd.read_csv(path, sep=separator, na_values=missing, dtype=dtypes, **options)
    except (OSError, EOFError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise_machine_error(path, error)
        kind = "comma" if separator == "," else "tab"
        raise SourceFormatError(
            f"{str(path)!r} cannot be read as a table: {error}. Expected {kind}-separated text with a header line, and "
            "one line per cell."
        ) from error
    _require_distinct(path.name, [name for name in first_line.iloc[0] if name])  # pandas numbers repeated ones
    if not isinstance(frame.index, pd.RangeIndex):  # as pandas calls what is left of the first column
        raise SourceFormatError(
            f"{path.name} has lines with more fields than its header, such as R writes with row names. Name every "
            "column, such as with write.table(..., col.names = NA)."
        )
    return frame.set_index(key)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise ConfigError(f"{str(path)!r}: reading Parquet needs pyarrow: pip install 'lazypert[parquet]'.") from error
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        raise_machine_error(path, error)
        raise SourceFormatError(f"{str(path)!r} cannot be read as a Parquet file: {error}.") from error
    has_barcodes = _barcode_column(frame.columns) is not None or not isinstance(frame.index, pd.RangeIndex)
    return frame if has_barcodes or not len(frame.columns) else frame.set_index(frame.columns[0])


def _barcode_column(columns: Iterable[Any]) -> str | None:
    names = {str(name).lower(): name for name in reversed([*columns])}
    return next((names[known] for known in BARCODE_COLUMNS if known in names), None)


def _indexed(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Put the barcodes into the index, unless they are there: the obs of 10x has bare barcodes in a column too."""
    if frame.index.inferred_type in ("string", "categorical"):
        return frame
    key = _barcode_column(frame.columns)
    if key is not None:
        return frame.set_index(key)
    if isinstance(frame.index, pd.RangeIndex) and len(frame):
        raise SourceFormatError(
            f"{name} numbers its rows, and has no column of barcodes: got columns {[*map(str, frame.columns)]}. Put "
            f"the barcodes into the index, or into a column named {BARCODE_COLUMNS[0]!r}."
        )
    return frame


def _checked(name: str, frame: pd.DataFrame) -> ObsTable:
    """Check the barcodes and the columns."""
    if isinstance(frame.index, pd.MultiIndex):
        raise SourceFormatError(
            f"{name} has an index of several levels, expected barcodes. Use frame.set_index(<column of barcodes>)."
        )
    if frame.index.hasnans:
        row = int(np.argmax(np.asarray(frame.index.isna())))
        raise SourceFormatError(f"{name} has no barcode in row {row:,}. Every row needs one.")
    columns = [str(column) for column in frame.columns]
    _require_distinct(name, columns)
    if not columns:
        raise SourceFormatError(f"{name} has no column apart from the barcodes, expected at least one.")
    index = pd.Index(frame.index.astype(str).to_numpy(dtype=object), dtype=object)
    values = [_storable(name, column, frame.iloc[:, k]) for k, column in enumerate(columns)]
    table = pd.DataFrame(dict(zip(columns, values, strict=True)), index=index)
    return _without_repeats(ObsTable(name, table))


def _require_distinct(name: str, columns: list[str]) -> None:
    if repeated := [column for column in columns if columns.count(column) > 1]:
        raise SourceFormatError(
            f"{name} has the column {repeated[0]!r} more than once, expected each with a name of its own. Rename one."
        )


def _storable(name: str, column: str, values: pd.Series[Any]) -> Any:
    """(n_rows,) values of a column in a dtype that obs can have.

    Text whose values repeat becomes categorical, as when AnnData writes a table.
    """
    found = storable(name, column, values)
    if not isinstance(found, np.ndarray) or found.dtype.kind != "O":
        return found
    labels = pd.Categorical(found)
    is_repeated = len(labels.categories) < len(labels)
    return labels if is_repeated else pd.array(found, dtype=pd.StringDtype("python"))


def _without_repeats(table: ObsTable) -> ObsTable:
    repeats = table.frame.index.duplicated()
    if repeats.any():
        barcode = table.frame.index[int(np.argmax(repeats))]
        raise SourceFormatError(
            f"{table.name} has the barcode {barcode!r} more than once ({int(repeats.sum()):,} rows repeat an earlier "
            "barcode), expected one row per cell. Keep one row of each: frame[~frame.index.duplicated()]. No store was "
            "made."
        )
    return table


def _stacked(tables: Sequence[ObsTable]) -> ObsTable:
    if len(tables) == 1:
        return tables[0]
    names = ", ".join(table.name for table in tables)
    frames = [table.frame for table in tables]
    index = pd.Index(np.concatenate([frame.index.to_numpy(dtype=object) for frame in frames]), dtype=object)
    values = {
        column: _storable(
            names, column, pd.Series(join_columns([f[column].array for f in frames], [*map(len, frames)]))
        )
        for column in frames[0].columns
    }
    return _without_repeats(ObsTable(names, pd.DataFrame({k: pd.Series(v, index=index) for k, v in values.items()})))
