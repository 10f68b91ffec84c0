"""Writing obs columns and embeddings in the order of the store: an external sort of each.

Each map task reads the values of one piece of the files, encodes them as the store does, and divides them by shard
of the result; each reduce task puts together one shard. Every value is read once.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.partition import partition
from lazypert._internal.tasks import run
from lazypert._internal.texts import Texts, bounds_of
from lazypert.conversion.array_files import ArrayFile
from lazypert.conversion.checkpoints import load_checkpoint, save_checkpoint
from lazypert.conversion.dataframe_writer import TEXT, create_column, encode_column
from lazypert.store.format import Grid
from lazypert.store.manifest import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert.conversion.array_files import CellNumbers
    from lazypert.conversion.array_writer import ArrayWriter
    from lazypert.conversion.cell_pieces import Piece
    from lazypert.progress import Report

    # What a task reads of a piece: its values, in one part or several.
    ReadPiece = Callable[[Piece], list[Any]]
    # Arrays that encode values, by name.
    Encode = Callable[[Any], dict[str, Any]]

_DONE = "done.json"


@dataclass(frozen=True)
class ColumnSorter:
    """The inputs that all map tasks of a column share.

    Attributes
    ----------
    read
        Reads the values of a piece.
    encode
        Encodes values: a dictionary of arrays and `Texts` of the same length.
    destination
        Row in the store of each cell.
    shard
        Rows of a shard.
    """

    read: ReadPiece
    encode: Encode
    destination: CellNumbers
    shard: int

    def sort_piece(self, piece: Piece, path: Path) -> ArrayFile:
        """Run one task; the note ``n_missing`` counts missing texts."""
        if (finished := ArrayFile.from_checkpoint(path)) is not None:
            return finished
        encoded = [self.encode(values) for values in self.read(piece)]
        destination = self.destination.read(piece.first, piece.first + len(piece))
        n_shards = max(1, -(-len(self.destination) // self.shard))
        order, bounds = partition(destination // self.shard, n_shards)
        arrays: dict[str, Any] = {"destination": destination[order], "bounds": bounds}
        n_missing = 0
        for name in encoded[0]:
            parts = [part[name] for part in encoded]
            if name == TEXT:
                texts = Texts.concatenate(parts).take(order)
                arrays |= {"text_data": texts.data, "text_bounds": texts.bounds}
                continue
            values = parts[0] if len(parts) == 1 else np.concatenate(parts)
            arrays[f"values{name}"] = values[order]
            n_missing += int(values.sum()) if name == "/mask" else 0
        return ArrayFile.write(path, arrays, {"n_missing": n_missing})


@dataclass(frozen=True)
class ColumnShards:
    """Reads shards of what `ColumnSorter` saved.

    Attributes
    ----------
    files
        By piece.
    shard
        Rows of a shard.
    """

    files: Sequence[ArrayFile]
    length: int
    shard: int

    def span(self, number: int) -> tuple[int, int]:
        """First row of a shard, and one past its last."""
        return number * self.shard, min(self.length, (number + 1) * self.shard)

    def values(self, number: int, name: str) -> NDArray[Any]:
        """Values of one of the arrays of a shard."""
        begin, end = self.span(number)
        (base, shape), _, _ = self.files[0].arrays[f"values{name}"]
        out = np.empty((end - begin, *shape), base)
        for file, start, stop in self._ranges(number):
            out[file.read("destination", start, stop) - begin] = file.read(f"values{name}", start, stop)
        return out

    def texts(self, number: int) -> Texts:
        """Texts of a shard."""
        begin, end = self.span(number)
        lengths, parts = np.zeros(end - begin, np.int64), []
        for file, start, stop in self._ranges(number):
            bounds, rows = file.read("text_bounds", start, stop + 1), file.read("destination", start, stop) - begin
            texts = Texts(file.read("text_data", int(bounds[0]), int(bounds[-1])), bounds - bounds[0])
            lengths[rows] = texts.lengths
            parts.append((rows, texts))
        bounds = bounds_of(lengths)
        data = np.empty(int(bounds[-1]), np.uint8)
        for rows, texts in parts:
            texts.put(rows, bounds, data)
        return Texts(data, bounds)

    def _ranges(self, number: int) -> list[tuple[ArrayFile, int, int]]:
        ranges = [(file, *file.read("bounds", number, number + 2).tolist()) for file in self.files]
        return [(file, start, stop) for file, start, stop in ranges if stop > start]


@dataclass(frozen=True)
class ColumnShardWriter:
    """The inputs that all reduce tasks of a column share; `templates` are its arrays by name."""

    shards: ColumnShards
    templates: dict[str, Any]

    def write_shard(self, number: int) -> list[Entry]:
        """Run one task: write one shard of every array of the column."""
        return [
            template.write_shard(
                number, self.shards.texts(number) if name == TEXT else self.shards.values(number, name)
            )
            for name, template in self.templates.items()
        ]


@dataclass(frozen=True)
class ColumnJob:
    """How columns are sorted.

    Attributes
    ----------
    folder
        Folder for temporary files; every column has one of its own in it.
    """

    writer: ArrayWriter
    pieces: Sequence[Piece]
    destination: CellNumbers
    folder: Path
    workers: int
    report: Report | None

    def write(self, path: str, head: Any, read: ReadPiece, number: int) -> None:
        """Write a column, unless an interrupted run has written it.

        Parameters
        ----------
        path
            Path of the column in the store.
        head
            Some of its values, or none, in the dtype of all of them.
        read
            Reads the values of a piece.
        number
            Number of the column among those that use the folder.
        """
        work = self.folder / f"{number:06d}"
        grid = Grid.column(len(self.destination))
        if self._reuse(work, path, head, grid):
            return
        work.mkdir(parents=True, exist_ok=True)
        sorter = ColumnSorter(read, encode_column, self.destination, grid.shard)
        files = run(
            ColumnSorter.sort_piece,
            [(sorter, piece, work / f"{piece.number:06d}.bin") for piece in self.pieces],
            workers=self.workers,
            phase=f"{path}: reading and sorting",
            size=lambda file: file.size,
            report=self.report,
        )
        has_missing = any(file.notes["n_missing"] for file in files)
        templates = create_column(self.writer, path, head, grid, has_missing=has_missing)
        shard_writer = ColumnShardWriter(ColumnShards(files, grid.length, grid.shard), templates)
        shards = run(
            ColumnShardWriter.write_shard,
            [(shard_writer, shard) for shard in range(grid.n_shards)],
            workers=self.workers,
            phase=f"{path}: writing shards",
            size=lambda entries: sum(entry.size for entry in entries),
            report=self.report,
        )
        entries = [entry for shard in shards for entry in shard]
        self.writer.add(entries)
        save_checkpoint(
            work / _DONE, {"files": [[e.key, e.size, e.crc32] for e in entries], "has_missing": has_missing}
        )
        for file in files:
            file.remove()

    def _reuse(self, work: Path, path: str, head: Any, grid: Grid) -> bool:
        """Whether an interrupted run has written a column, which then is added to the store."""
        record = load_checkpoint(work / _DONE)
        with contextlib.suppress(KeyError, TypeError):  # there is none, or not one of this version
            entries = [Entry(*entry) for entry in record["files"]]  # type: ignore[index]
            if self.writer.files.holds(entries):
                create_column(self.writer, path, head, grid, has_missing=record["has_missing"])  # type: ignore[index]
                self.writer.add(entries)
                return True
        return False


def write_sorted_rows(job: ColumnJob, array: Any, read: ReadPiece, pieces: Sequence[Piece], rows: int) -> None:
    """Write the rows of a dense array in the order of the store.

    Parameters
    ----------
    array
        The (n_obs, width) Zarr array.
    read
        Reads the rows of a piece.
    pieces
        Pieces that are small enough for such rows.
    rows
        Rows of a shard of the sort: a multiple of those of a chunk.
    """
    work = job.folder / array.path.replace("/", "-")
    work.mkdir(parents=True, exist_ok=True)
    sorter = ColumnSorter(read, lambda values: {"": values}, job.destination, rows)
    files = run(
        ColumnSorter.sort_piece,
        [(sorter, piece, work / f"{piece.number:06d}.bin") for piece in pieces],
        workers=job.workers,
        phase=f"{array.path}: reading and sorting",
        size=lambda file: file.size,
        report=job.report,
    )
    shards = ColumnShards(files, len(job.destination), rows)

    def write(number: int) -> int:
        values = shards.values(number, "")
        array[slice(*shards.span(number))] = values
        return values.nbytes

    run(
        write,
        [(number,) for number in range(-(-len(job.destination) // rows))],
        workers=job.workers,
        phase=f"{array.path}: writing rows",
        size=int,
        report=job.report,
    )
    for file in files:
        file.remove()
