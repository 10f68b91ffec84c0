"""Findings about cells that occur more than once: under the same name, or with the same content."""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lazypert.splits.findings import N_EXAMPLES, Finding, Kind, Level
from lazypert.splits.names import SPLITS
from lazypert.splits.repeats import NOTHING, Repeats, repeated_content, repeated_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows
    from lazypert.splits.repeats import ReadNames

_CELLS_AT_ONCE = 1_048_576

_EXPLANATIONS: dict[tuple[Kind, Level], str] = {
    ("same_row", "error"): "One row of the store is in both splits, so the same cell trains and tests; remove it from "
    "one of them.",
    ("same_row", "note"): "One row of the store is in this split more than once and weighs more than others; select "
    "cells without repeats.",
    ("same_name", "error"): "Cells of one dataset share a name, and mostly their labels too, so the same cell is "
    "probably in both splits; remove the copies from the file.",
    ("same_name", "warning"): "Cells of one dataset share a name, but mostly not their labels, so a barcode was used "
    "again, or a copy has other labels; make names unique, or pass content=True to compare counts.",
    ("same_name", "note"): "Cells of one dataset share a name; copies weigh more than other cells: if they are copies, "
    "remove them from the file.",
    ("same_name_across_datasets", "error"): "Cells of several datasets share a name, and mostly their labels too, so "
    "the same screen is probably listed twice; list it once.",
    ("same_name_across_datasets", "warning"): "Cells of several datasets share a name, but mostly not their labels, so "
    "a barcode was used again, or a copy has other labels; pass content=True to compare counts.",
    ("same_name_across_datasets", "note"): "Cells of several datasets share a name; copies weigh more than other "
    "cells: if they are copies, list each screen once.",
    ("same_content", "error"): "Cells with different names have the same counts, so the same cell is in both splits; "
    "remove the copies.",
    ("same_content", "note"): "Cells with different names have the same counts; copies weigh more than other cells: "
    "remove them.",
}


