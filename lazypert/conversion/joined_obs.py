"""Source files with further obs columns, which are joined by cell name from tables in other files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import pandas as pd

from lazypert.conversion.cell_pieces import READ_STEP
from lazypert.conversion.obs_tables import ObsTable, no_match, read_obs_tables, rows_of_cells
from lazypert.conversion.table_columns import nullable, take_rows
from lazypert.errors import ConfigError, SourceFormatError, near_matches

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.converter import ScreenReader

Table: TypeAlias = "str | os.PathLike[str] | pd.DataFrame"
"""A table of obs columns."""

ObsTables: TypeAlias = "Table | Sequence[Table] | Mapping[str, Table | Sequence[Table]]"
"""What the option ``obs`` takes."""

_SHOWN_NAMES = 1000  # cell names that the error for a table without a match is about


@dataclass(frozen=True)
class JoinedObs:
    """Readers with the columns of all tables, and what to tell about them.

    Attributes
    ----------
    not_copied
        Rows without a cell, one line per table.
    notes
        Cells without a row, one line per table.
    digest
        Changes whenever the content of a table changes; empty without tables.
    n_tables
        Largest number of tables that were joined onto one file.
    """

    readers: list[ScreenReader]
    not_copied: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    digest: str = ""
    n_tables: int = 0


@dataclass(frozen=True, eq=False)
class JoinedReader:
    """A source file with the columns of a table; everything else is as in the file.

    Attributes
    ----------
    joined
        The columns, indexed by barcode.
    rows
        (n_obs,) row of the table of each cell, -1 for none.
    """

    reader: ScreenReader
    joined: pd.DataFrame
    rows: NDArray[np.int32]

    @property
    def obs_columns(self) -> tuple[str, ...]:
        """Columns of the file, and then of the table."""
        return (*self.reader.obs_columns, *map(str, self.joined.columns))

    def obs_column(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        """(stop - start,) values of a column of the file or of the table."""
        if name in self.joined.columns:
            return take_rows(self.joined[name], self.rows[start:stop])
        return self.reader.obs_column(name, start, stop)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "reader":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.reader, name)


def join_obs(readers: Sequence[ScreenReader], names: Sequence[str], obs: Any) -> JoinedObs:
    """Join tables onto the cells of source files by name.

    Parameters
    ----------
    names
        (n_readers,) name of each file, for a mapping.
    obs
        One table or several, as `read_obs_tables` takes them, for the cells of all files; or a mapping from the name
        of a file to the tables for its cells alone. None for no tables.

    Raises
    ------
    ConfigError
        If a column exists already, or a name in a mapping is not that of a file.
    SourceFormatError
        If a table is not valid, matches no cell, or has a barcode that is the name of several cells.
    """
    found = JoinedObs(list(readers))
    if obs is None:
        return found
    given: list[tuple[str | None, Any]] = [(None, obs)]
    if isinstance(obs, Mapping):
        given = [(str(name), tables) for name, tables in obs.items()]
        if unknown := [str(name) for name in obs if str(name) not in names]:
            raise ConfigError(
                f"obs: got tables for {unknown[0]!r}, expected the name of a source. {near_matches(unknown[0], names)}"
            )
    digest, n_joined = hashlib.sha256(), [0] * len(readers)
    for name, tables in given:
        numbers = [k for k, one in enumerate(names) if name in (None, one)]
        for table in read_obs_tables("obs" if name is None else f"obs[{name!r}]", tables):
            digest.update(pd.util.hash_pandas_object(table.frame.astype(object)).to_numpy().tobytes())
            digest.update(repr((numbers, [*table.frame.columns])).encode())
            _join(found, numbers, table)
            for k in numbers:
                n_joined[k] += 1
    n_tables = max(n_joined, default=0)
    return JoinedObs(found.readers, found.not_copied, found.notes, digest.hexdigest(), n_tables)


def _join(found: JoinedObs, numbers: list[int], table: ObsTable) -> None:
    """Replace some readers by ones with the columns of a table."""
    for reader in (found.readers[k] for k in numbers):
        if clash := [name for name in table.frame.columns if name in reader.obs_columns]:
            raise ConfigError(
                f"obs: got the column {clash[0]!r} in {table.name}, but {reader.path.name} already has an obs column "
                "of that name. Rename or drop one of them; columns are never replaced. Nothing was written."
            )
    rows = [_rows(found.readers[k], table) for k in numbers]
    n_cells = np.sum([np.bincount(part[part >= 0], minlength=len(table.frame)) for part in rows], axis=0)
    where = ", ".join(found.readers[k].path.name for k in numbers)
    if not np.any(n_cells):
        heads = [name for k in numbers for name in found.readers[k].obs_names(0, _SHOWN_NAMES)]
        raise no_match(table, heads, where)
    if np.any(n_cells > 1):
        barcode = table.frame.index[int(np.argmax(n_cells > 1))]
        cure = "Pass a dict from the name of each source to its table." if len(numbers) > 1 else "Make names unique."
        raise SourceFormatError(
            f"{table.name}: the barcode {barcode!r} is the name of several cells of {where}, so the table does not say "
            f"which of them it means. {cure} No store was made."
        )
    n_without_row = sum(int((part < 0).sum()) for part in rows)
    frame = nullable(table.frame) if n_without_row else table.frame
    for k, part in zip(numbers, rows, strict=True):
        found.readers[k] = cast("ScreenReader", JoinedReader(found.readers[k], frame, part))
    if n_without_row:
        n_all = sum(map(len, rows))
        found.notes.append(
            f"{table.name}: {n_without_row:,} of {n_all:,} cells have no row, and missing values in its columns"
        )
    if n_without_cell := int((n_cells == 0).sum()):
        found.not_copied.append(
            f"{table.name}: {n_without_cell:,} of {len(table.frame):,} rows were not copied: no cell has their barcode"
        )


def _rows(reader: ScreenReader, table: ObsTable) -> NDArray[np.int32]:
    steps = range(0, reader.n_obs, READ_STEP)
    parts = [rows_of_cells(table, reader.obs_names(start, min(reader.n_obs, start + READ_STEP))) for start in steps]
    return np.concatenate([*parts, np.empty(0, np.int32)])
