"""A file as a tree of groups and arrays, whether it is HDF5 or Zarr: what every reader stands on.

Nothing here knows a format of screens. A place that cannot be read is a `SourceFormatError` that
names the file and the place, whatever the library below raised.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.errors import SourceFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray

NUMBERS = "fiub"
_ADVICE = "The file is damaged or was written by a faulty tool; write it again."


class Tree(ABC):
    """A file that is opened anew at each use, so that readers can be pickled and shared by threads.

    Attributes
    ----------
    kind
        What the file is, for messages.
    """

    path: Path
    kind: str

    @abstractmethod
    def root(self) -> AbstractContextManager[Group]:
        """Open the file for as long as the context lasts."""

    def fault(self, where: str, got: str, expected: str, advice: str = _ADVICE) -> SourceFormatError:
        """Make the error of a place in the file."""
        return SourceFormatError(
            f"{str(self.path)!r} is not a valid {self.kind} at {where or '/'!r}: it {got}, expected {expected}. "
            f"{advice} No store was made."
        )


class Node(ABC):
    """A group or an array, with attributes.

    Attributes
    ----------
    where
        Its path inside the file, without a slash before it; empty for the root.
    """

    tree: Tree
    where: str

    def fault(self, got: str, expected: str, advice: str = _ADVICE) -> SourceFormatError:
        """Make the error of this place."""
        return self.tree.fault(self.where, got, expected, advice)

    @abstractmethod
    def attributes(self) -> dict[str, Any]:
        """All attributes as they are; references to other objects as their paths."""

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute: text for text, a list for an array, whatever the library gives."""
        value = self.attributes().get(name, default)
        if isinstance(value, np.ndarray | list | tuple):
            return [_text(item) for item in np.asarray(value, dtype=object).ravel().tolist()]
        return _text(value)

    @property
    def encoding(self) -> tuple[str, str]:
        """AnnData's ``encoding-type`` and ``encoding-version``; empty where there are none."""
        found = self.attributes()
        return str(_text(found.get("encoding-type", ""))), str(_text(found.get("encoding-version", "")))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what the library below raises into an error of this place."""
        try:
            yield
        except SourceFormatError:
            raise
        except UnicodeDecodeError as error:
            raise self.fault(f"holds text that is not UTF-8 ({error})", "UTF-8") from error
        except Exception as error:  # the kinds differ from library to library and from version to version
            said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise self.fault(f"cannot be read ({said})", "intact values") from error


class Array(Node):
    """An array whose values are read in pieces.

    Attributes
    ----------
    shape
        Empty for a scalar.
    dtype
        As in the file; for text it says nothing.
    kind
        ``"number"`` (of at most 64 bits), ``"text"``, ``"record"`` or ``"other"``.
    chunks
        Shape of what is decompressed at once; None when values lie in the file as they are.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    kind: str
    chunks: tuple[int, ...] | None

    @abstractmethod
    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows `start` to `stop`: numbers in this machine's byte order, text as str objects."""

    @abstractmethod
    def tile(self, rows: slice, cols: slice) -> NDArray[Any]:
        """Part of a two-dimensional array, in this machine's byte order."""

    @abstractmethod
    def read_field(self, name: str, start: int, stop: int | None) -> NDArray[Any]:
        """Rows of one field of records."""

    @abstractmethod
    def missing(self) -> list[tuple[int, int]]:
        """Ranges of a one-dimensional array that were never written: they would read as zeros."""

    @property
    @abstractmethod
    def scratch_bytes(self) -> int:
        """Bytes held while a piece is read, beside the piece: chunks, compressed and not."""

    def field(self, name: str) -> Field:
        """One field of an array of records, as an array."""
        return Field(self, name)

    def vector(self, expected: str = "an array of one dimension") -> Array:
        """Itself, if it has one dimension."""
        if len(self.shape) != 1:
            raise self.fault(f"is an array of shape {self.shape}", expected)
        return self


class Field(Array):
    """A field of an array of records."""

    def __init__(self, records: Array, name: str) -> None:
        self._records, self._name = records, name
        self.tree, self.where = records.tree, f"{records.where}/{name}"
        dtype = records.dtype[name]
        self.dtype, self.shape = dtype.base, records.shape + dtype.shape
        self.kind = kind_of(self.dtype)
        self.chunks = records.chunks

    def attributes(self) -> dict[str, Any]:
        """Fields have none."""
        return {}

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows of the field."""
        return self._records.read_field(self._name, start, stop)

    def tile(self, rows: slice, cols: slice) -> NDArray[Any]:
        """Part of a field of vectors."""
        return self.read(rows.start, rows.stop)[:, cols]

    def read_field(self, name: str, start: int, stop: int | None) -> NDArray[Any]:
        """Records inside records are never asked for."""
        raise self.fault("holds records", f"no records inside records ({name}, {start}, {stop})")

    def missing(self) -> list[tuple[int, int]]:
        """Unknown: a field is a part of every chunk."""
        return []

    @property
    def scratch_bytes(self) -> int:
        """Bytes of whole records."""
        return self._records.scratch_bytes


class Group(Node):
    """A group of arrays and groups."""

    @abstractmethod
    def names(self) -> list[str]:
        """Names of the children, those of broken links included."""

    @abstractmethod
    def child(self, name: str) -> Array | Group:
        """The child at a path below the group.

        Raises
        ------
        SourceFormatError
            When it is not there, or its values are not really in the file.
        """

    def array(self, name: str) -> Array:
        """The child at a path, which must be an array."""
        node = self.child(name)
        if not isinstance(node, Array):
            raise node.fault("is a group", "an array")
        return node

    def group(self, name: str) -> Group:
        """The child at a path, which must be a group."""
        node = self.child(name)
        if not isinstance(node, Group):
            raise node.fault(f"is an array of shape {node.shape}", "a group")
        return node


def kind_of(dtype: np.dtype[Any]) -> str:
    """Kind of an array's values."""
    if dtype.fields is not None:
        return "record"
    if dtype.kind in NUMBERS and dtype.itemsize <= 8:
        return "number"
    # Text of variable length is objects to h5py, which it marks.
    marks: dict[str, Any] = dict(dtype.metadata or {})
    return "text" if dtype.kind in "SUT" or marks.get("vlen") in (str, bytes) else "other"


def native(values: NDArray[Any]) -> NDArray[Any]:
    """Values in this machine's byte order."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def join(*parts: str) -> str:
    """Put paths inside a file together."""
    return "/".join(part for part in parts if part)


def _text(value: Any) -> Any:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
