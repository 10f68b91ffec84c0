"""Matrix Market files of coordinates: the header, the entries, and in which order these come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lazypert.converter import kernel
from lazypert.errors import SourceFormatError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from lazypert_converters._text import TextFile

BANNER = b"%%MatrixMarket"
_FIELDS = {"integer": np.dtype("i8"), "real": np.dtype("f8")}
SHORTEST_ENTRY = len("1 1 1\n")
_POWERS = np.array([float(f"1e{n}") for n in range(23)])  # all exact
_FINE, _MALFORMED, _OUT_OF_RANGE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Header:
    """What the first lines say: rows, columns, entries, and where the entries begin in the text."""

    n_rows: int
    n_cols: int
    nnz: int
    dtype: np.dtype[Any]
    body: int


class Entries(NamedTuple):
    """Some entries, numbered from 0, each with where its line begins."""

    row: NDArray[np.int32]
    col: NDArray[np.int32]
    value: NDArray[Any]
    offset: NDArray[np.int64]


def read_header(text: TextFile) -> Header:
    """Read the banner, skip comments, and read the line of sizes.

    Raises
    ------
    SourceFormatError
        When these are not those of a general matrix of coordinates with integers or reals.
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
                    raise bad(text.path, f"has {_shown(line)} as its sizes", "three numbers: rows, columns, entries")
                n_rows, n_cols, nnz = map(int, sizes)
                if max(n_rows, n_cols) >= 2**31:
                    raise bad(text.path, f"is of {n_rows:,} x {n_cols:,}", "fewer than 2^31 rows and columns")
                return Header(n_rows, n_cols, nnz, dtype, offset + len(line))
            offset += len(line)
    raise bad(text.path, "ends before the line of sizes", "rows, columns and entries")


def _read_banner(path: Path, line: bytes) -> np.dtype[Any]:
    words = line.decode("latin-1").lower().split()
    if len(words) != 5 or words[0] != BANNER.decode().lower():
        raise bad(path, f"begins with {_shown(line)}", "'%%MatrixMarket matrix coordinate integer general'")
    if words[1:3] != ["matrix", "coordinate"] or words[3] not in _FIELDS or words[4] != "general":
        raise SourceFormatError(
            f"{str(path)!r} is a Matrix Market file of the kind {' '.join(words[1:])!r}, expected 'matrix coordinate "
            "integer general' or '... real general', which 10x files are. Write it again: "
            "scipy.io.mmwrite(path, scipy.sparse.csc_array(matrix), symmetry='general'). No store was made."
        )
    return _FIELDS[words[3]]


def parse(path: Path, header: Header, block: bytes, offset: int) -> Entries:
    """Read whole lines of entries and check each of them.

    Integers are exact up to 64 bits, reals are correctly rounded to 64 bits, as Python does.
    """
    size = len(block) // SHORTEST_ENTRY + 1
    row, col = np.empty(size, dtype=np.int32), np.empty(size, dtype=np.int32)
    value, at = np.empty(size, dtype=header.dtype), np.empty(size, dtype=np.int64)
    is_slow = np.zeros(size, dtype=np.bool_)
    text = np.frombuffer(block, dtype=np.uint8)
    count, state, line = _parse(
        text, header.n_rows, header.n_cols, header.dtype.kind == "i", row, col, value, at, is_slow
    )
    if state != _FINE:
        raise _bad_line(path, header, block[line : block.index(b"\n", line)], offset + line, state)
    convert = int if header.dtype.kind == "i" else float
    for k in np.flatnonzero(is_slow[:count]):
        token = block[at[k] :].split(maxsplit=3)[2] if k + 1 == count else block[at[k] : at[k + 1]].split()[2]
        try:
            if b"_" in token:  # Python takes these in numbers
                raise ValueError(token)
            value[k] = convert(token)
        except (ValueError, OverflowError) as error:
            whole = block[at[k] : block.index(b"\n", at[k])]
            raise _bad_line(path, header, whole, offset + int(at[k]), _MALFORMED) from error
    return Entries(row[:count], col[:count], value[:count], at[:count] + offset)


def _bad_line(path: Path, header: Header, line: bytes, offset: int, state: int) -> SourceFormatError:
    if state == _OUT_OF_RANGE:
        expected = f"a row from 1 to {header.n_rows:,} and a column from 1 to {header.n_cols:,}"
    else:
        kind = "an integer of at most 64 bits" if header.dtype.kind == "i" else "a number"
        expected = f"row, column and {kind}"
    return bad(path, f"has the entry {_shown(line)} at byte {offset:,} of the text", expected)


@dataclass
class Order:
    """Where the entries of each row (or column) begin, as long as these come in order.

    Attributes
    ----------
    first
        (n + 1,) int64 number of the first entry.
    offset
        (n + 1,) int64 where it is in the text.
    fault
        The first entry that comes after one of a later row, or None.
    """

    n: int
    first: NDArray[np.int64] = field(init=False)
    offset: NDArray[np.int64] = field(init=False)
    fault: int | None = None
    _last: int = -1

    def __post_init__(self) -> None:
        self.first = np.full(self.n + 1, np.iinfo(np.int64).max)
        self.offset = self.first.copy()

    def add(self, major: NDArray[np.int32], offset: NDArray[np.int64], seen: int) -> None:
        """Take the next entries, after `seen` others."""
        if self.fault is not None or not len(major):
            return
        step = np.diff(major, prepend=np.int32(self._last))
        if (step < 0).any():
            self.fault = seen + int(np.argmax(step < 0))
            return
        new = np.flatnonzero(step)
        self.first[major[new]] = seen + new
        self.offset[major[new]] = offset[new]
        self._last = int(major[-1])

    def finish(self, nnz: int, end: int) -> None:
        """Rows without entries begin where the next one does."""
        self.first[-1], self.offset[-1] = nnz, end
        self.first = np.minimum.accumulate(self.first[::-1])[::-1]
        self.offset = np.minimum.accumulate(self.offset[::-1])[::-1]


