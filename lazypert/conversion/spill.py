"""Spills: temporary files of rows sorted by destination, read by destination ranges."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.files import crc32_of, open_to_read, read_exact, write_atomic
from lazypert._internal.kernels import kernel
from lazypert.conversion.checkpoints import load_checkpoint, save_checkpoint
from lazypert.sparse.value_stats import ValueStats

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.sparse.csr import CSRBlock

ROWS_PER_MARK = 4096
"""Destination rows between two marks, which are the entries of a spill's index."""

_ESCAPE = 255


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Sorted rows of small counts at two bytes per value: half the size of 2-byte indices and values.

    Attributes
    ----------
    indptr
        (n_rows + 1,) int64 number of values before each row.
    byte_offsets
        (n_rows + 1,) int64 offset of each row in `payload`.
    payload
        For each row: the difference of each column from the one before, one byte each; the values,
        one byte each, with 255 for 255 and above; and those large values, two bytes each.
    maximum
        Largest value.
    """

    indptr: NDArray[np.int64]
    byte_offsets: NDArray[np.int64]
    payload: NDArray[np.uint8]
    maximum: int

    @classmethod
    def pack(cls, csr: CSRBlock, rows: NDArray[np.int64]) -> PackedRows | None:
        """Pack rows of a block in the given order; return None if they are not sorted rows of small counts."""
        indptr = np.concatenate([[0], np.cumsum(np.diff(csr.indptr)[rows])]).astype(np.int64)
        byte_offsets, payload = np.zeros(len(rows) + 1, dtype=np.int64), np.empty(4 * csr.nnz, dtype=np.uint8)
        maximum = _pack(csr.indptr, csr.indices, csr.data, rows, byte_offsets, payload)
        return None if maximum < 0 else cls(indptr, byte_offsets, payload[: byte_offsets[-1]], int(maximum))


@dataclass(frozen=True, slots=True)
class SpillRows:
    """Rows read from a spill.

    Attributes
    ----------
    destinations
        (n,) int64 destination of each row.
    indptr
        (n + 1,) int64 number of values before each row.
    byte_offsets, payload
        Packed rows (see `PackedRows`); None if the spill is not packed.
    indices, data
        Column numbers and values; None if the spill is packed.
    """

    destinations: NDArray[np.int64]
    indptr: NDArray[np.int64]
    byte_offsets: NDArray[np.int64] | None = None
    payload: NDArray[np.uint8] | None = None
    indices: NDArray[Any] | None = None
    data: NDArray[Any] | None = None

    def scatter(
        self,
        first_row: int,
        offsets: NDArray[np.int64],
        n_filled: NDArray[np.int64],
        out_indices: NDArray[Any],
        out_data: NDArray[Any],
    ) -> None:
        """Copy the values to their positions in the output.

        Parameters
        ----------
        first_row
            Destination of the output's first row.
        offsets
            Offset of each row in the output.
        n_filled
            Number of values that each row of the output holds already; updated. Values of one row
            from several spills follow one another.
        """
        rows, out = self.destinations - first_row, (offsets, n_filled, out_indices, out_data)
        if self.payload is None:
            _scatter(rows, self.indptr, self.indices, self.data, *out)
        else:
            _scatter_packed(rows, self.indptr, self.byte_offsets, self.payload, *out)


@dataclass(frozen=True, slots=True)
class Spill:
    """A file of rows sorted by destination; rows without values are omitted.

    The file holds, one after another: the marks (for every ``k``, how many rows come before
    destination ``k * ROWS_PER_MARK``), the rows' destinations, their indptr, and then either byte
    offsets and payload (see `PackedRows`) or column numbers and values.

    Attributes
    ----------
    n_marks, n_rows, nnz
        Number of marks, rows and values.
    index_dtype, data_dtype
        Dtypes of column numbers and values; ``""`` if they are packed.
    size, crc32
        Size and CRC-32 of the whole file.
    value_stats, total
        Statistics of the values, and their sum.
    """

    path: str
    n_marks: int
    n_rows: int
    nnz: int
    index_dtype: str
    data_dtype: str
    size: int
    crc32: int
    value_stats: ValueStats
    total: float

    @classmethod
    def write(
        cls,
        path: Path,
        destinations: NDArray[np.int64],
        rows: CSRBlock | PackedRows,
        n_destinations: int,
        value_stats: ValueStats,
        total: float,
    ) -> Spill:
        """Write rows to a file, and a checkpoint beside it.

        Parameters
        ----------
        destinations
            (n_rows,) int64 destination of each row, ascending.
        n_destinations
            Rows of the result.
        """
        marks = np.searchsorted(destinations, np.arange(0, n_destinations + ROWS_PER_MARK, ROWS_PER_MARK)).astype("i8")
        arrays = [marks, destinations, rows.indptr]
        dtypes = "", ""
        if isinstance(rows, PackedRows):
            arrays += [rows.byte_offsets, rows.payload]
        else:
            arrays += [rows.indices, rows.data]
            dtypes = rows.indices.dtype.str, rows.data.dtype.str
        size, crc = write_atomic(path, (np.ascontiguousarray(array).view(np.uint8).data for array in arrays))
        counts = len(marks), len(destinations), int(rows.indptr[-1])
        spill = cls(str(path), *counts, *dtypes, size, crc, value_stats, total)
        save_checkpoint(_checkpoint_path(path), asdict(spill))
        return spill

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Spill:
        """Build a spill from the record of a checkpoint."""
        return cls(**(record | {"value_stats": ValueStats(**record["value_stats"])}))

    @classmethod
    def from_checkpoint(cls, path: Path) -> Spill | None:
        """Return the spill of an interrupted run if its file is intact."""
        record = load_checkpoint(_checkpoint_path(path))
        if record is None:
            return None
        try:
            spill = cls.from_record(record | {"path": str(path)})
        except (KeyError, TypeError):  # not written by this version
            return None
        return spill if crc32_of(path) == (spill.size, spill.crc32) else None

    def remove(self) -> None:
        """Delete the file and its checkpoint."""
        for path in (_checkpoint_path(Path(self.path)), Path(self.path)):
            path.unlink(missing_ok=True)

    def row_lengths(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the destinations of the rows from ``first`` to ``last``, exclusive, and how many values each has."""
        fd = open_to_read(self.path)
        try:
            destinations, start = self._destinations(fd, first, last)
            position = 8 * (self.n_marks + self.n_rows + start)
            return destinations, np.diff(read_exact(fd, "i8", len(destinations) + 1, position))
        finally:
            os.close(fd)

    def read(self, first: int, last: int) -> SpillRows:
        """Read the rows of destinations ``first`` to ``last``, exclusive."""
        fd = open_to_read(self.path)
        try:
            return self._read(fd, first, last)
        finally:
            os.close(fd)

    def _destinations(self, fd: int, first: int, last: int) -> tuple[NDArray[np.int64], int]:
        """Destinations from ``first`` to ``last``, and the number of the first such row among those of the spill."""
        lo, hi = first // ROWS_PER_MARK, -(-last // ROWS_PER_MARK)
        marks = read_exact(fd, "i8", hi - lo + 1, 8 * lo)
        begin, count = int(marks[0]), int(marks[-1] - marks[0])
        destinations = read_exact(fd, "i8", count, 8 * (self.n_marks + begin))
        lo, hi = (int(n) for n in np.searchsorted(destinations, [first, last]))
        return destinations[lo:hi], begin + lo

    def _read(self, fd: int, first: int, last: int) -> SpillRows:
        destinations, row = self._destinations(fd, first, last)
        n_rows, position = len(destinations), 8 * (self.n_marks + self.n_rows)
        indptr = read_exact(fd, "i8", n_rows + 1, position + 8 * row)
        position += 8 * (self.n_rows + 1)
        start, nnz = int(indptr[0]), int(indptr[-1] - indptr[0])
        if not self.index_dtype:
            byte_offsets = read_exact(fd, "i8", n_rows + 1, position + 8 * row)
            position += 8 * (self.n_rows + 1) + int(byte_offsets[0])
            payload = read_exact(fd, "u1", int(byte_offsets[-1] - byte_offsets[0]), position)
            return SpillRows(destinations, indptr - start, byte_offsets - byte_offsets[0], payload)
        index_size, data_size = (np.dtype(dtype).itemsize for dtype in (self.index_dtype, self.data_dtype))
        indices = read_exact(fd, self.index_dtype, nnz, position + start * index_size)
        position += self.nnz * index_size
        data = read_exact(fd, self.data_dtype, nnz, position + start * data_size)
        return SpillRows(destinations, indptr - start, indices=indices, data=data)


