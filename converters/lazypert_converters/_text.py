"""Text files, plain or gzip-compressed, read as complete lines from any offset in bounded memory."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from lazypert.errors import SourceFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_READ_BYTES = 16 * 1024  # compressed: at most 16 MiB of text, since deflate shrinks data 1000-fold at best
TEXT_BLOCK_BYTES = 256 * 1024
_ACCESS_STEP = 8 * 1024**2
_MAX_ACCESS_POINTS = 256
ACCESS_POINTS_BYTES = _MAX_ACCESS_POINTS * 40 * 1024  # approximate size of an inflater


@dataclass(frozen=True, slots=True)
class _AccessPoint:
    """A position from which inflating can resume: text offset, file offset, and the inflater's state."""

    offset: int
    file_offset: int
    inflater: Any


class TextFile:
    """A text file. Safe to use from many threads; compared and pickled by its path.

    A gzip file can only be inflated from its beginning, so the inflater's state is kept every few mebibytes,
    and reading from an offset inflates the text since the last such access point. A process that has not
    read that far yet inflates from the beginning, with the same result.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_gzip = is_gzip(path)
        self._access_points = [_AccessPoint(0, 0, zlib.decompressobj(wbits=31))]
        self._step = _ACCESS_STEP
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return TextFile, (self.path,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextFile) and other.path == self.path

    def lines(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Yield blocks of complete lines with their text offsets, from byte `start` to byte `stop` of the text.

        Every block ends with a newline, even if the file does not.

        Raises
        ------
        SourceFormatError
            If compressed data is damaged or cut short, or a line is longer than a block.
        """
        pending, offset = b"", start
        for text in self._text(start, stop):
            pending += text
            if len(pending) < TEXT_BLOCK_BYTES:
                continue
            length = pending.rfind(b"\n") + 1
            if not length:
                raise SourceFormatError(
                    f"{str(self.path)!r} has a line of more than {TEXT_BLOCK_BYTES:,} bytes at byte {offset:,}, "
                    "expected lines of text. The file is damaged or has another format. No store was made."
                )
            yield offset, pending[:length]
            pending, offset = pending[length:], offset + length
        if pending:
            yield offset, pending if pending.endswith(b"\n") else pending + b"\n"

    def _text(self, start: int, stop: int | None) -> Iterator[bytes]:
        for offset, text in self._inflated(start) if self.is_gzip else self._plain(start):
            if stop is not None and offset >= stop:
                return
            wanted = text[max(0, start - offset) : None if stop is None else stop - offset]
            if wanted:
                yield wanted

    def _plain(self, start: int) -> Iterator[tuple[int, bytes]]:
        with self.path.open("rb") as file:
            file.seek(start)
            while text := file.read(TEXT_BLOCK_BYTES):
                yield start, text
                start += len(text)

    def _inflated(self, start: int) -> Iterator[tuple[int, bytes]]:
        with self._lock:
            point = next(point for point in reversed(self._access_points) if point.offset <= start)
            inflater = point.inflater.copy()
        offset, in_member = point.offset, point.file_offset > 0
        with self.path.open("rb") as file:
            file.seek(point.file_offset)
            while raw := file.read(_READ_BYTES):
                while raw := raw if in_member else raw.lstrip(b"\0"):
                    in_member = True
                    try:
                        text = inflater.decompress(raw)
                    except zlib.error as error:
                        raise self._damaged(f"is damaged after {offset:,} bytes of text ({error})") from error
                    yield offset, text
                    offset += len(text)
                    raw = inflater.unused_data
                    if inflater.eof:  # another member may follow, or zeros that pad a tape block
                        inflater, in_member = zlib.decompressobj(wbits=31), False
                if in_member:
                    self._add_access_point(offset, file.tell(), inflater)
        if in_member:
            raise self._damaged(f"ends in the middle of its data, after {offset:,} bytes of text")

    def _add_access_point(self, offset: int, file_offset: int, inflater: Any) -> None:
        with self._lock:
            if offset < self._access_points[-1].offset + self._step:
                return
            self._access_points.append(_AccessPoint(offset, file_offset, inflater.copy()))
            if len(self._access_points) > _MAX_ACCESS_POINTS:
                self._access_points = self._access_points[::2]
                self._step *= 2

    def _damaged(self, got: str) -> SourceFormatError:
        return SourceFormatError(
            f"{str(self.path)!r} {got}, expected a complete gzip file. It was probably cut short by a download or a "
            "full disk; get it again. No store was made."
        )


def is_gzip(path: Path) -> bool:
    """Whether a file begins with the gzip signature."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def invalid_file(path: Path, format: str, got: str, expected: str) -> SourceFormatError:  # noqa: A002
    """Make the error for a text file that is not valid; `got` continues a sentence that begins with "it"."""
    return SourceFormatError(
        f"{str(path)!r} is not a valid {format}: it {got}, expected {expected}. "
        "The file is damaged or was written by a faulty tool; get it again. No store was made."
    )
