"""Splits as tables of cell names, and tables as splits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from lazypert._internal.validation import require_choice
from lazypert.errors import ConfigError, near_matches, no_such_column
from lazypert.screen.cell_order import name_hashes
from lazypert.splits.cell_labels import read_column
from lazypert.splits.digest import has_several_datasets, iterate_cells
from lazypert.splits.names import SPLITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows
    from lazypert.splits.cell_source import CellSource

CELL, DATASET, SPLIT = "cell", "dataset", "split"
"""Columns of a table."""

_CELLS_AT_ONCE = 262_144
_NONE = -1


def to_frames(groups: Groups, parts: Sequence[Rows]) -> Iterator[pd.DataFrame]:
    """Yield a split as tables with columns ``cell``, ``dataset`` (where there are several) and ``split``."""
    names, datasets, has_datasets = (
        np.array(SPLITS, dtype=object),
        groups.labels["dataset"],
        has_several_datasets(groups),
    )
    for cells in iterate_cells(groups, parts):
        for begin in range(0, len(cells.row), _CELLS_AT_ONCE):
            chosen = slice(begin, begin + _CELLS_AT_ONCE)
            frame = pd.DataFrame({CELL: groups.cells.names(cells.row[chosen])})
            if has_datasets:
                code = groups.codes["dataset"][cells.run[chosen]]
                frame[DATASET] = np.append(datasets.astype(object), "")[code]
            frame[SPLIT] = names[cells.split[chosen]]
            yield frame


def refuse_ambiguous(frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Pass frames of `to_frames` on, and raise at the end if a name of one dataset is in several splits.

    Raises
    ------
    ConfigError
        If so, as nobody could tell from the table which cell is in which split.
    """
    hashes, splits = [np.empty(0, np.uint64)], [np.empty(0, np.int8)]
    for frame in frames:
        texts = frame[CELL] if DATASET not in frame else frame[DATASET].str.cat(frame[CELL].astype(str), sep="\0")
        hashes.append(name_hashes(texts))
        splits.append(pd.Categorical(frame[SPLIT], categories=SPLITS).codes)
        yield frame
    hash_of, split_of = np.concatenate(hashes), np.concatenate(splits)
    order = np.lexsort((split_of, hash_of))
    differ = (np.diff(hash_of[order]) == 0) & (np.diff(split_of[order]) != 0)
    if differ.any():
        raise ConfigError(
            f"path: {int(differ.sum()):,} names are those of several cells of one dataset, in different splits, so a "
            "table of names does not say which cell is meant. Save the rule as .json, or make the cell names unique."
        )


