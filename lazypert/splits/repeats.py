"""Cells of splits that may be the same cell, because they share a hash: of their name, or of their content."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from lazypert.splits.coverage import uncovered
from lazypert.splits.digest import iterate_by_row
from lazypert.splits.equal_hashes import find_equal_hashes, find_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows

_AT_ONCE = 1_048_576  # rows of the store whose names are read

NOTHING = np.uint64(0)
"""Hash of a cell that is compared with no other."""


ReadNames: TypeAlias = "Callable[[NDArray[np.integer]], NDArray[Any]]"
"""Reads (n,) cell names by store row."""


class Repeats(NamedTuple):
    """Cells of splits that share a hash with at least one other, in sets.

    Attributes
    ----------
    split, row, run
        (n,) int8 split number, int64 store row and int32 run of each cell.
    number
        (n,) int64 number of its set, from 0, in an order that depends on the shared hashes alone.
    """

    split: NDArray[np.integer]
    row: NDArray[np.integer]
    run: NDArray[np.integer]
    number: NDArray[np.integer]


def repeated_names(groups: Groups, parts: Sequence[Rows], read_names: ReadNames | None) -> Repeats:
    """Find the cells of splits whose names occur more than once.

    Reads the name hash of every cell, several times if there are more than 8 million, and sorts them part by part. If
    all of them occur twice, this takes 80 bytes per cell; if none does, a few hundred megabytes at most.

    In tables of hashes, the second and every later cell of one name in a run have other hashes, which are functions
    of the first one's. They are recognised as long as `groups` has the first cell too: it may be in no split, but a
    selection of cells must not lack it.

    Parameters
    ----------
    groups
        The screen's groups.
    parts
        Rows of each split.
    read_names
        Reads the names that share a hash, which are then compared by a second hash of another kind. With None, any
        two names among 10^8 are taken to be equal by mistake with a probability of 0.001.
    """
    found = _find(groups, parts, groups.cells.hashes, uncovered(groups, parts))
    if read_names is None or not len(found.row):
        return found
    digests = _name_digests(read_names, found.row)
    return _sort(found, digests, np.lexsort((digests, found.number)))


def repeated_content(groups: Groups, parts: Sequence[Rows], content: NDArray[np.uint64]) -> Repeats:
    """Find the cells of splits whose content hashes, (n_rows,) by store row, are equal and not `NOTHING`."""
    return _find(groups, parts, lambda rows: content[rows])


def _find(
    groups: Groups,
    parts: Sequence[Rows],
    hashes_of: Callable[[NDArray[np.int64]], NDArray[np.uint64]],
    others: Rows | None = None,
) -> Repeats:
    """Find the cells of splits whose hashes are equal.

    Parameters
    ----------
    hashes_of
        Reads hashes by store row.
    others
        Cells in no split, which are looked up to recognise the hashes of second and later cells of a name. None if
        there are no such hashes.
    """
    every = parts if others is None else [*parts, others]

    def read() -> Iterator[NDArray[np.uint64]]:
        for cells in iterate_by_row(groups, every):
            yield hashes_of(cells.row)

    equal, later, first = find_equal_hashes(read, sum(map(len, every)), have_later=others is not None)
    wanted = np.unique(np.concatenate([equal, later, first]))
    wanted = wanted[wanted != NOTHING]
    columns: list[list[NDArray[Any]]] = [[np.empty(0, dtype)] for dtype in (np.int8, np.int64, np.int32, np.uint64)]
    for cells in iterate_by_row(groups, parts) if len(wanted) else ():
        hashes = hashes_of(cells.row)
        is_wanted = find_in(wanted, hashes)[0]
        for column, values in zip(columns, (*cells, hashes), strict=True):
            column.append(values[is_wanted].astype(column[0].dtype))
    split, row, run, key = (_join(column) for column in columns)
    if groups.row_order is not None:  # as by position, which is by run and hash
        order = np.lexsort((key, run))
        split, row, run, key = split[order], row[order], run[order], key[order]
    for _ in range(64):  # a hash may have been replaced more than once, if cells were grouped by other columns
        is_later, position = find_in(later, key)
        if not is_later.any():
            break
        key[is_later] = first[position[is_later]]
    return _sort(Repeats(split, row, run, np.zeros(len(key), np.int64)), key, np.argsort(key, kind="stable"))


def _join(pieces: list[NDArray[Any]]) -> NDArray[Any]:
    """Concatenate arrays, and free them."""
    joined = np.concatenate(pieces)
    pieces.clear()
    return joined


def _sort(cells: Repeats, key: NDArray[np.uint64], order: NDArray[np.int64]) -> Repeats:
    """Divide sets by a key, drop those of one cell, and number the others in the given order of number and key."""
    changes = (np.diff(column[order]) != 0 for column in (cells.number, key))
    is_first = np.ones(len(order), bool)
    is_first[1:] = np.logical_or(*changes)
    is_last = np.append(is_first[1:], True)[: len(order)]
    is_kept = ~(is_first & is_last)
    order = order[is_kept]
    split, row, run = (column[order] for column in cells[:3])
    return Repeats(split, row, run, np.cumsum(is_first[is_kept]) - 1)


def _name_digests(read_names: ReadNames, rows: NDArray[np.integer]) -> NDArray[np.uint64]:
    """(n,) another 64-bit hash of each cell's name; names are read in the order of the store, a part at a time."""
    order = np.argsort(rows, kind="stable")
    out = np.empty(len(rows), np.uint64)
    for chosen in np.split(order, np.flatnonzero(np.diff(rows[order] // _AT_ONCE)) + 1):
        names = read_names(rows[chosen])
        digests = b"".join(blake2b(str(name).encode(), digest_size=8).digest() for name in names)
        out[chosen] = np.frombuffer(digests, dtype="<u8")
    return out
