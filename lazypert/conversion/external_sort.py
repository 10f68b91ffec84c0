"""External sort of a matrix: map tasks sort source blocks into spills, reduce tasks gather spills into shards.

Each map task reads one source block, sorts its rows by destination, and writes them to its own
spill. Each reduce task owns one shard of the result and reads its rows from every spill, where they
are contiguous. The content of a shard depends on the data alone, so every block size, number of
workers and scheduler gives the same bytes.

Every task saves a checkpoint when it is done, and starts by looking for one: the work of an
interrupted run is verified and then reused.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lazypert.conversion.cell_stats import CellStats, CellStatsPlan
from lazypert.conversion.checkpoints import load_checkpoint, save_checkpoint
from lazypert.conversion.spill import PackedRows, Spill
from lazypert.sparse.csr import CSRBlock, canonical
from lazypert.sparse.value_stats import ValueStats, value_stats
from lazypert.store.manifest import Entry, match_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert.conversion.array_files import CellNumbers
    from lazypert.conversion.array_writer import Template
    from lazypert.converter import BlockSpec, ScreenReader

_INDPTR, _SPILL_LIST = "indptr.bin", "spills.json"

ROWS_AT_ONCE = 1_048_576
"""Rows that a reduce task puts in order at once: many cells may have few values."""


@dataclass(frozen=True, slots=True)
class BlockSorter:
    """The inputs that all map tasks of one file and matrix share.

    Attributes
    ----------
    reader
        The source file.
    destination
        (n_obs,) destination row of every source row.
    first_row
        Number of the file's first row among the rows of all source files.
    new_col
        Column of the result for each column of the file, -1 for dropped ones; None if all are kept as is.
    n_cols
        Columns of the result.
    """

    reader: ScreenReader
    destination: CellNumbers
    first_row: int
    new_col: NDArray[np.int32] | None
    n_cols: int

    def sort_block(self, spec: BlockSpec, path: Path) -> Spill:
        """Run one map task: read a source block, check it, and spill its sorted rows to `path`."""
        if (finished := Spill.from_checkpoint(path)) is not None:
            return finished
        block = self.reader.read_block(spec)
        csr, start = block.csr, self.first_row + block.first_row
        n_destinations = len(self.destination)
        destinations = self.destination.read(start, start + csr.shape[0]).astype("i8", copy=False)
        total = float(csr.data.sum(dtype="f8"))
        rows = _rows_by_destination(csr, destinations)
        packed = PackedRows.pack(csr, rows) if self.new_col is None else None
        if packed is not None:
            stats = ValueStats(maximum=float(packed.maximum))
            return Spill.write(path, destinations[rows], packed, n_destinations, stats, total)
        csr = canonical(csr) if self.new_col is None else csr.select_cols(self.new_col, self.n_cols)
        rows = _rows_by_destination(csr, destinations)
        csr, stats = _narrow(csr.take_rows(rows), self.n_cols)
        return Spill.write(path, destinations[rows], csr, n_destinations, stats, float(csr.data.sum(dtype="f8")))


def _rows_by_destination(csr: CSRBlock, destinations: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows that hold values, in the order of their destinations."""
    nonempty = np.flatnonzero(np.diff(csr.indptr) > 0)
    return nonempty[np.argsort(destinations[nonempty], kind="stable")]


def _narrow(csr: CSRBlock, n_cols: int) -> tuple[CSRBlock, ValueStats]:
    """Convert indices and values to the smallest dtypes that hold them exactly."""
    stats = value_stats(csr.data)
    indices = csr.indices.astype("u2" if n_cols <= 2**16 else "i4", copy=False)
    return CSRBlock(csr.indptr, indices, csr.data.astype(stats.dtype(), copy=False), n_cols), stats


def save_reduce_inputs(work: Path, spills: Sequence[Spill], indptr: Iterable[NDArray[np.int64]]) -> None:
    """Save what every reduce task of a matrix reads.

    Parameters
    ----------
    work
        Folder of the matrix's tasks.
    spills
        All spills, in the order of the source blocks.
    indptr
        The (n_obs + 1,) row offsets of the result, in several parts.
    """
    with (work / _INDPTR).open("wb") as file:
        for part in indptr:
            file.write(np.ascontiguousarray(part, np.int64).data)
    save_checkpoint(work / _SPILL_LIST, {"spills": [asdict(spill) for spill in spills]})


@lru_cache(maxsize=2)
def _load_spills(path: Path, mtime_ns: int) -> list[Spill]:  # noqa: ARG001 - the time separates lists at one path
    record = load_checkpoint(path)
    assert record is not None, path
    return [Spill.from_record(spill) for spill in record["spills"]]


