"""A reader that records which bytes of a store are read."""

from dataclasses import dataclass
from typing import ClassVar

from lazypert.store.byte_reader import LocalReader


@dataclass(frozen=True)
class CountingReader(LocalReader):
    """Records which bytes of which files are read."""

    has_files: bool = False  # so that everything is read through `read_ranges`
    seen: ClassVar[list] = []  # shared, because readers are copied

    def read_ranges(self, ranges, out):
        self.seen.extend((key, length) for key, _, length in ranges)
        return super().read_ranges(ranges, out)
