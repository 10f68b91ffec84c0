"""Matrix Market coordinate files: their header, their entries, and where the entries of each row begin."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lazypert.converter import kernel
from lazypert.errors import SourceFormatError
from lazypert_converters._text import invalid_file

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert_converters._text import TextFile

BANNER = b"%%MatrixMarket"
SHORTEST_ENTRY = len("1 1 1\n")
_FORMAT = "Matrix Market file"
_DTYPES = {"integer": np.dtype("i8"), "real": np.dtype("f8")}
_POWERS_OF_TEN = np.array([float(f"1e{n}") for n in range(23)])  # all exact
_VALID, _MALFORMED, _OUT_OF_RANGE = 0, 1, 2
_SPACE, _TAB, _NEWLINE, _RETURN, _PLUS, _MINUS, _POINT, _ZERO, _NINE = b" \t\n\r+-.09"
_UPPER_E, _LOWER_E = b"Ee"


@dataclass(frozen=True, slots=True)
class Header:
    """Rows, columns, entries, dtype, and the text offset at which the entries begin."""

    n_rows: int
    n_cols: int
    nnz: int
    dtype: np.dtype[Any]
    body: int


class Entries(NamedTuple):
    """Entries with rows and columns numbered from 0, and the text offset of each entry's line."""

    row: NDArray[np.int32]
    col: NDArray[np.int32]
    value: NDArray[Any]
    offset: NDArray[np.int64]


def read_header(text: TextFile) -> Header:
    """Read the banner, skip comments, and read the size line.

    Raises
    ------
    SourceFormatError
        If the file is not a general coordinate matrix of integers or reals.
    """
    dtype = None
    for start, block in text.lines():
        offset = start
        for line in block.splitlines(keepends=True):
            if dtype is None:
                dtype = _read_banner(text.path, line)
            elif line.strip() and not line.startswith(b"%"):
                sizes = line.split()
                if len(sizes) != 3 or not all(size.isdigit() for size in sizes):
                    expected = "three numbers: rows, columns, entries"
                    raise invalid_file(text.path, _FORMAT, f"has {_excerpt(line)} as its size line", expected)
                n_rows, n_cols, nnz = map(int, sizes)
                if max(n_rows, n_cols) >= 2**31:
                    got = f"is a matrix of {n_rows:,} x {n_cols:,}"
                    raise invalid_file(text.path, _FORMAT, got, "fewer than 2^31 rows and columns")
                return Header(n_rows, n_cols, nnz, dtype, offset + len(line))
            offset += len(line)
    raise invalid_file(text.path, _FORMAT, "ends before the size line", "rows, columns and entries")


def _read_banner(path: Path, line: bytes) -> np.dtype[Any]:
    words = line.decode("latin-1").lower().split()
    if len(words) != 5 or words[0] != BANNER.decode().lower():
        expected = "'%%MatrixMarket matrix coordinate integer general'"
        raise invalid_file(path, _FORMAT, f"begins with {_excerpt(line)}", expected)
    if words[1:3] != ["matrix", "coordinate"] or words[3] not in _DTYPES or words[4] != "general":
        raise SourceFormatError(
            f"{str(path)!r} is a Matrix Market file of type {' '.join(words[1:])!r}, expected 'matrix coordinate "
            "integer general' or 'matrix coordinate real general', as in 10x files. Write it again: "
            "scipy.io.mmwrite(path, scipy.sparse.csc_array(matrix), symmetry='general'). No store was made."
        )
    return _DTYPES[words[3]]