def scan(text: TextFile, header: Header) -> tuple[Order, Order]:
    """Read and check every entry once: the order of the rows and that of the columns.

    Memory is that of a few mebibytes of text and of 32 bytes a row and a column.

    Raises
    ------
    SourceFormatError
        When an entry is not valid or there are not as many as the header says.
    """
    rows, cols = Order(header.n_rows), Order(header.n_cols)
    seen, end = 0, header.body
    for offset, block in text.lines(header.body):
        entries = parse(text.path, header, block, offset)
        rows.add(entries.row, entries.offset, seen)
        cols.add(entries.col, entries.offset, seen)
        seen += len(entries.value)
        end = offset + len(block)
    if seen != header.nnz:
        raise bad(text.path, f"has {seen:,} entries", f"{header.nnz:,}, as its third line of numbers says")
    rows.finish(seen, end)
    cols.finish(seen, end)
    return rows, cols


def bad(path: Path, got: str, expected: str) -> SourceFormatError:
    """Make the error of a file that is not valid."""
    return SourceFormatError(
        f"{str(path)!r} is not a valid Matrix Market file: it {got}, expected {expected}. "
        "The file is damaged or was written by a faulty tool; get it again. No store was made."
    )


def _shown(line: bytes) -> str:
    shown = line.rstrip().decode("utf-8", "replace")
    return repr(shown if len(shown) <= 60 else f"{shown[:60]}...")


@kernel
def _parse(
    text: Any, n_rows: int, n_cols: int, is_integer: bool, row: Any, col: Any, value: Any, at: Any, is_slow: Any
) -> Any:
    """Read lines of ``row column value``: (entries, state, where the line that stopped it begins)."""
    count, i, end = 0, 0, len(text)
    while i < end:
        line = i
        while text[i] == 32 or text[i] == 9 or text[i] == 13:
            i += 1
        if text[i] == 10:
            i += 1
            continue
        for axis in range(2):
            number, digits = 0, 0
            while 48 <= text[i] <= 57:
                if number < 2**31:
                    number = number * 10 + (text[i] - 48)
                digits += 1
                i += 1
            if digits == 0 or not (text[i] == 32 or text[i] == 9):
                return count, _MALFORMED, line
            if number < 1 or number > (n_rows if axis == 0 else n_cols):
                return count, _OUT_OF_RANGE, line
            if axis == 0:
                row[count] = number - 1
            else:
                col[count] = number - 1
            while text[i] == 32 or text[i] == 9:
                i += 1
        # A decimal number: up to 15 digits times a power of ten up to 22 is one exact operation on exact
        # floats, hence correctly rounded. Whatever else is left to Python.
        negative = text[i] == 45
        if text[i] == 45 or text[i] == 43:
            i += 1
        mantissa, digits, exponent = 0, 0, 0
        while 48 <= text[i] <= 57:
            if digits < 18:
                mantissa = mantissa * 10 + (text[i] - 48)
            digits += 1
            i += 1
        simple = 0 < digits <= (18 if is_integer else 15)
        if not is_integer and simple:
            if text[i] == 46:
                i += 1
                while 48 <= text[i] <= 57:
                    if digits < 18:
                        mantissa = mantissa * 10 + (text[i] - 48)
                    digits += 1
                    exponent -= 1
                    i += 1
                simple = digits <= 15
            if simple and (text[i] == 101 or text[i] == 69):
                i += 1
                down = text[i] == 45
                if text[i] == 45 or text[i] == 43:
                    i += 1
                power, n = 0, 0
                while 48 <= text[i] <= 57:
                    if n < 4:
                        power = power * 10 + (text[i] - 48)
                    n += 1
                    i += 1
                simple = 0 < n <= 4
                exponent += -power if down else power
            simple = simple and -22 <= exponent <= 22
        simple = simple and (text[i] == 32 or text[i] == 9 or text[i] == 13 or text[i] == 10)
        if simple and is_integer:
            value[count] = -mantissa if negative else mantissa
        elif simple:
            size = mantissa / _POWERS[-exponent] if exponent < 0 else mantissa * _POWERS[exponent]
            value[count] = -size if negative else size
        else:
            while not (text[i] == 32 or text[i] == 9 or text[i] == 13 or text[i] == 10):
                i += 1
        if text[i - 1] == 32 or text[i - 1] == 9:
            return count, _MALFORMED, line
        is_slow[count] = not simple
        while text[i] == 32 or text[i] == 9 or text[i] == 13:
            i += 1
        if text[i] != 10:
            return count, _MALFORMED, line
        i += 1
        at[count] = line
        count += 1
    return count, _FINE, 0
