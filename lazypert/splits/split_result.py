"""A split of a screen as a value: the cells that train, validate and test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert.errors import ConfigError
from lazypert.screen.rows import Rows
from lazypert.splits.cell_source import as_cell_source
from lazypert.splits.dataset_column import column_of_dataset
from lazypert.splits.digest import digest_of
from lazypert.splits.names import SPLITS, Split, split_name
from lazypert.splits.report import make_report
from lazypert.splits.split_files import (
    RULE_SUFFIX,
    TABLE_SUFFIXES,
    digest_in,
    names_as_column,
    read_rule,
    read_table,
    saved_columns,
    split_path,
    suffix_of,
    write_rule,
    write_table,
)
from lazypert.splits.split_table import (
    CELL,
    DATASET,
    SplitTable,
    refuse_ambiguous,
    rows_of_column,
    rows_of_table,
    to_frames,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.splits.cell_content import HasContent
    from lazypert.splits.cell_source import CellSource
    from lazypert.splits.config import OnMissing
    from lazypert.splits.report import SplitReport
    from lazypert.splits.splitter_base import Splitter


@dataclass(frozen=True, eq=False, repr=False)
class SplitResult:
    """Three disjoint lists of store rows, sorted by group.

    Two splits are equal if the same cells, by name, are in the same splits: see `digest`.

    Attributes
    ----------
    train_indices, valid_indices, test_indices
        `Rows`, which behave like (n,) int64 arrays and are stored as intervals.
    groups
        The cells that the split belongs to. Those without a label, and those that a rule leaves out, are in no split.
    rule
        The splitter that made the split, or None.
    """

    train_indices: Rows
    valid_indices: Rows
    test_indices: Rows
    groups: Groups
    rule: Splitter[Any] | None = None

    def __getitem__(self, name: str) -> Rows:
        """Rows of ``"train"``, ``"valid"`` (or ``"val"``) or ``"test"``."""
        rows: Rows = getattr(self, f"{split_name(name)}_indices")
        return rows

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, SplitResult) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """Which cells are in which split, as 64 hexadecimal digits.

        It depends on the cells' names, and on their dataset labels if the screen has several datasets; not on the
        order of rows, on batches, or on how the split was made. Computing it reads the name hash of every cell.
        """
        return digest_of(self.groups, [self[name] for name in SPLITS])

    @property
    def n_in_no_split(self) -> int:
        """Number of cells in no split: without a label, or left out by a rule."""
        return self.groups.n_obs - sum(len(self[name]) for name in SPLITS)

    def keep(self, mask: NDArray[np.bool_]) -> SplitResult:
        """Return the splits without the rows for which the (n_obs,) mask is False."""
        return _result([self[name].keep(mask) for name in SPLITS], self.groups)

    # Files and columns

    def save(self, path: str | Path) -> None:
        """Write the split to a file, which appears only once it is complete.

        Parameters
        ----------
        path
            ``.csv``, ``.tsv`` (either with ``.gz``) or ``.parquet`` (needs pyarrow): a table of cells, with columns
            ``cell``, ``dataset`` (where there are several) and ``split``; cells in no split are left out. Or ``.json``:
            the rule that made the split, and its digest.

        Raises
        ------
        ConfigError
            If the suffix is another one; for ``.json``, if the split was not made by a splitter; for a table, if cells
            of the same name and dataset are in different splits.
        """
        path = split_path(path)
        if suffix_of(path) != RULE_SUFFIX:
            frames = to_frames(self.groups, [self[name] for name in SPLITS])
            write_table(path, refuse_ambiguous(frames), self.digest)
        elif self.rule is None:
            raise ConfigError(
                f"path: got {str(path)!r}, but this split was not made by a splitter alone, so there is no rule to "
                f"save. Save the cells: use {', '.join(TABLE_SUFFIXES)}."
            )
        else:
            write_rule(path, self.rule, self.digest)

    @classmethod
    def load(cls, path: str | Path, source: CellSource | xr.Dataset, *, missing: OnMissing = "error") -> SplitResult:
        """Read a split that `save` wrote.

        Parameters
        ----------
        path
            The file. A rule is applied to the source, and must give the digest that was saved with it.
        source
            The cells: a `PerturbationSource`, or a Dataset from `lazypert.open`. Those that a table lacks are in no
            split.
        missing
            What to do if the source lacks cells of a table: ``"error"``, or ``"ignore"`` them.

        Raises
        ------
        ConfigError
            If the file cannot be read, lists cells that the source lacks, or has another digest.
        """
        path = split_path(path)
        if suffix_of(path) == RULE_SUFFIX:
            splitter, digest = read_rule(path)
            found: SplitResult = splitter.split(source)
        else:
            frame, digest_or_none = read_table(path), digest_in(path)
            columns: Any = saved_columns(frame, path)
            found = cls.from_table(source, frame, missing=missing, **columns)
            if digest_or_none is None or missing == "ignore":
                return found
            digest = digest_or_none
        if found.digest != digest:
            raise ConfigError(
                f"path: got {str(path)!r} with the digest {digest[:16]}..., expected {found.digest[:16]}... for these "
                "cells. The screen has other cells, names or labels than the one that was split. Open that one, or "
                "split again."
            )
        return found

    @classmethod
    def from_table(
        cls,
        source: CellSource | xr.Dataset,
        table: str | Path | pd.DataFrame,
        *,
        cell: str | None = None,
        split: str = "split",
        dataset: str | None = None,
        names: Mapping[Any, str | None] | None = None,
        missing: OnMissing = "error",
    ) -> SplitResult:
        """Make a split from a table of cells, as others publish them.

        Parameters
        ----------
        source
            The cells: a `PerturbationSource`, or a Dataset from `lazypert.open`. Those that the table lacks, and those
            without a cell type or perturbation, are in no split.
        table
            A DataFrame; or a ``.csv``, ``.tsv`` (either with ``.gz``) or ``.parquet`` file. An index of texts, as
            AnnData's obs has, counts as the first column.
        cell, split, dataset
            Columns of the table. Cell names are in the first one by default. The column of datasets is needed only if
            several datasets share cell names.
        names
            The split that values stand for: ``{"training": "train", "ood": "test", "unused": None}``. An empty value
            stands for no split.
        missing
            What to do if the source lacks cells of the table: ``"error"``, or ``"ignore"`` them.

        Raises
        ------
        ConfigError
            If the source lacks cells, a cell is in several splits, a name is that of several cells, or a value is not a
            split.
        ColumnNotFoundError
            If the table lacks a column.
        """
        frame = names_as_column(table) if isinstance(table, pd.DataFrame) else read_table(split_path(table))
        rows = SplitTable.of(frame, cell=cell, split=split, dataset=dataset, names=names)
        source = as_cell_source(source)
        return _result(rows_of_table(source, rows, missing), source.groups)

    @classmethod
    def from_column(
        cls, source: CellSource | xr.Dataset, column: str, names: Mapping[Any, str | None] | None = None
    ) -> SplitResult:
        """Make a split from an obs column.

        Parameters
        ----------
        source
            The cells: a `PerturbationSource`, or a Dataset from `lazypert.open`.
        column
            An obs column with the name of each cell's split. Cells with a missing or empty value are in no split.
        names
            The split that values stand for: ``{"training": "train", "ood": "test", "unused": None}``.

        Raises
        ------
        ConfigError
            If a value is not a split.
        ColumnNotFoundError
            If there is no such column.
        """
        source = as_cell_source(source)
        return _result(rows_of_column(source, column, names), source.groups)

    def move_to(self, source: CellSource | xr.Dataset) -> SplitResult:
        """Return the same split of another opening of the same cells, which are found by name.

        Raises
        ------
        ConfigError
            If the source lacks cells, or names do not say which cells are meant.
        """
        source = as_cell_source(source)
        if source.groups is self.groups:
            return self
        frames = list(to_frames(self.groups, [self[name] for name in SPLITS]))
        if not frames:
            return _result([Rows([], [])] * len(SPLITS), source.groups)
        frame = pd.concat(frames, ignore_index=True)
        moved = self.from_table(source, frame, cell=CELL, dataset=DATASET if DATASET in frame.columns else None)
        if moved != self:
            raise ConfigError(
                f"splits: got the digest {self.digest[:16]}..., expected {moved.digest[:16]}... for the same cells of "
                "this screen. Some of them have no cell type or perturbation here, or datasets have other names."
            )
        return moved

    def as_column(self, ds: xr.Dataset) -> xr.DataArray:
        """Return the split of each cell of a Dataset, along ``cell``.

        Parameters
        ----------
        ds
            A Dataset of the split's cells from `lazypert.open`, or a selection of one.

        Returns
        -------
        (cell,) texts, empty for cells in no split: ``ds.assign_coords(split=splits.as_column(ds))``. Takes 8 bytes per
        cell.

        Raises
        ------
        ConfigError
            If the Dataset is not one of the split's cells.
        """
        return column_of_dataset(self.groups, [self[name] for name in SPLITS], ds)

    def report(
        self, source: CellSource | HasContent | None = None, *, content: bool = False, separator: str | None = None
    ) -> SplitReport:
        """Report what the splits hold and what leaks between them; see `lazypert.splits.report.make_report`."""
        return make_report(self.groups, [self[name] for name in SPLITS], source, content=content, separator=separator)

    def __repr__(self) -> str:
        counts = [f"{name} {len(self[name]):,}" for name in SPLITS]
        if self.n_in_no_split:
            counts.append(f"in no split {self.n_in_no_split:,}")
        return f"SplitResult({', '.join(counts)})"


def split_by_run(groups: Groups, names: Sequence[Split | None]) -> SplitResult:
    """Assign each run to the split named for it; None leaves the run out."""
    split_of_run = np.array([name or "" for name in names])
    return _result([groups.rows(split_of_run == name) for name in SPLITS], groups)


def _result(parts: Sequence[Rows], groups: Groups) -> SplitResult:
    train, valid, test = parts
    return SplitResult(train, valid, test, groups)