def parse(path: Path, header: Header, block: bytes, offset: int) -> Entries:
    """Parse and check complete lines of entries; the block begins at `offset` in the text.

    Integers are exact up to 64 bits, and reals are correctly rounded to 64 bits, as in Python.
    """
    size = len(block) // SHORTEST_ENTRY + 1
    row, col = np.empty(size, dtype=np.int32), np.empty(size, dtype=np.int32)
    value, start = np.empty(size, dtype=header.dtype), np.empty(size, dtype=np.int64)
    is_slow = np.zeros(size, dtype=np.bool_)
    text = np.frombuffer(block, dtype=np.uint8)
    count, state, line = _parse(
        text, header.n_rows, header.n_cols, header.dtype.kind == "i", row, col, value, start, is_slow
    )
    if state != _VALID:
        raise _invalid_entry(path, header, block[line : block.index(b"\n", line)], offset + line, state)
    convert = int if header.dtype.kind == "i" else float
    for k in np.flatnonzero(is_slow[:count]):
        token = block[start[k] :].split(maxsplit=3)[2] if k + 1 == count else block[start[k] : start[k + 1]].split()[2]
        try:
            if b"_" in token:  # Python accepts underscores in numbers
                raise ValueError(token)
            value[k] = convert(token)
        except (ValueError, OverflowError) as error:
            text_of_line = block[start[k] : block.index(b"\n", start[k])]
            raise _invalid_entry(path, header, text_of_line, offset + int(start[k]), _MALFORMED) from error
    return Entries(row[:count], col[:count], value[:count], start[:count] + offset)


def _invalid_entry(path: Path, header: Header, line: bytes, offset: int, state: int) -> SourceFormatError:
    if state == _OUT_OF_RANGE:
        expected = f"a row from 1 to {header.n_rows:,} and a column from 1 to {header.n_cols:,}"
    else:
        number = "an integer of at most 64 bits" if header.dtype.kind == "i" else "a number"
        expected = f"row, column and {number}"
    return invalid_file(path, _FORMAT, f"has the entry {_excerpt(line)} at byte {offset:,} of the text", expected)


@dataclass
class MajorIndex:
    """Where the entries of each row (or column) begin, provided that the file is sorted by it.

    Attributes
    ----------
    first
        (n + 1,) int64 number of the first entry.
    offset
        (n + 1,) int64 text offset of the first entry.
    unsorted_at
        Number of the first entry that follows one of a later row; None if the file is sorted.
    """

    n: int
    first: NDArray[np.int64] = field(init=False)
    offset: NDArray[np.int64] = field(init=False)
    unsorted_at: int | None = None
    _last: int = -1

    def __post_init__(self) -> None:
        self.first = np.full(self.n + 1, np.iinfo(np.int64).max)
        self.offset = self.first.copy()

    def add(self, major: NDArray[np.int32], offset: NDArray[np.int64], n_before: int) -> None:
        """Add the next entries, which follow `n_before` others."""
        if self.unsorted_at is not None or not len(major):
            return
        step = np.diff(major, prepend=np.int32(self._last))
        if (step < 0).any():
            self.unsorted_at = n_before + int(np.argmax(step < 0))
            return
        new = np.flatnonzero(step)
        self.first[major[new]] = n_before + new
        self.offset[major[new]] = offset[new]
        self._last = int(major[-1])

    def finish(self, nnz: int, end: int) -> None:
        """Let rows without entries begin where the next row does."""
        self.first[-1], self.offset[-1] = nnz, end
        self.first = np.minimum.accumulate(self.first[::-1])[::-1]
        self.offset = np.minimum.accumulate(self.offset[::-1])[::-1]


def scan(text: TextFile, header: Header) -> tuple[MajorIndex, MajorIndex]:
    """Read and check every entry once, and index the rows and the columns.

    Needs memory for a few mebibytes of text, and 32 bytes per row and column.

    Raises
    ------
    SourceFormatError
        If an entry is invalid or the number of entries differs from the header.
    """
    rows, cols = MajorIndex(header.n_rows), MajorIndex(header.n_cols)
    n_entries, end = 0, header.body
    for offset, block in text.lines(header.body):
        entries = parse(text.path, header, block, offset)
        rows.add(entries.row, entries.offset, n_entries)
        cols.add(entries.col, entries.offset, n_entries)
        n_entries += len(entries.value)
        end = offset + len(block)
    if n_entries != header.nnz:
        expected = f"{header.nnz:,}, the third number of its size line"
        raise invalid_file(text.path, _FORMAT, f"has {n_entries:,} entries", expected)
    rows.finish(n_entries, end)
    cols.finish(n_entries, end)
    return rows, cols


