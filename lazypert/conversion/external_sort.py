"""Sorting a matrix that does not fit in memory: map blocks to sorted spills, reduce spills to shards.

Each map task reads one block of the source, sorts its rows by where they go, and writes them to a
file of its own. Each reduce task owns one shard of the result: from every spill it reads the one
contiguous piece that holds its rows. What a shard contains depends on the data alone, so any block
size, number of workers and kind of scheduler give the same bytes.

Every task notes what it wrote, and begins by looking for that note: work that an earlier, killed
run has done is checked and not done again.
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
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert.conversion.store_writer import Template
    from lazypert.converter import BlockSpec, ScreenReader


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
    if (done := Spill.load_checkpoint(path)) is not None:
        return done
    block = reader.read_block(spec)
    csr, start = block.csr, first_row + block.first_row
    destinations = np.load(destination, mmap_mode="r")
    target = np.asarray(destinations[start : start + csr.shape[0]], dtype="i8")
    total = float(csr.data.sum(dtype="f8"))
    rows = _by_target(csr, target)
    packed = PackedRows.of(csr, rows) if new_col is None else None
    if packed is not None:
        facts = ValueStats(maximum=float(packed.largest))
        return Spill.write(path, target[rows], packed, len(destinations), facts, total)
    csr = canonical(csr) if new_col is None else csr.select_cols(new_col, n_cols)
    rows = _by_target(csr, target)
    csr, facts = _narrow(csr.take_rows(rows), n_cols)
    return Spill.write(path, target[rows], csr, len(destinations), facts, float(csr.data.sum(dtype="f8")))


def _by_target(csr: CSRBlock, target: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows that hold values, in the order of their destinations."""
    filled = np.flatnonzero(np.diff(csr.indptr) > 0)
    return filled[np.argsort(target[filled], kind="stable")]


def _narrow(csr: CSRBlock, n_cols: int) -> tuple[CSRBlock, ValueStats]:
    """Any values, in the smallest types that hold them exactly."""
    facts = value_stats(csr.data)
    indices = csr.indices.astype("u2" if n_cols <= 2**16 else "i4", copy=False)
    return CSRBlock(csr.indptr, indices, csr.data.astype(facts.dtype(), copy=False), n_cols), facts


def note_spills(work: Path, spills: Sequence[Spill]) -> None:
    """Leave the list of all spills where reduce tasks find it."""
    save_checkpoint(work / "spills.json", {"spills": [asdict(spill) for spill in spills]})


@lru_cache(maxsize=2)
def _spills(path: Path, stamp: int) -> list[Spill]:  # noqa: ARG001 - the stamp tells lists of one path apart
    found = load_checkpoint(path)
    assert found is not None, path
    return [Spill(**(one | {"facts": ValueStats(**one["facts"])})) for one in found["spills"]]


@dataclass(frozen=True, slots=True)
class Reduced:
    """A shard that is written: its two files, and the file of notes about its rows, if there is one.

    Keys of `entries` are those of the store; `notes` lie in the folder of the tasks.
    """

    entries: list[Entry]
    notes: list[Entry]


@dataclass(frozen=True, slots=True)
class Reduction:
    """What every reduce task of one matrix needs.

    Attributes
    ----------
    data, indices
        Where the shards go.
    n_cols
        Columns of the matrix.
    work
        Folder of the tasks' notes; also holds ``indptr.npy``, the (n_obs + 1,) row offsets of the
        result, and ``spills.json``, every spill in the order of the blocks.
    asked, run_of_row
        What to note of the rows, and the ``.npy`` file of each row's run; None for nothing.
    """

    data: Template
    indices: Template
    n_cols: int
    work: Path
    asked: CellStatsPlan | None = None
    run_of_row: Path | None = None

    def write_shard(self, shard: int) -> Reduced:
        """Gather one shard's rows from all spills and write the shard of ``data`` and of ``indices``."""
        note = self.work / f"shard-{shard:06d}.json"
        if (done := self._load_checkpoint(note)) is not None:
            return done
        begin, end = self.data.grid.span(shard)
        indptr = np.load(self.work / "indptr.npy", mmap_mode="r")
        first = int(np.searchsorted(indptr, begin, side="right")) - 1
        last = int(np.searchsorted(indptr, end, side="left"))
        rows = self._gather(first, np.asarray(indptr[first : last + 1]))
        mine = slice(begin - int(indptr[first]), end - int(indptr[first]))
        entries = [
            self.data.write_shard(shard, rows.data[mine]),
            self.indices.write_shard(shard, rows.indices[mine]),
        ]
        notes: list[Entry] = []
        if self.asked is not None:
            # A row that lies in two shards is noted with the one it begins in.
            skip = int(indptr[first] < begin)
            begun = CSRBlock(rows.indptr[skip:], rows.indices, rows.data, self.n_cols)
            notes = self._note_rows(shard, first + skip, begun)
        reduced = Reduced(entries, notes)
        save_checkpoint(note, asdict(reduced))
        return reduced

    def _load_checkpoint(self, note: Path) -> Reduced | None:
        found = load_checkpoint(note)
        if found is None:
            return None
        try:
            entries, notes = ([Entry(**entry) for entry in found[kind]] for kind in ("entries", "notes"))
        except (KeyError, TypeError):  # it is no note of ours
            return None
        if match_files(self.data.root, entries) and match_files(self.work, notes):
            return Reduced(entries, notes)
        return None

    def _gather(self, first: int, indptr: NDArray[np.int64]) -> CSRBlock:
        """Whole rows from `first` on, also those that have their other part in the next shard."""
        place = indptr - indptr[0]
        filled = np.zeros(len(indptr) - 1, dtype=np.int64)
        out_indices = np.empty(int(place[-1]), dtype=self.indices.dtype)
        out_data = np.empty(int(place[-1]), dtype=self.data.dtype)
        listed = self.work / "spills.json"
        for spill in _spills(listed, listed.stat().st_mtime_ns):
            spill.read(first, first + len(filled)).place(first, place, filled, out_indices, out_data)
        # Blocks come in column order, and so do a row's pieces, unless columns were renumbered.
        return canonical(CSRBlock(place, out_indices, out_data, self.n_cols))

    def _note_rows(self, shard: int, first: int, rows: CSRBlock) -> list[Entry]:
        assert self.asked is not None
        assert self.run_of_row is not None
        if not rows.shape[0]:
            return []
        name = f"rows-{shard:06d}.npz"
        runs = np.asarray(np.load(self.run_of_row, mmap_mode="r")[first : first + rows.shape[0]])
        return [Entry(name, *CellStats.of(self.asked, runs, first, rows).save(self.work / name))]