@dataclass(frozen=True, eq=False)
class SplitTable:
    """The rows of a table, each of which puts one cell into a split.

    Attributes
    ----------
    cell
        (n,) names.
    dataset
        (n,) dataset labels, or None.
    split
        (n,) number of the split, -1 for none.
    """

    cell: NDArray[Any]
    dataset: NDArray[Any] | None
    split: NDArray[np.int8]

    @classmethod
    def of(
        cls,
        frame: pd.DataFrame,
        *,
        cell: str | None,
        split: str,
        dataset: str | None,
        names: Mapping[Any, str | None] | None,
    ) -> SplitTable:
        """Make a table of a frame.

        Raises
        ------
        ColumnNotFoundError
            If a column does not exist.
        ConfigError
            If a split is unknown, or a cell is in two splits.
        """
        columns = [str(column) for column in frame.columns]
        if not columns:
            raise ConfigError("table: got one without columns, expected cell names in one and splits in another.")
        frame = frame.set_axis(columns, axis=1)
        cell = columns[0] if cell is None else cell
        for option, column in (("cell", cell), ("split", split), ("dataset", dataset)):
            if column is not None and column not in columns:
                raise no_such_column(option, column, "a column of the table", columns)
        if cell == split:
            raise ConfigError(
                f"cell: got {cell!r}, which is the column of the splits; expected a column of cell names. Name it."
            )
        codes, labels = pd.factorize(frame[split], use_na_sentinel=True)
        numbers = np.append(split_numbers([str(label) for label in labels], names, split), np.int8(_NONE))
        table = pd.DataFrame({CELL: frame[cell].astype(object), SPLIT: numbers[codes]})
        is_missing = table[CELL].isna() | (table[CELL] == "")
        if is_missing.any():
            raise ConfigError(f"cell: got {int(is_missing.sum()):,} rows without a cell name in column {cell!r}.")
        table[CELL] = table[CELL].astype(str)
        keys = [CELL]
        if dataset is not None:
            table[DATASET] = frame[dataset].astype(object).fillna("").astype(str)
            keys.append(DATASET)
        table = table.drop_duplicates()
        repeated = table[table.duplicated(keys, keep=False)]
        if len(repeated):
            first = repeated[repeated[CELL] == repeated[CELL].iloc[0]]
            found = [SPLITS[number] if number >= 0 else "no split" for number in first[SPLIT]]
            raise ConfigError(
                f"table: got {repeated[CELL].nunique():,} cells that are in several splits, such as "
                f"{first[CELL].iloc[0]!r} in {' and '.join(found)}; expected each cell in one split. Remove the other "
                "rows"
                + (
                    ", or name the column of datasets if cells of several datasets share names."
                    if dataset is None
                    else "."
                )
            )
        datasets = None if dataset is None else table[DATASET].to_numpy(dtype=object)
        return cls(table[CELL].to_numpy(dtype=object), datasets, table[SPLIT].to_numpy(dtype=np.int8))


def split_numbers(labels: Sequence[str], names: Mapping[Any, str | None] | None, column: str) -> NDArray[np.int8]:
    """(n_labels,) number of the split that each label stands for, -1 for none.

    Parameters
    ----------
    labels
        Texts in a column of splits. An empty text stands for no split.
    names
        The split that labels stand for, None for no split; others must be names of splits.
    column
        Name of the column, for errors.

    Raises
    ------
    ConfigError
        If a label is not a split, or a name is given to a label that does not occur.
    """
    wanted = {str(label): name for label, name in (names or {}).items()}
    for label in wanted:
        if label not in labels:
            raise ConfigError(
                f"names: got {label!r}, expected a value of column {column!r}. {near_matches(label, labels)}"
            )
    numbers = np.full(len(labels), _NONE, dtype=np.int8)
    for place, label in enumerate(labels):
        name = wanted.get(label, None if label == "" else label)
        if name is None:
            continue
        name = "valid" if name == "val" else name
        if name not in SPLITS:
            raise ConfigError(
                f"{column}: got {name!r}, expected one of {', '.join(map(repr, SPLITS))}, or a value named in `names`. "
                f"Pass names={{{label!r}: 'train'}}, for example, or None in place of 'train' for no split."
            )
        numbers[place] = SPLITS.index(name)
    return numbers


def rows_of_table(source: CellSource, table: SplitTable, missing: Literal["error", "ignore"]) -> list[Rows]:
    """Rows of each split, found by the names of cells.

    Cells of the source that the table lacks, and cells without a cell type or perturbation, are in no split.

    Raises
    ------
    ConfigError
        If the source lacks cells of the table and `missing` is ``"error"``, or all of them; or if several of its cells
        have the same name and the table does not say which one is meant.
    """
    require_choice("missing", missing, ("error", "ignore"))
    groups = source.groups
    matcher = _Matcher(groups, table)
    split = np.full(groups.n_obs, _NONE, dtype=np.int8)
    rows = groups.rows(np.arange(len(groups.start)))
    run = np.repeat(np.arange(len(groups.start)), groups.sizes)
    for begin in range(0, len(rows), _CELLS_AT_ONCE):
        chosen = slice(begin, min(len(rows), begin + _CELLS_AT_ONCE))
        names = source.obs_names(rows[chosen])
        split[chosen] = matcher.match(names, groups.codes["dataset"][run[chosen]])
    absent = np.flatnonzero(matcher.dataset_of_row == _UNMATCHED)
    if len(absent) and (missing == "error" or len(absent) == len(table.cell)):
        name = table.cell[absent[0]]
        dataset = "" if table.dataset is None else f" of dataset {table.dataset[absent[0]]!r}"
        datasets = ", ".join(repr(str(label)) for label in groups.labels["dataset"][:5])
        raise ConfigError(
            f"table: got {len(absent):,} of {len(table.cell):,} cells that the screen lacks, such as "
            f"{name!r}{dataset}; expected cells of this screen, which has names such as {_example(source)!r}"
            + (f" and the datasets {datasets}. " if table.dataset is not None else ". ")
            + ("Open the whole screen, or pass missing='ignore' to leave them out." if missing == "error" else "")
        )
    split[groups.ids[run] < 0] = _NONE
    return [rows.where(split == number) for number in range(len(SPLITS))]