def _excerpt(line: bytes) -> str:
    text = line.rstrip().decode("utf-8", "replace")
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


@kernel
def _parse_fraction(text: Any, i: int, mantissa: int, digits: int) -> Any:
    """Parse what follows the integer part of a real; return (mantissa, exponent, is_simple, end).

    A simple number has up to 15 digits and a power of ten up to 22: one exact operation on exact floats, hence
    correctly rounded. All other numbers are left to Python.
    """
    exponent = 0
    if text[i] == _POINT:
        i += 1
        while _ZERO <= text[i] <= _NINE:
            if digits < 18:
                mantissa = mantissa * 10 + (text[i] - _ZERO)
            digits += 1
            exponent -= 1
            i += 1
    is_simple = digits <= 15
    if is_simple and (text[i] == _UPPER_E or text[i] == _LOWER_E):
        i += 1
        is_down = text[i] == _MINUS
        if text[i] == _MINUS or text[i] == _PLUS:
            i += 1
        power, n = 0, 0
        while _ZERO <= text[i] <= _NINE:
            if n < 4:
                power = power * 10 + (text[i] - _ZERO)
            n += 1
            i += 1
        is_simple = 0 < n <= 4
        exponent += -power if is_down else power
    return mantissa, exponent, is_simple and -22 <= exponent <= 22, i


@kernel
def _parse(
    text: Any, n_rows: int, n_cols: int, is_integer: bool, row: Any, col: Any, value: Any, start: Any, is_slow: Any
) -> Any:
    """Parse lines of ``row column value``; return the entries, the state, and the start of the line that failed."""
    count, i, end = 0, 0, len(text)
    while i < end:
        line = i
        while text[i] == _SPACE or text[i] == _TAB or text[i] == _RETURN:
            i += 1
        if text[i] == _NEWLINE:
            i += 1
            continue
        for axis in range(2):
            number, digits = 0, 0
            while _ZERO <= text[i] <= _NINE:
                if number < 2**31:
                    number = number * 10 + (text[i] - _ZERO)
                digits += 1
                i += 1
            if digits == 0 or not (text[i] == _SPACE or text[i] == _TAB):
                return count, _MALFORMED, line
            if number < 1 or number > (n_rows if axis == 0 else n_cols):
                return count, _OUT_OF_RANGE, line
            if axis == 0:
                row[count] = number - 1
            else:
                col[count] = number - 1
            while text[i] == _SPACE or text[i] == _TAB:
                i += 1
        is_negative = text[i] == _MINUS
        if text[i] == _MINUS or text[i] == _PLUS:
            i += 1
        mantissa, digits, exponent = 0, 0, 0
        while _ZERO <= text[i] <= _NINE:
            if digits < 18:
                mantissa = mantissa * 10 + (text[i] - _ZERO)
            digits += 1
            i += 1
        is_simple = 0 < digits <= (18 if is_integer else 15)
        if is_simple and not is_integer and text[i] >= _POINT:
            mantissa, exponent, is_simple, i = _parse_fraction(text, i, mantissa, digits)
        is_simple = is_simple and (text[i] == _SPACE or _TAB <= text[i] <= _NEWLINE or text[i] == _RETURN)
        if is_simple and is_integer:
            value[count] = -mantissa if is_negative else mantissa
        elif is_simple:
            size = mantissa / _POWERS_OF_TEN[-exponent] if exponent < 0 else mantissa * _POWERS_OF_TEN[exponent]
            value[count] = -size if is_negative else size
        else:
            while not (text[i] == _SPACE or _TAB <= text[i] <= _NEWLINE or text[i] == _RETURN):
                i += 1
        if text[i - 1] == _SPACE or text[i - 1] == _TAB:
            return count, _MALFORMED, line
        is_slow[count] = not is_simple
        while text[i] == _SPACE or text[i] == _TAB or text[i] == _RETURN:
            i += 1
        if text[i] != _NEWLINE:
            return count, _MALFORMED, line
        start[count] = line
        i, count = i + 1, count + 1
    return count, _VALID, 0
