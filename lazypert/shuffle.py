"""Sorting a matrix that does not fit in memory: map blocks to sorted spills, reduce spills to shards.

Each map task reads one block of the source, sorts its rows by where they go, and writes them to a
file of its own. Each reduce task owns one shard of the result: from every spill it reads the one
contiguous piece that holds its rows. What a shard contains depends on the data alone, so any block
size, number of workers and kind of scheduler give the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.csr import CSRBlock, canonical, kernel, value_facts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert.converter import BlockSpec, ScreenReader
    from lazypert.manifest import Entry
    from lazypert.schema import ValueFacts
    from lazypert.writer import Template


@dataclass(frozen=True, slots=True)
class Spill:
    """A file of rows sorted by destination: rows, offsets, column numbers, values, one after another."""

    path: Path
    n_rows: int
    nnz: int
    index_dtype: str
    data_dtype: str
    facts: ValueFacts
    total: float

    def rows(self) -> NDArray[np.int64]:
        """(n_rows,) destination rows, ascending; rows without values are left out."""
        return np.fromfile(self.path, dtype="i8", count=self.n_rows)

    def offsets(self, first: int, count: int) -> NDArray[np.int64]:
        """Where rows ``first`` to ``first + count`` begin among the values."""
        return np.fromfile(self.path, dtype="i8", count=count, offset=8 * (self.n_rows + first))

    def values(self, first: int, last: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Column numbers and values ``first`` to ``last``."""
        index_dtype, data_dtype = np.dtype(self.index_dtype), np.dtype(self.data_dtype)
        begin = 8 * (2 * self.n_rows + 1)
        count = last - first
        indices = np.fromfile(self.path, index_dtype, count, offset=begin + first * index_dtype.itemsize)
        begin += self.nnz * index_dtype.itemsize
        return indices, np.fromfile(self.path, data_dtype, count, offset=begin + first * data_dtype.itemsize)


def map_block(
    reader: ScreenReader,
    spec: BlockSpec,
    destination: Path,
    first_row: int,
    new_col: NDArray[np.int32] | None,
    n_cols: int,
    path: Path,
) -> Spill:
    """Read one block, check it, sort its rows by destination, and write them to `path`.

    Parameters
    ----------
    destination
        ``.npy`` file of the (n_obs,) destination of every source row.
    first_row
        Number of the reader's first row among all source rows.
    new_col
        Column each of the file's columns becomes, -1 for dropped; None when nothing changes.
    n_cols
        Columns of the result.
    """
    block = reader.read_block(spec)
    csr = canonical(block.csr) if new_col is None else block.csr.select_cols(new_col, n_cols)
    start = first_row + block.first_row
    target = np.load(destination, mmap_mode="r")[start : start + csr.shape[0]]
    filled = np.flatnonzero(np.diff(csr.indptr) > 0)
    by_target = filled[np.argsort(target[filled], kind="stable")]
    csr = csr.take_rows(by_target)
    facts = value_facts(csr.data)
    # Counts read as 4-byte floats travel as 2-byte integers, column numbers likewise.
    data = csr.data.astype(facts.dtype(), copy=False)
    indices = csr.indices.astype("u2" if n_cols <= 2**16 else "i4", copy=False)
    with path.open("wb") as file:
        for part in (np.asarray(target[by_target], dtype="i8"), csr.indptr, indices, data):
            file.write(np.ascontiguousarray(part).data)
    return Spill(
        path, len(by_target), len(data), indices.dtype.str, data.dtype.str, facts, float(csr.data.sum(dtype="f8"))
    )


def row_lengths(spills: Sequence[Spill], n_rows: int) -> NDArray[np.int64]:
    """(n_rows,) number of values of each destination row."""
    lengths = np.zeros(n_rows, dtype=np.int64)
    for spill in spills:
        lengths[spill.rows()] += np.diff(spill.offsets(0, spill.n_rows + 1))
    return lengths


def reduce_shard(
    data: Template, indices: Template, indptr_file: Path, spills: Sequence[Spill], shard: int
) -> list[Entry]:
    """Gather one shard's rows from all spills and write the shard of ``data`` and of ``indices``."""
    begin, end = data.grid.span(shard)
    indptr = np.load(indptr_file, mmap_mode="r")
    first = int(np.searchsorted(indptr, begin, side="right")) - 1
    last = int(np.searchsorted(indptr, end, side="left"))
    # Whole rows, also those that have their other part in the next shard: they may need sorting.
    place = np.asarray(indptr[first : last + 1]) - indptr[first]
    filled = np.zeros(last - first, dtype=np.int64)
    out_indices = np.empty(int(place[-1]), dtype=indices.dtype)
    out_data = np.empty(int(place[-1]), dtype=data.dtype)
    for spill in spills:
        rows = spill.rows()
        lo, hi = (int(n) for n in np.searchsorted(rows, [first, last]))
        if lo == hi:
            continue
        offsets = spill.offsets(lo, hi - lo + 1)
        found_indices, found_data = spill.values(int(offsets[0]), int(offsets[-1]))
        _place(
            rows[lo:hi] - first, offsets - offsets[0], found_indices, found_data, place, filled, out_indices, out_data
        )
    # Blocks come in column order, and so do a row's pieces, unless columns were renumbered.
    rows_of_shard = canonical(CSRBlock(place, out_indices, out_data, int(out_indices.max(initial=-1)) + 1))
    mine = slice(begin - int(indptr[first]), end - int(indptr[first]))
    return [data.write_shard(shard, rows_of_shard.data[mine]), indices.write_shard(shard, rows_of_shard.indices[mine])]


@kernel
def _place(
    rows: Any, offsets: Any, indices: Any, data: Any, place: Any, filled: Any, out_indices: Any, out_data: Any
) -> None:
    """Copy rows to their places; pieces of a row follow one another."""
    for i in range(len(rows)):
        row = rows[i]
        target = place[row] + filled[row]
        for k in range(offsets[i], offsets[i + 1]):
            out_indices[target] = indices[k]
            out_data[target] = data[k]
            target += 1
        filled[row] += offsets[i + 1] - offsets[i]
