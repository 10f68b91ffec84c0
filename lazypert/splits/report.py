"""The report on a split: what each part holds, and what is shared between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from lazypert._internal.validation import require_flag
from lazypert.errors import ConfigError
from lazypert.screen.cell_order import name_hashes
from lazypert.splits.cell_content import MIN_GENES, content_hashes
from lazypert.splits.coverage import uncovered
from lazypert.splits.digest import iterate_by_row, iterate_cells
from lazypert.splits.findings import N_EXAMPLES, Finding
from lazypert.splits.leaks import batch_codes, find_borrowed_controls, find_combinations, find_shared_labels
from lazypert.splits.names import SPLITS
from lazypert.splits.repeats import NOTHING
from lazypert.splits.same_cells import find_same_cells

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows
    from lazypert.splits.cell_content import HasContent
    from lazypert.splits.cell_source import CellSource
    from lazypert.splits.findings import Level
    from lazypert.splits.repeats import ReadNames

_IN_NO_SPLIT = "no split"
_N_SHOWN = 20  # findings in the repr
_N_CHECKED = 32  # names that are compared with the hashes of the split's own table


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SplitReport:
    """What the splits of a screen hold, and what leaks between them.

    Attributes
    ----------
    counts
        One row per split, and one for cells in ``"no split"``. Columns: ``cells``; ``groups``, ``perturbations``
        (without controls), ``cell_types``, ``batches`` and ``datasets`` that occur; ``control_cells``. Batches of
        two datasets are different, even if they share a label. Missing labels are not counted.
    leaks
        One row per finding, the most severe first; see `lazypert.splits.findings.Finding` for the columns
        ``level``, ``kind``, ``splits``, ``n_cells``, ``n_labels``, ``examples`` (a tuple of texts) and
        ``explanation``. Findings are facts. Whether a note is a leak depends on what you claim.
    """

    counts: pd.DataFrame
    leaks: pd.DataFrame

    def at_level(self, level: Level) -> pd.DataFrame:
        """Return the findings of one level: ``"error"``, ``"warning"`` or ``"note"``."""
        return self.leaks[self.leaks["level"] == level]

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary: ``counts`` by split, and ``leaks`` as a list of findings."""
        counts = {str(name): {str(k): int(n) for k, n in row.items()} for name, row in self.counts.iterrows()}
        leaks = [
            finding | {"n_cells": int(finding["n_cells"]), "n_labels": int(finding["n_labels"])}
            | {"examples": list(finding["examples"])}
            for finding in self.leaks.to_dict("records")
        ]  # fmt: skip
        return {"counts": counts, "leaks": leaks}

    def __repr__(self) -> str:
        numbers = [f"{len(self.at_level(level))} {level}s" for level in ("error", "warning", "note")]
        lines = ["SplitReport", "", self.counts.to_string(formatters=dict.fromkeys(self.counts, "{:,}".format)), ""]
        lines.append(f"{', '.join(numbers[:2])} and {numbers[2]}:" if len(self.leaks) else "No findings.")
        if len(self.leaks):
            shown = self.leaks.drop(columns="explanation")[:_N_SHOWN]
            shown["examples"] = [_shorten(", ".join(examples)) for examples in shown["examples"]]
            numeric = dict.fromkeys(("n_cells", "n_labels"), "{:,}".format)
            lines += [shown.to_string(index=False, formatters=numeric)]
            if len(self.leaks) > _N_SHOWN:
                lines.append(f"... {len(self.leaks) - _N_SHOWN} more in report.leaks")
            lines += ["", "report.leaks['explanation'] says why each may matter, and what to do."]
        return "\n".join(lines)


def make_report(
    groups: Groups,
    parts: Sequence[Rows],
    source: CellSource | HasContent | None = None,
    *,
    content: bool = False,
    separator: str | None = None,
) -> SplitReport:
    """Report what splits hold and what leaks between them.

    No matrix is read without `content`. Reads the name hash of every cell, and its batch code if the screen has
    batches; sorts the hashes part by part (see `lazypert.splits.repeats.repeated_names`). Names are read only where
    hashes are equal.

    Parameters
    ----------
    groups
        The screen's groups.
    parts
        Rows of each split, in the order of `SPLITS`.
    source
        The source that was split. Needed for `content`, and for names if `groups` cannot read them.
    content
        Also look for cells with the same counts under different names. Reads the matrix once, and keeps 9 bytes per
        cell more; see `lazypert.splits.cell_content.content_hashes`. Cells with fewer than 20 detected genes are not
        compared.
    separator
        Text between the parts of a combination's label, such as ``"+"``; needed to find held-out perturbations inside
        combinations. None if there are no combinations.

    Raises
    ------
    ConfigError
        If `content` is True and `source` has no matrix, `source` has other cells than the split, or `separator`
        occurs in no label.
    """
    _check_source(groups, parts, source)
    is_compared = require_flag("content", content)
    if is_compared and not hasattr(source, "segments"):
        raise ConfigError(
            f"content: got True with source={source!r}, expected a source that reads counts. Pass the one that was "
            "split, such as ds.pert.source()."
        )
    of_subgroup = _count_cells(groups, parts)
    of_run = np.zeros((len(parts), len(groups.start)), np.int64)
    for cells, total in zip(of_subgroup[:-1], of_run, strict=True):
        np.add.at(total, groups.batch_counts.run, cells)
    read_names = _name_reader(groups, source)
    findings: list[Finding] = []
    hashes = None
    if is_compared:
        hashes, is_poor = _hash_content(groups, parts, cast("HasContent", source))
        findings += _too_few_genes(groups, np.flatnonzero(is_poor), read_names)
    findings += find_same_cells(groups, parts, read_names, hashes)
    if separator is None and (own := groups.roles.separator) is not None:
        separator = own if any(own in label for label in groups.labels["perturbation"]) else None
    if separator is not None:
        findings += find_combinations(groups, of_run, separator)
    findings += find_borrowed_controls(groups, of_run)
    findings += find_shared_labels(groups, of_subgroup[:-1])
    return SplitReport(_counts(groups, of_subgroup), _leaks(findings))


