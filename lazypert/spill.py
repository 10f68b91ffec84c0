"""Spills: files of rows sorted by destination, read by ranges of destinations."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.files import crc32_of, read_exact, write_whole
from lazypert.partial import recall, record
from lazypert.schema import ValueFacts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.csr import CSRBlock

MARK = 4096
"""Destination rows between two entries of a spill's index."""


@dataclass(frozen=True, slots=True)
class Spill:
    """A file of rows sorted by destination; rows without values are left out.

    One after another: the index (for every ``k``, how many rows go before destination
    ``k * MARK``), the rows' destinations, their offsets, column numbers, values.

    Attributes
    ----------
    n_marks, n_rows, nnz
        Lengths of the parts.
    size, crc32
        Of the whole file.
    facts, total
        About the values: what dtype they need, and their sum.
    """

    path: str
    n_marks: int
    n_rows: int
    nnz: int
    index_dtype: str
    data_dtype: str
    size: int
    crc32: int
    facts: ValueFacts
    total: float

    @classmethod
    def write(
        cls, path: Path, target: NDArray[np.int64], csr: CSRBlock, n_dest: int, facts: ValueFacts, total: float
    ) -> Spill:
        """Write rows, and note that they are written.

        Parameters
        ----------
        target
            (n_rows,) int64 destination of each row of `csr`, ascending.
        n_dest
            Number of destinations.
        """
        marks = np.searchsorted(target, np.arange(0, n_dest + MARK, MARK)).astype("i8")
        parts = [marks, target, csr.indptr, csr.indices, csr.data]
        size, crc = write_whole(path, (np.ascontiguousarray(part).view(np.uint8).data for part in parts))
        dtypes = csr.indices.dtype.str, csr.data.dtype.str
        spill = cls(str(path), len(marks), len(target), csr.nnz, *dtypes, size, crc, facts, total)
        record(_note(path), asdict(spill))
        return spill

    @classmethod
    def recall(cls, path: Path) -> Spill | None:
        """Return the spill that an earlier run wrote, once all its bytes are as they were."""
        noted = recall(_note(path))
        if noted is None:
            return None
        spill = cls(**(noted | {"path": str(path), "facts": ValueFacts(**noted["facts"])}))
        return spill if crc32_of(path) == (spill.size, spill.crc32) else None

    def remove(self) -> None:
        """Delete the file and its note."""
        for path in (_note(Path(self.path)), Path(self.path)):
            path.unlink(missing_ok=True)

    def row_lengths(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Destinations, and the number of values of each."""
        table = np.fromfile(self.path, "i8", 2 * self.n_rows + 1, offset=8 * self.n_marks)
        return table[: self.n_rows], np.diff(table[self.n_rows :])

    def read(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any], NDArray[Any]]:
        """Rows of destinations ``first`` to ``last``: destinations, offsets from 0, column numbers, values."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            lo, hi = first // MARK, -(-last // MARK)
            near = read_exact(fd, "i8", hi - lo + 1, 8 * lo)
            begin, count = int(near[0]), int(near[-1] - near[0])
            rows = read_exact(fd, "i8", count, 8 * (self.n_marks + begin))
            lo, hi = (int(n) for n in np.searchsorted(rows, [first, last]))
            offsets = read_exact(fd, "i8", hi - lo + 1, 8 * (self.n_marks + self.n_rows + begin + lo))
            start, nnz = int(offsets[0]), int(offsets[-1] - offsets[0])
            at = 8 * (self.n_marks + 2 * self.n_rows + 1)
            width = np.dtype(self.index_dtype).itemsize
            indices = read_exact(fd, self.index_dtype, nnz, at + start * width)
            at += self.nnz * width
            data = read_exact(fd, self.data_dtype, nnz, at + start * np.dtype(self.data_dtype).itemsize)
        finally:
            os.close(fd)
        return rows[lo:hi], offsets - start, indices, data


def _note(spill: Path) -> Path:
    return spill.with_suffix(".json")
