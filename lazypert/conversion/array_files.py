"""Temporary files of several arrays, each with a checkpoint, and long arrays that are spread over such files."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lazypert._internal.files import crc32_of, open_to_read, read_exact, write_atomic
from lazypert.conversion.checkpoints import load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """A file of arrays, one after another.

    Attributes
    ----------
    arrays
        Dtype, length and offset in bytes of each array. Rows of a two-dimensional array are elements.
    size, crc32
        Size and CRC-32 of the file.
    notes
        What else its task found out; JSON.
    """

    path: str
    arrays: dict[str, tuple[Any, int, int]]
    size: int
    crc32: int
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def write(cls, path: Path, arrays: Mapping[str, NDArray[Any]], notes: dict[str, Any] | None = None) -> ArrayFile:
        """Write arrays to a file, and a checkpoint beside it."""
        found: dict[str, tuple[Any, int, int]] = {}
        offset = 0
        for name, array in arrays.items():
            found[name] = [array.dtype.str, list(array.shape[1:])], len(array), offset
            offset += array.nbytes
        contents = (
            np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in arrays.values() if array.nbytes
        )
        size, crc = write_atomic(path, contents)
        file = cls(str(path), found, size, crc, notes or {})
        save_checkpoint(_checkpoint_path(path), asdict(file))
        return file

    @classmethod
    def from_checkpoint(cls, path: Path) -> ArrayFile | None:
        """Return the file of an interrupted run if it is intact."""
        record = load_checkpoint(_checkpoint_path(path))
        if record is None:
            return None
        try:
            file = cls(**(record | {"path": str(path)}))
        except TypeError:  # not written by this version
            return None
        return file if crc32_of(path) == (file.size, file.crc32) else None

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read elements ``start`` to ``stop`` of an array."""
        (base, shape), length, offset = self.arrays[name]
        dtype, width = np.dtype(base), int(np.prod(shape, dtype=np.int64))
        stop = length if stop is None else stop
        fd = open_to_read(self.path)
        try:
            values = read_exact(fd, dtype, (stop - start) * width, offset + start * width * dtype.itemsize)
        finally:
            os.close(fd)
        return values.reshape(stop - start, *shape)

    def remove(self) -> None:
        """Delete the file and its checkpoint."""
        for path in (_checkpoint_path(Path(self.path)), Path(self.path)):
            path.unlink(missing_ok=True)


def _checkpoint_path(path: Path) -> Path:
    return path.with_suffix(".json")


class CellNumbers(Protocol):
    """(n,) numbers, one per cell, that are read when they are needed. Picklable."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """(stop - start,) numbers."""
        ...


@dataclass(frozen=True)
class Counting:
    """The numbers 0, 1, 2, ..."""

    length: int
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.length

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """(stop - start,) numbers."""
        return np.arange(start, stop, dtype=self.dtype)


@dataclass(frozen=True, eq=False)
class InMemory:
    """Numbers in memory."""

    numbers: NDArray[Any]

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """(stop - start,) numbers."""
        return self.numbers[start:stop]


@dataclass(frozen=True, eq=False)
class Spread:
    """Numbers in several files, which follow one another.

    Attributes
    ----------
    name
        Array of every file.
    bounds
        (n_files + 1,) number of the first cell of each file, and of all cells.
    """

    files: Sequence[ArrayFile]
    name: str
    bounds: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """(stop - start,) numbers."""
        if stop <= start:
            return self.files[0].read(self.name, 0, 0)
        first = max(0, int(np.searchsorted(self.bounds, start, side="right")) - 1)
        last = max(first + 1, int(np.searchsorted(self.bounds, stop, side="left")))
        parts = [
            self.files[k].read(
                self.name, max(0, start - int(self.bounds[k])), min(stop, int(self.bounds[k + 1])) - int(self.bounds[k])
            )
            for k in range(first, min(last, len(self.files)))
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