def _check_source(groups: Groups, parts: Sequence[Rows], source: CellSource | HasContent | None) -> None:
    """Check that a source has the cells that were split.

    Raises
    ------
    ConfigError
        If it has fewer rows, or other names.
    """
    rows = np.unique(np.concatenate([part[:: max(1, len(part) // _N_CHECKED)] for part in parts]))
    if source is None or not len(rows):
        return
    last = max(int(part.stops.max(initial=0)) for part in parts) - 1
    if groups.row_order is not None:
        last = int(groups.row_order.max())
    n_rows = getattr(source, "n_rows", last + 1)
    if last >= n_rows:
        raise ConfigError(
            f"source: got one with {n_rows:,} cells, expected the source that was split, which has a row {last:,}."
        )
    # Repeated names have other hashes, so not all need to be equal.
    if not (name_hashes(source.obs_names(rows)) == groups.cells.hashes(rows)).any():
        name = str(source.obs_names(rows[:1])[0])
        raise ConfigError(
            f"source: got one with other cells (row {rows[0]:,} is {name!r}), expected the source that was split."
        )


def _name_reader(groups: Groups, source: CellSource | HasContent | None) -> ReadNames | None:
    """Return what reads names, or None if the groups were made without names."""
    if source is not None:
        return source.obs_names
    try:
        groups.cells.names(groups.rows(np.arange(len(groups.start)))[:1])
    except ConfigError:
        return None
    return groups.cells.names


def _hash_content(
    groups: Groups, parts: Sequence[Rows], source: HasContent
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """(n_rows,) content hashes, and whether a cell of some split has too few genes for one."""
    is_in_split = np.zeros(source.n_rows, bool)
    for cells in iterate_cells(groups, parts):
        is_in_split[cells.row] = True
    hashes = content_hashes(source, is_in_split)
    return hashes, is_in_split & (hashes == NOTHING)


def _count_cells(groups: Groups, parts: Sequence[Rows]) -> NDArray[np.int64]:
    """(n_splits + 1, n_subgroups) cells of each split, and of none, in each (run, batch)."""
    counts = np.zeros((len(parts) + 1, len(groups.batch_counts.run)), np.int64)
    for cells in iterate_by_row(groups, [*parts, uncovered(groups, parts)]):
        key = cells.split * counts.shape[1] + groups.subgroup_of(cells.run, cells.row)
        number, n_cells = np.unique(key, return_counts=True)
        counts.ravel()[number] += n_cells
    return counts


def _counts(groups: Groups, n_cells: NDArray[np.int64]) -> pd.DataFrame:
    """One row per split: what it holds."""
    run, is_control, batch = groups.batch_counts.run, groups.is_control, batch_codes(groups)
    table = []
    for cells in n_cells:
        present = cells > 0
        runs = np.unique(run[present])
        codes = {axis: groups.codes[axis][runs] for axis in groups.codes}
        codes["perturbation"] = codes["perturbation"][~is_control[runs]]
        table.append(
            {
                "cells": int(cells.sum()),
                "groups": _n_distinct(groups.ids[runs]),
                "perturbations": _n_distinct(codes["perturbation"]),
                "cell_types": _n_distinct(codes["cell_type"]),
                "batches": _n_distinct(batch[present]),
                "datasets": _n_distinct(codes["dataset"]),
                "control_cells": int(cells[is_control[run]].sum()),
            }
        )
    return pd.DataFrame(table, index=pd.Index([*SPLITS, _IN_NO_SPLIT], name="split"))


def _n_distinct(codes: NDArray[np.integer]) -> int:
    return len(np.unique(codes[codes >= 0]))


def _too_few_genes(groups: Groups, rows: NDArray[np.int64], read_names: ReadNames | None) -> list[Finding]:
    if not len(rows):
        return []
    explanation = (
        f"These cells have fewer than {MIN_GENES} detected genes, too few to recognise a copy by its content, so only "
        "their names were compared."
    )
    examples = rows[np.argsort(groups.cells.hashes(rows))[:N_EXAMPLES]]  # the same in any order of the store
    names = () if read_names is None else tuple(str(name) for name in read_names(examples))
    return [Finding("note", "too_few_genes", SPLITS, len(rows), len(rows), names, explanation)]


def _leaks(findings: Sequence[Finding]) -> pd.DataFrame:
    ordered = sorted(findings, key=lambda finding: finding.rank)
    table = pd.DataFrame([finding._asdict() for finding in ordered], columns=list(Finding._fields))
    table["splits"] = [", ".join(splits) for splits in table["splits"]]
    return table.astype({"n_cells": np.int64, "n_labels": np.int64})


def _shorten(text: str, width: int = 48) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
