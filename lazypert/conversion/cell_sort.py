"""Sorting the cells of all files by group and name hash, outside of memory.

A piece of cells is read at once, and its cells are divided into buckets; a bucket is a range of the result. Each
bucket gathers its cells from all pieces and sorts them, and hands back to each piece where its cells have gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.partition import partition
from lazypert._internal.texts import Texts
from lazypert.conversion.array_files import ArrayFile
from lazypert.screen.cell_order import order_cells, text_hashes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert.conversion.cell_buckets import Buckets
    from lazypert.conversion.cell_groups import CellGroups
    from lazypert.conversion.cell_pieces import Piece
    from lazypert.conversion.obs_labels import ObsLabels
    from lazypert.converter import ScreenReader


@dataclass(frozen=True, eq=False)
class NameReader:
    """The inputs that all tasks share that read cell names.

    Attributes
    ----------
    n_hash_ranges
        Ranges of hashes in which repeated names are counted.
    dtype
        Dtype of numbers of cells.
    """

    readers: Sequence[ScreenReader]
    labels: ObsLabels
    groups: CellGroups
    buckets: Buckets
    n_hash_ranges: int
    dtype: np.dtype[Any]

    def read(self, piece: Piece, folder: Path) -> tuple[ArrayFile, ArrayFile]:
        """Run one task: read the names of a piece, and divide its cells into buckets.

        Returns
        -------
        cells
            For the cells by bucket, the arrays ``subgroup``, ``hash`` and ``cell``, and ``bounds``, where each bucket
            begins; ``sorted_hash`` and ``hash_bounds`` for counting names.
        names
            The names in the order of the file: ``data`` and ``bounds`` of `Texts`.
        """
        paths = [folder / f"{kind}-{piece.number:06d}.bin" for kind in ("cells", "names")]
        cells, names = (ArrayFile.from_checkpoint(path) for path in paths)
        if cells is not None and names is not None:
            return cells, names
        reader = self.readers[piece.file]
        texts = Texts.concatenate([Texts.of(reader.obs_names(start, stop)) for start, stop in piece.steps()])
        hashes = text_hashes(texts)
        combination = self.labels.files[piece.number].read("combination")
        subgroup = self.groups.subgroups(self.labels, piece.number)[combination]
        bucket = self.buckets.bucket_of(self.groups.run[subgroup], hashes)
        order, bounds = partition(bucket, self.buckets.n_buckets)
        sorted_hash = np.sort(hashes)
        arrays = {
            "subgroup": subgroup[order],
            "hash": hashes[order],
            "cell": (order + piece.first).astype(self.dtype),
            "bounds": bounds,
            "sorted_hash": sorted_hash,
            "hash_bounds": np.searchsorted(sorted_hash, hash_range_bounds(self.n_hash_ranges)),
        }
        return (
            ArrayFile.write(paths[0], arrays),
            ArrayFile.write(paths[1], {"data": texts.data, "bounds": texts.bounds}),
        )


def hash_range_bounds(n_ranges: int) -> NDArray[np.uint64]:
    """(n_ranges,) least hash of each of several ranges."""
    return np.array([number * 2**64 // n_ranges for number in range(n_ranges)], np.uint64)


@dataclass(frozen=True, eq=False)
class NameCounter:
    """Counts cell names that occur more than once, in one range of hashes at a time."""

    files: Sequence[ArrayFile]
    pieces: Sequence[Piece]
    n_sources: int

    def count(self, number: int, path: Path) -> ArrayFile:
        """Run one task.

        The file has the array ``repeats``, the cells of each source with the name of an earlier one. The note
        ``shared`` is the number of names in several sources.
        """
        if (finished := ArrayFile.from_checkpoint(path)) is not None:
            return finished
        repeats, distinct = [], []
        for source in range(self.n_sources):
            hashes = np.sort(
                np.concatenate(
                    [
                        self._read(file, number)
                        for file, piece in zip(self.files, self.pieces, strict=True)
                        if piece.file == source
                    ]
                )
            )
            is_first = np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)]
            repeats.append(int(len(hashes) - is_first.sum()))
            if self.n_sources > 1:
                distinct.append(hashes[is_first])
        n_shared = 0
        if self.n_sources > 1:
            _, n_sources = np.unique(np.concatenate(distinct), return_counts=True)
            n_shared = int((n_sources > 1).sum())
        return ArrayFile.write(path, {"repeats": np.array(repeats)}, {"shared": n_shared})

    @staticmethod
    def _read(file: ArrayFile, number: int) -> NDArray[np.uint64]:
        bounds, n = file.read("hash_bounds"), file.arrays["sorted_hash"][1]
        return file.read("sorted_hash", int(bounds[number]), int(np.append(bounds, n)[number + 1]))


@dataclass(frozen=True, eq=False)
class BucketSorter:
    """The inputs that all tasks share that sort buckets.

    Attributes
    ----------
    files
        What `NameReader` saved of each piece.
    run
        (n_subgroups,) run of each subgroup.
    piece_bounds
        (n_pieces + 1,) first cell of each piece, and number of cells.
    is_grouped
        Whether the sorted cells are the rows of the store; otherwise these are the cells as they are.
    dtype
        Dtype of numbers of cells.
    """

    files: Sequence[ArrayFile]
    buckets: Buckets
    run: NDArray[np.int64]
    piece_bounds: NDArray[np.int64]
    is_grouped: bool
    dtype: np.dtype[Any]

    def find_moves(self, bucket: int, path: Path) -> ArrayFile:
        """Run one task for a part of a run: find cells whose name is that of another one, and their new hashes.

        A cell with a new hash may belong to another part. The file has the arrays ``cell``, sorted, ``subgroup``,
        ``hash``, the new one, and ``bucket``.
        """
        if (finished := ArrayFile.from_checkpoint(path)) is not None:
            return finished
        subgroup, hashes, cell = self._gather(bucket)
        _, distinct = order_cells(self.run[subgroup], hashes)
        changed = np.flatnonzero(distinct != hashes)
        arrays = {
            "cell": cell[changed],
            "subgroup": subgroup[changed],
            "hash": distinct[changed],
            "bucket": self.buckets.bucket_of(self.run[subgroup[changed]], distinct[changed]),
        }
        return ArrayFile.write(path, arrays)

    def n_cells(self, moves: Sequence[ArrayFile | None]) -> NDArray[np.int64]:
        """(n_buckets,) cells of each bucket, after cells have moved."""
        total = np.zeros(self.buckets.n_buckets, np.int64)
        for file in self.files:
            total += np.diff(file.read("bounds"))
        for bucket, moved in enumerate(moves):
            if moved is not None:
                targets = moved.read("bucket")
                total[bucket] -= len(targets)
                np.add.at(total, targets, 1)
        return total

    def sort(
        self, bucket: int, begin: int, moves: Sequence[ArrayFile | None], folder: Path
    ) -> tuple[ArrayFile, ArrayFile]:
        """Run one task: sort the cells of a bucket.

        Parameters
        ----------
        begin
            First position of the bucket.
        moves
            What `find_moves` found in each bucket; None for whole runs.

        Returns
        -------
        cells
            The arrays ``cell``, ``hash`` and ``subgroup`` in sorted order. The note ``is_in_order`` says whether cells
            are where they were.
        back
            By piece: ``cell``, and ``position`` (grouped) or ``hash`` and ``subgroup``; and
            ``bounds``, where each piece begins.
        """
        paths = [folder / f"{kind}-{bucket:06d}.bin" for kind in ("sorted", "back")]
        cells, returned = (ArrayFile.from_checkpoint(path) for path in paths)
        if cells is not None and returned is not None:
            return cells, returned
        subgroup, hashes, cell = self._gather(bucket)
        if (parts := self.buckets.part_of_run(bucket)) is None:
            order, hashes = order_cells(self.run[subgroup], hashes)
        else:
            subgroup, hashes, cell = self._move(bucket, (subgroup, hashes, cell), moves[slice(*parts)])
            order = np.lexsort((cell, hashes))
        subgroup, hashes, cell = subgroup[order], hashes[order], cell[order]
        piece = np.searchsorted(self.piece_bounds, cell, side="right") - 1
        back, bounds = partition(piece, len(self.files))
        arrays = {"cell": cell[back], "bounds": bounds}
        if self.is_grouped:
            arrays["position"] = (back + begin).astype(self.dtype)
        else:
            arrays["hash"], arrays["subgroup"] = hashes[back], subgroup[back]
        is_in_order = bool((cell == np.arange(begin, begin + len(cell))).all())
        sorted_arrays = {"cell": cell, "hash": hashes, "subgroup": subgroup}
        return (
            ArrayFile.write(paths[0], sorted_arrays, {"is_in_order": is_in_order}),
            ArrayFile.write(paths[1], arrays),
        )

    def _gather(self, bucket: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Subgroup, hash and number of a bucket's cells, in source order."""
        parts: list[list[NDArray[Any]]] = []
        for file in self.files:
            start, stop = (int(n) for n in file.read("bounds", bucket, bucket + 2))
            if stop > start:
                parts.append([file.read(name, start, stop) for name in ("subgroup", "hash", "cell")])
        empty = [np.empty(0, dtype) for dtype in (np.int32, np.uint64, self.dtype)]
        subgroup, hashes, cell = (np.concatenate(arrays) for arrays in zip(*(parts or [empty]), strict=True))
        return subgroup, hashes, cell

    def _move(
        self, bucket: int, cells: tuple[NDArray[Any], ...], moves: Sequence[ArrayFile | None]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Replace the cells of this part of a run that have a new hash by those whose new hash belongs here."""
        subgroup, hashes, cell = cells
        kept = np.ones(len(cell), bool)
        arrived: list[tuple[NDArray[Any], ...]] = []
        for moved in moves:
            assert moved is not None
            target, number = moved.read("bucket"), moved.read("cell")
            kept &= ~np.isin(cell, number)
            here = target == bucket
            arrived.append((moved.read("subgroup")[here], moved.read("hash")[here], number[here]))
        columns = zip((subgroup[kept], hashes[kept], cell[kept]), *arrived, strict=True)
        subgroup, hashes, cell = (np.concatenate(arrays) for arrays in columns)
        return subgroup, hashes, cell


@dataclass(frozen=True, eq=False)
class PiecePlacer:
    """Gathers for each piece what the buckets say of its cells: the inverse of sorting."""

    files: Sequence[ArrayFile]
    pieces: Sequence[Piece]
    names: tuple[str, ...]

    def place(self, piece: Piece, path: Path) -> ArrayFile:
        """Run one task: put the arrays of all buckets in the order of a piece's cells."""
        if (finished := ArrayFile.from_checkpoint(path)) is not None:
            return finished
        arrays: dict[str, NDArray[Any]] = {
            name: np.empty(len(piece), self.files[0].arrays[name][0][0]) for name in self.names
        }
        for file in self.files:
            start, stop = (int(n) for n in file.read("bounds", piece.number, piece.number + 2))
            if stop > start:
                cells = file.read("cell", start, stop) - piece.first
                for name, values in arrays.items():
                    values[cells] = file.read(name, start, stop)
        return ArrayFile.write(path, arrays)