class _Relation(NamedTuple):
    """Cells are related to those of the same `outer` set that are not of the same `inner` set.

    Attributes
    ----------
    kind
        What it means to be related.
    outer, inner
        (n,) numbers of each cell's sets; each inner set is part of one outer set.
    """

    kind: Kind
    outer: NDArray[np.int64]
    inner: NDArray[np.int64]

    def n_related(self, among: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(n,) number of cells, of those that `among` is True for, that each cell is related to."""
        in_outer, in_inner = (np.bincount(sets[among], minlength=len(sets)) for sets in (self.outer, self.inner))
        return in_outer[self.outer] - in_inner[self.inner]

    def within(self, values: NDArray[np.int64]) -> _Relation:
        """Relate only cells that also share a value."""
        return _Relation(self.kind, _number(self.outer, values), _number(self.inner, values))


class _Count(NamedTuple):
    """What a `Finding` says of the same names."""

    n_cells: int
    n_labels: int
    examples: tuple[str, ...]


def find_same_cells(
    groups: Groups, parts: Sequence[Rows], read_names: ReadNames | None, content: NDArray[np.uint64] | None
) -> list[Finding]:
    """Find cells that occur more than once in a split or in two splits.

    Cells that share a name are taken to be the same if that is plausible for their dataset: if at least half of
    those that share their name with another have the same cell type and perturbation as the other, or the same
    content. Otherwise their barcodes were probably used again.

    Parameters
    ----------
    groups
        The screen's groups.
    parts
        Rows of each split, in the order of `SPLITS`.
    read_names
        Reads names: those that share a hash, and those of examples. None gives rows as examples.
    content
        (n_rows,) content hashes by store row; None compares names only.
    """
    names = repeated_names(groups, parts, read_names)
    is_plausible = _judge_datasets(groups, names, content)
    tally = _Tally(groups, read_names)
    for cells in _slices(names):
        dataset = groups.codes["dataset"][cells.run] + 1
        for relation in _relations_by_name(groups, cells):
            tally.add(relation, cells, is_plausible[relation.kind][dataset])
    for cells in _slices(repeated_content(groups, parts, content)) if content is not None else ():
        name = _number(cells.number, _names_of(cells, names))
        tally.add(_Relation("same_content", _number(cells.number), name), cells, np.ones(len(name), bool))
    return tally.findings()


def _slices(cells: Repeats) -> Iterator[Repeats]:
    """Complete sets, about a million cells at a time, which bounds the memory of the arrays made from them."""
    begin, n = 0, len(cells.number)
    while begin < n:
        last = cells.number[min(n, begin + _CELLS_AT_ONCE) - 1]
        end = int(np.searchsorted(cells.number, last, side="right"))
        yield Repeats(*(column[begin:end] for column in cells))
        begin = end


def _relations_by_name(groups: Groups, cells: Repeats) -> list[_Relation]:
    name = _number(cells.number)
    in_dataset = _number(name, groups.codes["dataset"][cells.run])
    in_row = _number(in_dataset, cells.row)
    return [
        _Relation("same_row", in_row, np.arange(len(name))),
        _Relation("same_name", in_dataset, in_row),
        _Relation("same_name_across_datasets", name, in_dataset),
    ]


def _judge_datasets(
    groups: Groups, names: Repeats, content: NDArray[np.uint64] | None
) -> dict[Kind, NDArray[np.bool_]]:
    """For each kind, (n_datasets + 1,) whether cells of a dataset that share a name are probably the same cell.

    The first element is for cells whose dataset label is missing.
    """
    n = len(groups.labels["dataset"]) + 1
    related: dict[Kind, NDArray[np.int64]] = {}
    agreeing: dict[Kind, NDArray[np.int64]] = {}
    for cells in _slices(names):
        dataset, everywhere = groups.codes["dataset"][cells.run] + 1, np.ones(len(cells.row), bool)
        for relation in _relations_by_name(groups, cells):
            is_related = relation.n_related(everywhere) > 0
            agrees = relation.within(groups.ids[cells.run]).n_related(everywhere) > 0
            if content is not None:
                known = content[cells.row]
                agrees |= (known != NOTHING) & (relation.within(_number(known)).n_related(everywhere) > 0)
            for counts, chosen in ((related, is_related), (agreeing, is_related & agrees)):
                counts[relation.kind] = counts.get(relation.kind, 0) + np.bincount(dataset[chosen], minlength=n)
    judged = {kind: 2 * agreeing[kind] >= counts for kind, counts in related.items()}
    return judged | {"same_row": np.ones(n, bool)}


def _names_of(content: Repeats, names: Repeats) -> NDArray[np.int64]:
    """(n,) number of the name of each cell with repeated content; a number of its own if its name is not repeated."""
    if not len(names.row):
        return np.unique(content.row, return_inverse=True)[1]
    by_row = np.argsort(names.row, kind="stable")
    position = np.minimum(np.searchsorted(names.row[by_row], content.row), len(by_row) - 1)
    found = by_row[position]
    return np.where(names.row[found] == content.row, names.number[found], len(names.row) + content.row)


class _Tally:
    """Numbers of cells by kind, level and splits, and the first examples of each."""

    def __init__(self, groups: Groups, read_names: ReadNames | None) -> None:
        self._groups, self._read_names = groups, read_names
        self._found: dict[tuple[Kind, Level, tuple[str, ...]], _Count] = {}

    def add(self, relation: _Relation, cells: Repeats, is_same: NDArray[np.bool_]) -> None:
        """Count the cells that are related to a cell of another split, or of the same split.

        Parameters
        ----------
        is_same
            (n,) whether the related cells are probably the same cell.
        """
        masks = [cells.split == number for number in range(len(SPLITS))]
        is_related = [relation.n_related(mask) > 0 for mask in masks]
        for a, b in combinations_with_replacement(range(len(SPLITS)), 2):
            chosen = (masks[a] & is_related[b]) | (masks[b] & is_related[a])
            if a == b:
                self._count("note", (SPLITS[a],), relation, cells, chosen)
            else:
                self._count("error", (SPLITS[a], SPLITS[b]), relation, cells, chosen & is_same)
                self._count("warning", (SPLITS[a], SPLITS[b]), relation, cells, chosen & ~is_same)

    def findings(self) -> list[Finding]:
        """Return what was found."""
        return [
            Finding(level, kind, splits, count.n_cells, count.n_labels, count.examples, _EXPLANATIONS[kind, level])
            for (kind, level, splits), count in self._found.items()
        ]

    def _count(
        self, level: Level, splits: tuple[str, ...], relation: _Relation, cells: Repeats, is_chosen: NDArray[np.bool_]
    ) -> None:
        chosen = np.flatnonzero(is_chosen)
        if not len(chosen):
            return
        numbers = np.unique(cells.number[chosen])
        before = self._found.get((relation.kind, level, splits), _Count(0, 0, ()))
        examples = list(before.examples)
        for number in numbers[: N_EXAMPLES - len(examples)]:
            copies = chosen[cells.number[chosen] == number]
            first = copies[np.argmin(cells.split[copies])]
            others = copies[relation.inner[copies] != relation.inner[first]]
            second = others[np.argmax(cells.split[others])] if len(others) else first
            examples.append(_example(relation.kind, cells, [int(first), int(second)], self._groups, self._read_names))
        self._found[relation.kind, level, splits] = _Count(
            before.n_cells + len(chosen), before.n_labels + len(numbers), tuple(examples)
        )


def _example(kind: Kind, cells: Repeats, pair: list[int], groups: Groups, read_names: ReadNames | None) -> str:
    """Describe two copies of a cell: by name, or by row if names cannot be read."""
    rows = cells.row[pair]
    names = [f"row {row}" for row in rows] if read_names is None else [str(name) for name in read_names(rows)]
    text = names[0] if names[0] == names[1] else f"{names[0]} = {names[1]}"
    if kind == "same_name_across_datasets":
        labels = np.append(groups.labels["dataset"], "no dataset")
        text += " in " + " and ".join(np.sort(labels[groups.codes["dataset"][cells.run[pair]]]))
    return text


def _number(*columns: NDArray[Any]) -> NDArray[np.int64]:
    """(n,) one number below n for each combination of values."""
    out = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        codes = np.unique(column, return_inverse=True)[1]
        out = np.unique(out * (int(codes.max(initial=0)) + 1) + codes, return_inverse=True)[1]
    return out