@dataclass(frozen=True, slots=True)
class ReducedShard:
    """The files that one reduce task wrote.

    Attributes
    ----------
    entries
        The shards of ``data`` and ``indices``; keys are relative to the store.
    cell_stats
        The file of the rows' cell statistics, if any; its key is relative to the tasks' folder.
    """

    entries: list[Entry]
    cell_stats: list[Entry]


@dataclass(frozen=True, slots=True)
class ShardWriter:
    """The inputs that all reduce tasks of one matrix share.

    Attributes
    ----------
    data, indices
        Arrays to write the shards to.
    n_cols
        Columns of the matrix.
    work
        Folder of the tasks: their checkpoints, and what `save_reduce_inputs` saved.
    cell_stats_plan, subgroup_of_row
        Which cell statistics to collect, and each row's subgroup; None for none.
    """

    data: Template
    indices: Template
    n_cols: int
    work: Path
    cell_stats_plan: CellStatsPlan | None = None
    subgroup_of_row: CellNumbers | None = None

    def write_shard(self, shard: int) -> ReducedShard:
        """Run one reduce task: gather a shard's rows from all spills, and write ``data`` and ``indices``."""
        checkpoint = self.work / f"shard-{shard:06d}.json"
        if (finished := self._load_finished(checkpoint)) is not None:
            return finished
        begin, end = self.data.grid.span(shard)
        data, indices = (np.empty(end - begin, template.dtype) for template in (self.data, self.indices))
        indptr = np.memmap(self.work / _INDPTR, np.int64, "r")
        first_row = int(np.searchsorted(indptr, begin, side="right")) - 1
        stop_row = int(np.searchsorted(indptr, end, side="left"))
        cell_stats: list[Entry] = []
        for part, row in enumerate(range(first_row, stop_row, ROWS_AT_ONCE)):
            bounds = np.array(indptr[row : min(stop_row, row + ROWS_AT_ONCE) + 1])
            rows, first, last = self._gather(row, bounds), int(bounds[0]), int(bounds[-1])
            in_rows = slice(max(begin, first) - first, min(end, last) - first)
            in_shard = slice(max(begin, first) - begin, min(end, last) - begin)
            data[in_shard], indices[in_shard] = rows.data[in_rows], rows.indices[in_rows]
            if self.cell_stats_plan is not None:
                # A row that spans two shards is counted in the shard in which it begins.
                skip = int(first < begin)
                begun = CSRBlock(rows.indptr[skip:], rows.indices, rows.data, self.n_cols)
                cell_stats += self._save_cell_stats(f"rows-{shard:06d}-{part:06d}.npz", row + skip, begun)
        entries = [self.data.write_shard(shard, data), self.indices.write_shard(shard, indices)]
        reduced = ReducedShard(entries, cell_stats)
        save_checkpoint(checkpoint, asdict(reduced))
        return reduced

    def _load_finished(self, checkpoint: Path) -> ReducedShard | None:
        record = load_checkpoint(checkpoint)
        if record is None:
            return None
        try:
            entries, cell_stats = ([Entry(**entry) for entry in record[key]] for key in ("entries", "cell_stats"))
        except (KeyError, TypeError):  # not written by this version
            return None
        if self.data.files.holds(entries) and match_files(self.work, cell_stats):
            return ReducedShard(entries, cell_stats)
        return None

    def _gather(self, first_row: int, indptr: NDArray[np.int64]) -> CSRBlock:
        """Gather complete rows, including those that continue in another shard."""
        offsets = indptr - indptr[0]
        n_filled = np.zeros(len(indptr) - 1, dtype=np.int64)
        out_indices = np.empty(int(offsets[-1]), dtype=self.indices.dtype)
        out_data = np.empty(int(offsets[-1]), dtype=self.data.dtype)
        spill_list = self.work / _SPILL_LIST
        for spill in _load_spills(spill_list, spill_list.stat().st_mtime_ns):
            rows = spill.read(first_row, first_row + len(n_filled))
            rows.scatter(first_row, offsets, n_filled, out_indices, out_data)
        # Blocks of a column-wise matrix come in column order, and so do a row's values, unless columns were renumbered.
        return canonical(CSRBlock(offsets, out_indices, out_data, self.n_cols))

    def _save_cell_stats(self, name: str, first_row: int, rows: CSRBlock) -> list[Entry]:
        assert self.cell_stats_plan is not None
        assert self.subgroup_of_row is not None
        if not rows.shape[0]:
            return []
        subgroups = self.subgroup_of_row.read(first_row, first_row + rows.shape[0])
        stats = CellStats.of(self.cell_stats_plan, subgroups, first_row, rows)
        return [Entry(name, *stats.save(self.work / name))]