_UNMATCHED, _NO_DATASET = -2, -1


class _Matcher:
    """Finds the row of a table for cells of a screen."""

    def __init__(self, groups: Groups, table: SplitTable) -> None:
        self._table, self._labels = table, groups.labels["dataset"]
        self._is_by_dataset = table.dataset is not None and (
            has_several_datasets(groups) or len(set(table.dataset.tolist())) > 1
        )
        self.dataset_of_row = np.full(len(table.cell), _UNMATCHED, dtype=np.int32)
        """(n,) dataset of the cell that was found for each row of the table."""
        if self._is_by_dataset:
            assert table.dataset is not None
            names = np.append(self._labels.astype(object), "")
            self._index = [self._index_of(table.dataset == name) for name in names]
        else:
            self._index = [self._index_of(np.ones(len(table.cell), dtype=bool))]

    def _index_of(self, rows: NDArray[np.bool_]) -> tuple[pd.Index, NDArray[np.int64]]:
        numbers = np.flatnonzero(rows)
        return pd.Index(self._table.cell[numbers], dtype=object), np.append(numbers, -1)

    def match(self, names: NDArray[Any], dataset: NDArray[np.int32]) -> NDArray[np.int8]:
        """(n,) number of the split of cells with these names and dataset codes."""
        row = np.full(len(names), -1, dtype=np.int64)
        for code in np.unique(dataset) if self._is_by_dataset else [None]:
            chosen = slice(None) if code is None else dataset == code
            index, numbers = self._index[0 if code is None else code]
            row[chosen] = numbers[index.get_indexer(pd.Index(names[chosen], dtype=object))]
        found = row >= 0
        row_found, dataset_found = row[found], dataset[found]
        previous = self.dataset_of_row[row_found]
        clash = (previous != _UNMATCHED) & (previous != dataset_found)
        self.dataset_of_row[row_found] = dataset_found
        clash |= self.dataset_of_row[row_found] != dataset_found
        if clash.any():
            raise ConfigError(
                f"table: got the cell {names[found][clash][0]!r}, which the screen has in several datasets, expected a "
                "column that says which dataset is meant. Name it as dataset=..., or use one dataset."
            )
        return np.append(self._table.split, np.int8(_NONE))[row]


def _example(source: CellSource) -> str:
    groups = source.groups
    first = groups.rows(np.arange(len(groups.start)))[:1]
    return str(source.obs_names(first)[0]) if len(first) else ""


def rows_of_column(source: CellSource, column: str, names: Mapping[Any, str | None] | None) -> list[Rows]:
    """Rows of each split, from an obs column that holds the names of splits.

    Raises
    ------
    ColumnNotFoundError
        If there is no such column.
    ConfigError
        If a value is not the name of a split.
    """
    groups = source.groups
    rows = groups.rows(groups.ids >= 0)
    codes, labels = read_column(source, column, rows)
    split = np.append(split_numbers([str(label) for label in labels], names, column), np.int8(_NONE))[codes]
    return [rows.where(split == number) for number in range(len(SPLITS))]
