"""Spills: files of rows sorted by destination, read by ranges of destinations."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.files import crc32_of, read_exact, write_atomic
from lazypert._internal.kernels import kernel
from lazypert.conversion.checkpoints import load_checkpoint, save_checkpoint
from lazypert.sparse.value_stats import ValueStats

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.sparse.csr import CSRBlock

ROWS_PER_MARK = 4096
"""Destination rows between two entries of a spill's index."""

_ESCAPE = 255


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Sorted rows of small counts in two bytes a value: half of what 2-byte numbers take.

    Attributes
    ----------
    indptr
        (n_rows + 1,) int64 number of values before each row.
    begin
        (n_rows + 1,) int64 byte at which each row begins.
    payload
        Of each row: how far each column is from the one before it, one byte each; the values, one
        byte each, 255 for 255 and above; and 2-byte numbers for those.
    largest
        Largest value.
    """

    indptr: NDArray[np.int64]
    begin: NDArray[np.int64]
    payload: NDArray[np.uint8]
    largest: int

    @classmethod
    def of(cls, csr: CSRBlock, rows: NDArray[np.int64]) -> PackedRows | None:
        """Pack rows of a block in some order, in one pass; None where they are not of this kind."""
        indptr = np.concatenate([[0], np.cumsum(np.diff(csr.indptr)[rows])]).astype(np.int64)
        begin, payload = np.zeros(len(rows) + 1, dtype=np.int64), np.empty(4 * csr.nnz, dtype=np.uint8)
        largest = _pack(csr.indptr, csr.indices, csr.data, rows, begin, payload)
        return None if largest < 0 else cls(indptr, begin, payload[: begin[-1]], int(largest))


@dataclass(frozen=True, slots=True)
class SpillSlice:
    """Rows that were read from a spill: their destinations and offsets, and the values, packed or plain."""

    rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    begin: NDArray[np.int64] | None
    payload: NDArray[np.uint8] | None
    indices: NDArray[Any]
    data: NDArray[Any]

    def place(
        self,
        first: int,
        place: NDArray[np.int64],
        filled: NDArray[np.int64],
        out_indices: NDArray[Any],
        out_data: NDArray[Any],
    ) -> None:
        """Copy rows to where they belong.

        Parameters
        ----------
        first
            Destination that is row 0 of `place`.
        place
            Where each row begins in the output.
        filled
            Values of each row that are there already; pieces of a row follow one another.
        """
        if self.payload is None:
            _place(self.rows - first, self.offsets, self.indices, self.data, place, filled, out_indices, out_data)
        else:
            _unpack(self.rows - first, self.offsets, self.begin, self.payload, place, filled, out_indices, out_data)


@dataclass(frozen=True, slots=True)
class Spill:
    """A file of rows sorted by destination; rows without values are left out.

    One after another: the index (for every ``k``, how many rows go before destination
    ``k * MARK``), the rows' destinations, their offsets, and then either the bytes at which they
    begin and these bytes (see `PackedRows`), or column numbers and values.

    Attributes
    ----------
    n_marks, n_rows, nnz
        Lengths of the parts.
    index_dtype, data_dtype
        Of column numbers and values; ``""`` when they are packed.
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
    facts: ValueStats
    total: float

    @classmethod
    def write(
        cls,
        path: Path,
        target: NDArray[np.int64],
        values: CSRBlock | PackedRows,
        n_dest: int,
        facts: ValueStats,
        total: float,
    ) -> Spill:
        """Write rows, and note that they are written.

        Parameters
        ----------
        target
            (n_rows,) int64 destination of each row of `values`, ascending.
        n_dest
            Number of destinations.
        """
        marks = np.searchsorted(target, np.arange(0, n_dest + ROWS_PER_MARK, ROWS_PER_MARK)).astype("i8")
        parts = [marks, target, values.indptr]
        dtypes = "", ""
        if isinstance(values, PackedRows):
            parts += [values.begin, values.payload]
        else:
            parts += [values.indices, values.data]
            dtypes = values.indices.dtype.str, values.data.dtype.str
        size, crc = write_atomic(path, (np.ascontiguousarray(part).view(np.uint8).data for part in parts))
        spill = cls(str(path), len(marks), len(target), int(values.indptr[-1]), *dtypes, size, crc, facts, total)
        save_checkpoint(_note(path), asdict(spill))
        return spill

    @classmethod
    def load_checkpoint(cls, path: Path) -> Spill | None:
        """Return the spill that an earlier run wrote, once all its bytes are as they were."""
        noted = load_checkpoint(_note(path))
        if noted is None:
            return None
        try:
            spill = cls(**(noted | {"path": str(path), "facts": ValueStats(**noted["facts"])}))
        except (KeyError, TypeError):  # it is no note of ours
            return None
        return spill if crc32_of(path) == (spill.size, spill.crc32) else None

    def remove(self) -> None:
        """Delete the file and its note."""
        for path in (_note(Path(self.path)), Path(self.path)):
            path.unlink(missing_ok=True)

    def row_lengths(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Destinations, and the number of values of each."""
        table = np.fromfile(self.path, "i8", 2 * self.n_rows + 1, offset=8 * self.n_marks)
        return table[: self.n_rows], np.diff(table[self.n_rows :])

    def read(self, first: int, last: int) -> SpillSlice:
        """Rows of destinations ``first`` to ``last``."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            return self._read(fd, first, last)
        finally:
            os.close(fd)

    def _read(self, fd: int, first: int, last: int) -> SpillSlice:
        lo, hi = first // ROWS_PER_MARK, -(-last // ROWS_PER_MARK)
        near = read_exact(fd, "i8", hi - lo + 1, 8 * lo)
        begin, count = int(near[0]), int(near[-1] - near[0])
        rows = read_exact(fd, "i8", count, 8 * (self.n_marks + begin))
        lo, hi = (int(n) for n in np.searchsorted(rows, [first, last]))
        rows, at = rows[lo:hi], 8 * (self.n_marks + self.n_rows)
        offsets = read_exact(fd, "i8", hi - lo + 1, at + 8 * (begin + lo))
        at += 8 * (self.n_rows + 1)
        start, nnz = int(offsets[0]), int(offsets[-1] - offsets[0])
        if not self.index_dtype:
            bytes_at = read_exact(fd, "i8", hi - lo + 1, at + 8 * (begin + lo))
            at += 8 * (self.n_rows + 1) + int(bytes_at[0])
            payload = read_exact(fd, "u1", int(bytes_at[-1] - bytes_at[0]), at)
            return SpillSlice(rows, offsets - start, bytes_at - bytes_at[0], payload, payload, payload)
        indices_width, data_width = (np.dtype(dtype).itemsize for dtype in (self.index_dtype, self.data_dtype))
        indices = read_exact(fd, self.index_dtype, nnz, at + start * indices_width)
        at += self.nnz * indices_width
        data = read_exact(fd, self.data_dtype, nnz, at + start * data_width)
        return SpillSlice(rows, offsets - start, None, None, indices, data)


def _note(spill: Path) -> Path:
    return spill.with_suffix(".json")


@kernel
def _pack(indptr: Any, indices: Any, data: Any, rows: Any, begin: Any, payload: Any) -> int:
    """Fill `begin` and `payload`; return the largest value, or -1 when a row is not sorted small counts."""
    largest: Any = 0
    for i in range(len(rows)):
        start = indptr[rows[i]]
        n = indptr[rows[i] + 1] - start
        at: Any = begin[i]
        cols, values = indices[start : start + n], data[start : start + n]
        steps, small = payload[at : at + n], payload[at + n : at + 2 * n]
        # Plain loops, one after another: each of them is turned into vector instructions.
        wrong: Any = 0
        inexact, n_large = 0, 0
        high: Any = np.uint16(0)
        if n:
            wrong += (cols[0] < 0) | (cols[0] > 254)
            steps[0] = cols[0] + 1
        for k in range(1, n):
            wrong += (cols[k] <= cols[k - 1]) | (cols[k] - cols[k - 1] > 255)
            steps[k] = cols[k] - cols[k - 1]
        for k in range(n):
            whole: Any = np.uint16(np.int32(values[k]))
            inexact += whole != values[k]  # fractions, negatives, NaN, and what 16 bits don't hold
            n_large += whole >= _ESCAPE
            high = max(high, whole)
            small[k] = min(whole, np.uint16(_ESCAPE))
        if wrong or inexact:
            return -1
        at += 2 * n
        if n_large:
            for k in range(n):
                if small[k] == _ESCAPE:
                    whole = np.uint16(np.int32(values[k]))
                    payload[at], payload[at + 1] = whole & 255, whole >> 8
                    at += 2
        largest = max(largest, np.int64(high))
        begin[i + 1] = at
    return largest


@kernel
def _unpack(
    rows: Any, offsets: Any, begin: Any, payload: Any, place: Any, filled: Any, out_indices: Any, out_data: Any
) -> None:
    for i in range(len(rows)):
        n, at = offsets[i + 1] - offsets[i], begin[i]
        target = place[rows[i]] + filled[rows[i]]
        steps, small = payload[at : at + n], payload[at + n : at + 2 * n]
        cols, values = out_indices[target : target + n], out_data[target : target + n]
        column = np.int64(-1)
        for k in range(n):
            column += steps[k]
            cols[k] = column
        for k in range(n):
            values[k] = small[k]
        at += 2 * n
        if begin[i + 1] > at:
            for k in range(n):
                if small[k] == _ESCAPE:
                    values[k] = payload[at] + 256 * np.int64(payload[at + 1])
                    at += 2
        filled[rows[i]] += n


@kernel
def _place(
    rows: Any, offsets: Any, indices: Any, data: Any, place: Any, filled: Any, out_indices: Any, out_data: Any
) -> None:
    for i in range(len(rows)):
        n = offsets[i + 1] - offsets[i]
        target = place[rows[i]] + filled[rows[i]]
        from_indices, from_data = indices[offsets[i] :][:n], data[offsets[i] :][:n]
        to_indices, to_data = out_indices[target:][:n], out_data[target:][:n]
        for k in range(n):
            to_indices[k] = from_indices[k]
        for k in range(n):
            to_data[k] = from_data[k]
        filled[rows[i]] += n
