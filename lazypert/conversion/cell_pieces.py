"""Pieces: ranges of neighbouring cells of one file, each of which a task reads at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.converter import ScreenReader

READ_STEP = 131_072
"""Cells whose values are Python objects at the same time: few, because a text takes 100 bytes."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of cells.

    Attributes
    ----------
    number
        Number of the piece.
    file
        Number of its file.
    start, stop
        Its cells in the file.
    first
        Number of its first cell among the cells of all files.
    """

    number: int
    file: int
    start: int
    stop: int
    first: int

    def __len__(self) -> int:
        return self.stop - self.start

    def steps(self) -> list[tuple[int, int]]:
        """Ranges of at most `READ_STEP` cells in the file: at least one, which may be empty."""
        firsts = range(self.start, max(self.start + 1, self.stop), READ_STEP)
        return [(first, min(self.stop, first + READ_STEP)) for first in firsts]


def cell_pieces(readers: Sequence[ScreenReader], size: int) -> list[Piece]:
    """Divide the cells of all files into pieces of at most `size` cells; a file without cells has an empty one."""
    pieces: list[Piece] = []
    before = 0
    for file, reader in enumerate(readers):
        for start in range(0, max(1, reader.n_obs), size):
            pieces.append(Piece(len(pieces), file, start, min(reader.n_obs, start + size), before + start))
        before += reader.n_obs
    return pieces


def piece_bounds(pieces: Sequence[Piece]) -> NDArray[np.int64]:
    """(n_pieces + 1,) number of the first cell of each piece, and of all cells."""
    return np.array([*(piece.first for piece in pieces), pieces[-1].first + len(pieces[-1])], np.int64)