def _checkpoint_path(spill: Path) -> Path:
    return spill.with_suffix(".json")


@kernel
def _pack(indptr: Any, indices: Any, data: Any, rows: Any, byte_offsets: Any, payload: Any) -> int:
    """Fill `byte_offsets` and `payload`; return the maximum, or -1 unless all rows are sorted small counts."""
    maximum: Any = 0
    for i in range(len(rows)):
        start = indptr[rows[i]]
        n = indptr[rows[i] + 1] - start
        position: Any = byte_offsets[i]
        cols, values = indices[start : start + n], data[start : start + n]
        steps, small = payload[position : position + n], payload[position + n : position + 2 * n]
        # Separate plain loops, so that the compiler vectorises each of them.
        n_unsorted: Any = 0
        n_inexact, n_large = 0, 0
        row_maximum: Any = np.uint16(0)
        if n:
            n_unsorted += (cols[0] < 0) | (cols[0] > 254)
            steps[0] = cols[0] + 1
        for k in range(1, n):
            n_unsorted += (cols[k] <= cols[k - 1]) | (cols[k] - cols[k - 1] > 255)
            steps[k] = cols[k] - cols[k - 1]
        for k in range(n):
            count: Any = np.uint16(np.int32(values[k]))
            n_inexact += count != values[k]  # fractions, negatives, NaN, and values beyond 16 bits
            n_large += count >= _ESCAPE
            row_maximum = max(row_maximum, count)
            small[k] = min(count, np.uint16(_ESCAPE))
        if n_unsorted or n_inexact:
            return -1
        position += 2 * n
        if n_large:
            for k in range(n):
                if small[k] == _ESCAPE:
                    count = np.uint16(np.int32(values[k]))
                    payload[position], payload[position + 1] = count & 255, count >> 8
                    position += 2
        maximum = max(maximum, np.int64(row_maximum))
        byte_offsets[i + 1] = position
    return maximum


