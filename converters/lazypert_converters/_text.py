"""Text files, plain or gzip-compressed, read by whole lines from any offset in bounded memory."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from lazypert.errors import SourceFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_RAW = 16 * 1024  # compressed bytes read at once: at most 16 MiB of text, since deflate shrinks 1000-fold at best
BLOCK = 256 * 1024
_MARK_STEP = 8 * 1024**2
_MAX_MARKS = 256
MARKS_BYTES = _MAX_MARKS * 40 * 1024  # about what an inflater keeps


@dataclass(frozen=True, slots=True)
class _Mark:
    """A place in a gzip file to go on from: offsets in the text and in the file, and the inflater there."""

    offset: int
    in_file: int
    inflater: Any


class TextFile:
    """A text file. Safe to use from many threads; equal and pickled by its path.

    A gzip file can only be read from its beginning, so the inflater's state is kept every few
    mebibytes, and a piece costs the text since the last such mark. A process that has not
    passed a piece's place before gets there by reading from the beginning, with the same result.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self.is_gzip = file.read(2) == b"\x1f\x8b"
        self._marks = [_Mark(0, 0, zlib.decompressobj(wbits=31))]
        self._step = _MARK_STEP
        self._lock = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return TextFile, (self.path,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextFile) and other.path == self.path

    def lines(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Blocks of whole lines, each with its offset in the text, from `start` to `stop` bytes.

        Every block ends with a line's end, also where the file does not.

        Raises
        ------
        SourceFormatError
            When compressed data is damaged or cut short, or a line is longer than a block.
        """
        held, offset = b"", start
        for piece in self._pieces(start, stop):
            held += piece
            if len(held) < BLOCK:
                continue
            cut = held.rfind(b"\n") + 1
            if not cut:
                raise SourceFormatError(
                    f"{str(self.path)!r} has a line of more than {BLOCK:,} bytes at byte {offset:,}, expected lines "
                    "of text. The file is damaged or of another format. No store was made."
                )
            yield offset, held[:cut]
            held, offset = held[cut:], offset + cut
        if held:
            yield offset, held if held.endswith(b"\n") else held + b"\n"

    def _pieces(self, start: int, stop: int | None) -> Iterator[bytes]:
        for offset, text in self._inflated(start) if self.is_gzip else self._plain(start):
            if stop is not None and offset >= stop:
                return
            piece = text[max(0, start - offset) : None if stop is None else stop - offset]
            if piece:
                yield piece

    def _plain(self, start: int) -> Iterator[tuple[int, bytes]]:
        with self.path.open("rb") as file:
            file.seek(start)
            while text := file.read(BLOCK):
                yield start, text
                start += len(text)

    def _inflated(self, start: int) -> Iterator[tuple[int, bytes]]:
        with self._lock:
            mark = next(mark for mark in reversed(self._marks) if mark.offset <= start)
            inflater = mark.inflater.copy()
        offset, in_member = mark.offset, mark.in_file > 0
        with self.path.open("rb") as file:
            file.seek(mark.in_file)
            while raw := file.read(_RAW):
                while raw := raw if in_member else raw.lstrip(b"\0"):
                    in_member = True
                    try:
                        text = inflater.decompress(raw)
                    except zlib.error as error:
                        raise self._damaged(f"is damaged after {offset:,} bytes of text ({error})") from error
                    yield offset, text
                    offset += len(text)
                    raw = inflater.unused_data
                    if inflater.eof:  # another member may follow, or zeros that fill a block of tape
                        inflater, in_member = zlib.decompressobj(wbits=31), False
                if in_member:
                    self._remember(offset, file.tell(), inflater)
        if in_member:
            raise self._damaged(f"ends in the middle of its data, after {offset:,} bytes of text")

    def _remember(self, offset: int, in_file: int, inflater: Any) -> None:
        with self._lock:
            if offset < self._marks[-1].offset + self._step:
                return
            self._marks.append(_Mark(offset, in_file, inflater.copy()))
            if len(self._marks) > _MAX_MARKS:
                self._marks = self._marks[::2]
                self._step *= 2

    def _damaged(self, what: str) -> SourceFormatError:
        return SourceFormatError(
            f"{str(self.path)!r} {what}, expected a complete gzip file. It was probably cut short by a download or a "
            "full disk; get it again. No store was made."
        )
