"""Labels of cells: the columns that group cells are read once, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.tasks import run
from lazypert.conversion.array_files import ArrayFile
from lazypert.screen.labels import factorise, label_array, unite
from lazypert.screen.run_keys import combinations_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert.conversion.cell_pieces import Piece
    from lazypert.converter import ScreenReader
    from lazypert.progress import Report


@dataclass(frozen=True)
class LabelReader:
    """The inputs that all tasks share that read labels of one file.

    Attributes
    ----------
    columns
        obs columns to read.
    """

    reader: ScreenReader
    columns: tuple[str, ...]

    def read(self, piece: Piece, path: Path) -> ArrayFile:
        """Run one task: read the columns of a piece, and save which combinations of labels its cells have.

        The file has the arrays ``combination``, one number per cell, ``codes``, the labels of every combination, and
        ``count``, its cells. Its notes hold the labels of each column in a list.
        """
        if (finished := ArrayFile.from_checkpoint(path)) is not None:
            return finished
        found = [self._factorise(column, piece) for column in self.columns]
        labels = [texts.tolist() for _, texts in found]
        if self.columns:
            codes, number = combinations_of([code for code, _ in found], [*map(len, labels)])
        else:
            codes, number = np.zeros((1, 0), np.int64), np.zeros(len(piece), np.int32)
        arrays: dict[str, NDArray[Any]] = {
            "combination": number,
            "codes": codes.astype(np.int32),
            "count": np.bincount(number, minlength=len(codes)),
        }
        return ArrayFile.write(path, arrays, {"labels": labels})

    def _factorise(self, column: str, piece: Piece) -> tuple[NDArray[np.int32], NDArray[np.str_]]:
        return unite([factorise(self.reader.obs_column(column, start, stop)) for start, stop in piece.steps()])


@dataclass(frozen=True, eq=False)
class ObsLabels:
    """Labels of all cells in some columns.

    Attributes
    ----------
    files
        What `LabelReader` saved of each piece.
    labels
        (n_labels,) sorted labels of each column.
    """

    pieces: Sequence[Piece]
    files: Sequence[ArrayFile]
    labels: dict[str, NDArray[Any]]

    @classmethod
    def read(
        cls,
        readers: Sequence[ScreenReader],
        pieces: Sequence[Piece],
        columns: Sequence[str],
        folder: Path,
        *,
        workers: int,
        report: Report | None,
    ) -> ObsLabels:
        """Read the labels of all cells, unless an interrupted run has read them."""
        folder.mkdir(exist_ok=True)
        tasks = [LabelReader(reader, tuple(columns)) for reader in readers]
        files = run(
            LabelReader.read,
            [(tasks[piece.file], piece, folder / f"{piece.number:06d}.labels") for piece in pieces],
            workers=workers,
            phase="obs: reading labels",
            size=lambda file: file.size,
            report=report,
        )
        labels = {}
        for number, column in enumerate(columns):
            distinct = {label for file in files for label in file.notes["labels"][number]}
            labels[column] = np.sort(label_array([*distinct]))
        return cls(pieces, files, labels)

    def codes(self, piece: int) -> dict[str, NDArray[np.int32]]:
        """For each column, (n_combinations,) codes of the combinations of a piece among all labels."""
        file = self.files[piece]
        own = file.read("codes")
        return {
            column: np.append(np.searchsorted(labels, label_array(file.notes["labels"][k])), -1).astype(np.int32)[
                own[:, k]
            ]
            for k, (column, labels) in enumerate(self.labels.items())
        }

    def counts(self, piece: int) -> NDArray[np.int64]:
        """(n_combinations,) cells of each combination of a piece."""
        return self.files[piece].read("count")

    def table(self, column: str, other: str | None = None) -> NDArray[np.int64]:
        """Count cells by label, and those without a label last; with another column, by the labels of both."""
        sizes = [len(self.labels[name]) + 1 for name in (column, other) if name is not None]
        total = np.zeros(sizes, np.int64)
        for number in range(len(self.files)):
            codes = self.codes(number)
            index = tuple(codes[name] for name in (column, other) if name is not None)
            np.add.at(total, index, self.counts(number))
        return total
