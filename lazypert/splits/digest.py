"""The digest of a split: which cells, by name, are in which split.

For each split, two differently keyed hashes of every cell are added up modulo 2^64. Addition is commutative, so that
neither the order of cells nor the size of chunks matters, and cells are visited once without being sorted.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lazypert._internal.kernels import kernel
from lazypert._internal.randomness import GOLDEN, mix
from lazypert.screen.cell_order import name_hashes
from lazypert.screen.rows import Rows
from lazypert.splits.names import SPLITS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups

_CELLS_AT_ONCE = 1_048_576

_KEYS = np.array([0x6C617A7970657274, 0x73706C6974206B79], dtype=np.uint64)  # "lazypert", "split ky"


class SplitCells(NamedTuple):
    """Some cells of a split.

    Attributes
    ----------
    split
        (n,) number of each cell's split in `SPLITS`.
    row, run
        (n,) its store row, and its run.
    """

    split: NDArray[np.int64]
    row: NDArray[np.int64]
    run: NDArray[np.int64]


def iterate_cells(groups: Groups, parts: Sequence[Rows]) -> Iterator[SplitCells]:
    """Iterate over the cells of all splits in the order of their positions, about a million at a time.

    Parameters
    ----------
    groups
        The screen's groups.
    parts
        Rows of each split, in the order of `SPLITS`.
    """
    starts = np.concatenate([rows.starts for rows in parts])
    order = np.argsort(starts, kind="stable")
    starts, stops = starts[order], np.concatenate([rows.stops for rows in parts])[order]
    split = np.repeat(np.arange(len(parts)), [len(rows.starts) for rows in parts])[order]
    together, ends = Rows(starts, stops, groups.row_order), np.cumsum(stops - starts)
    for begin in range(0, len(together), _CELLS_AT_ONCE):
        index = np.arange(begin, min(len(together), begin + _CELLS_AT_ONCE))
        positions = together.positions(index)
        number = split[np.searchsorted(ends, index, side="right")]
        yield SplitCells(number, together.to_rows(positions), groups.run_of(positions))


def iterate_by_row(groups: Groups, parts: Sequence[Rows]) -> Iterator[SplitCells]:
    """Iterate over the cells of all splits as `iterate_cells` does, in an order in which columns are read once.

    That is the order of rows, unless a row occurs several times. Takes a byte per row where rows are not positions.
    """
    if groups.row_order is None:
        yield from iterate_cells(groups, parts)
        return
    split = np.full(int(groups.row_order.max(initial=-1)) + 1, -1, dtype=np.int8)
    for cells in iterate_cells(groups, parts):
        split[cells.row] = cells.split
    if int((split >= 0).sum()) < sum(map(len, parts)):
        yield from iterate_cells(groups, parts)
        return
    for begin in range(0, len(split), _CELLS_AT_ONCE):
        rows = begin + np.flatnonzero(split[begin : begin + _CELLS_AT_ONCE] >= 0)
        yield SplitCells(split[rows].astype(np.int64), rows, groups.run_of_rows(rows))


def has_several_datasets(groups: Groups) -> bool:
    """Whether cells are identified by their dataset as well as by their name."""
    codes = groups.codes["dataset"]
    return len(codes) > 0 and bool((codes != codes[0]).any())


def digest_of(groups: Groups, parts: Sequence[Rows]) -> str:
    """Return the digest of a split, 64 hexadecimal digits.

    Parameters
    ----------
    groups
        The screen's groups.
    parts
        Rows of each split, in the order of `SPLITS`.
    """
    n_datasets = len(groups.labels["dataset"])
    of_dataset = np.zeros(n_datasets + 1, dtype=np.uint64)  # the last one is for a missing label
    if has_several_datasets(groups):
        of_dataset[:n_datasets] = name_hashes(groups.labels["dataset"])
    sums = np.zeros((len(SPLITS), len(_KEYS)), dtype=np.uint64)
    for cells in iterate_by_row(groups, parts):
        hashes = groups.cells.hashes(cells.row)
        _add_hashes(hashes, of_dataset[groups.codes["dataset"][cells.run]], cells.split, _KEYS, sums)
    lines = [
        f"{name} {len(rows)} {' '.join(f'{int(total):016x}' for total in totals)}\n"
        for name, rows, totals in zip(SPLITS, parts, sums, strict=True)
    ]
    return sha256("".join(["lazypert split 1\n", *lines]).encode()).hexdigest()


@kernel
def _add_hashes(hashes: Any, of_dataset: Any, split: Any, keys: Any, sums: Any) -> None:
    for i in range(len(hashes)):
        cell = mix(hashes[i] * GOLDEN + of_dataset[i])
        for k in range(len(keys)):
            sums[split[i], k] += mix(cell * GOLDEN + keys[k])