@kernel
def _scatter_packed(
    rows: Any,
    indptr: Any,
    byte_offsets: Any,
    payload: Any,
    offsets: Any,
    n_filled: Any,
    out_indices: Any,
    out_data: Any,
) -> None:
    for i in range(len(rows)):
        n, position = indptr[i + 1] - indptr[i], byte_offsets[i]
        start = offsets[rows[i]] + n_filled[rows[i]]
        steps, small = payload[position : position + n], payload[position + n : position + 2 * n]
        cols, values = out_indices[start : start + n], out_data[start : start + n]
        column = np.int64(-1)
        for k in range(n):
            column += steps[k]
            cols[k] = column
        for k in range(n):
            values[k] = small[k]
        position += 2 * n
        if byte_offsets[i + 1] > position:
            for k in range(n):
                if small[k] == _ESCAPE:
                    values[k] = payload[position] + 256 * np.int64(payload[position + 1])
                    position += 2
        n_filled[rows[i]] += n


@kernel
def _scatter(
    rows: Any, indptr: Any, indices: Any, data: Any, offsets: Any, n_filled: Any, out_indices: Any, out_data: Any
) -> None:
    for i in range(len(rows)):
        n = indptr[i + 1] - indptr[i]
        start = offsets[rows[i]] + n_filled[rows[i]]
        from_indices, from_data = indices[indptr[i] :][:n], data[indptr[i] :][:n]
        to_indices, to_data = out_indices[start:][:n], out_data[start:][:n]
        for k in range(n):
            to_indices[k] = from_indices[k]
        for k in range(n):
            to_data[k] = from_data[k]
        n_filled[rows[i]] += n
