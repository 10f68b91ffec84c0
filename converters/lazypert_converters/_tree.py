"""Groups and arrays inside a file, whether it is HDF5 or Zarr: shared by the AnnData and 10x readers.

Nothing here knows about screens. Whatever the underlying library raises becomes a `SourceFormatError`
that names the file and the path inside it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lazypert.converter import raise_machine_error
from lazypert.errors import SourceFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from numpy.typing import NDArray

Kind = Literal["number", "text", "record", "other"]

_NUMERIC_KINDS = "fiub"
_MAX_ARRAY_BYTES = 1 << 44  # 16 TiB: no computer could hold more, and no screen has as much
_ADVICE = "The file is damaged or was written by a faulty tool; write it again."


class Tree(ABC):
    """A file that is reopened for each use, so that readers can be pickled and shared by threads.

    Attributes
    ----------
    path
        The file.
    format
        What the file is, for error messages.
    """

    path: Path
    format: str

    @abstractmethod
    def root(self) -> AbstractContextManager[Group]:
        """Open the file for as long as the context lasts."""

    def fault(self, where: str, got: str, expected: str, advice: str = _ADVICE) -> SourceFormatError:
        """Make the error for a path inside the file; `got` continues a sentence that begins with "it"."""
        return SourceFormatError(
            f"{str(self.path)!r} is not a valid {self.format} at {where or '/'!r}: it {got}, expected {expected}. "
            f"{advice} No store was made."
        )

    def unreadable(self, library_format: str, error: Exception) -> SourceFormatError:
        """Make the error for a file that the underlying library cannot open; raise if the machine is at fault."""
        raise_machine_error(self.path, error)
        return SourceFormatError(
            f"{str(self.path)!r} cannot be read as {library_format}: {error}. It is probably cut short, incomplete or "
            "damaged; get it again. Nothing was written."
        )


class Node(ABC):
    """A group or an array, with attributes.

    Attributes
    ----------
    where
        Its path inside the file, without a leading slash; empty for the root.
    """

    tree: Tree
    where: str

    def fault(self, got: str, expected: str, advice: str = _ADVICE) -> SourceFormatError:
        """Make the error for this node; see `Tree.fault`."""
        return self.tree.fault(self.where, got, expected, advice)

    @abstractmethod
    def attributes(self) -> dict[str, Any]:
        """All attributes as the library returns them, except that object references become paths."""

    def attribute(self, name: str, default: Any = None) -> Any:
        """Value of an attribute, with bytes decoded and arrays as lists."""
        value = self.attributes().get(name, default)
        if isinstance(value, np.ndarray | list | tuple):
            return [_decoded(item) for item in np.asarray(value, dtype=object).ravel().tolist()]
        return _decoded(value)

    @property
    def encoding(self) -> tuple[str, str]:
        """AnnData's ``encoding-type`` and ``encoding-version``; empty where an attribute is absent."""
        attributes = self.attributes()
        return (
            str(_decoded(attributes.get("encoding-type", ""))),
            str(_decoded(attributes.get("encoding-version", ""))),
        )

    @property
    def encoding_text(self) -> str:
        """The encoding, for error messages."""
        encoding_type, version = self.encoding
        return f"encoded as {encoding_type!r} {version}".strip() if encoding_type else "without an encoding-type"

    @property
    def declared_bytes(self) -> int:
        """0, as a group has no values of its own."""
        return 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn whatever the underlying library raises into an error that names this node."""
        try:
            yield
        except SourceFormatError:
            raise
        except UnicodeDecodeError as error:
            raise self.fault(f"holds text that is not UTF-8 ({error})", "UTF-8") from error
        except MemoryError as error:
            n_bytes = self.declared_bytes
            if n_bytes <= _MAX_ARRAY_BYTES:
                raise  # this machine has too little memory, which is not the file's fault
            raise self.fault(
                f"declares {n_bytes:,} bytes of values", "as many as fit in a computer's memory"
            ) from error
        except Exception as error:  # types differ between libraries and between their versions
            raise_machine_error(self.tree.path, error)
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise self.fault(f"cannot be read ({reason})", "intact values") from error


class Array(Node):
    """An array that is read in row ranges or tiles.

    Attributes
    ----------
    shape
        Empty for a scalar.
    dtype
        As in the file; meaningless for text.
    kind
        ``"number"`` (at most 64 bits), ``"text"``, ``"record"`` or ``"other"``.
    chunks
        Shape of the unit of compression; None if values are contiguous.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    kind: Kind
    chunks: tuple[int, ...] | None

    @property
    def declared_bytes(self) -> int:
        """Size of the values that the array says it has, uncompressed."""
        return math.prod(self.shape) * self.dtype.itemsize

    @abstractmethod
    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows `start` to `stop`: numbers in native byte order, text as str objects."""

    @abstractmethod
    def tile(self, rows: slice, cols: slice) -> NDArray[Any]:
        """A rectangle of a two-dimensional array, in native byte order."""

    @abstractmethod
    def read_field(self, name: str, start: int, stop: int | None) -> NDArray[Any]:
        """Rows `start` to `stop` of one field of an array of records."""

    @abstractmethod
    def unwritten(self) -> list[tuple[int, int]]:
        """Element ranges of a one-dimensional array that were never written and would read as zeros."""

    @property
    @abstractmethod
    def scratch_bytes(self) -> int:
        """Bytes held during a read in addition to its result: chunks, compressed and decompressed."""

    def field(self, name: str) -> Field:
        """One field of an array of records, as an array."""
        return Field(self, name)

    def vector(self) -> Array:
        """The array itself, after checking that it has one dimension."""
        if len(self.shape) != 1:
            raise self.fault(f"is an array of shape {self.shape}", "an array of one dimension")
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
        """Nothing: fields have no attributes."""
        return {}

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows `start` to `stop` of the field."""
        return self._records.read_field(self._name, start, stop)

    def tile(self, rows: slice, cols: slice) -> NDArray[Any]:
        """A rectangle of a field of vectors."""
        return self.read(rows.start, rows.stop)[:, cols]

    def read_field(self, name: str, start: int, stop: int | None) -> NDArray[Any]:
        """Raise: records inside records are not supported."""
        raise self.fault("holds records", f"no records inside records ({name}, {start}, {stop})")

    def unwritten(self) -> list[tuple[int, int]]:
        """Nothing: every chunk holds all fields, so a field's own ranges are unknown."""
        return []

    @property
    def scratch_bytes(self) -> int:
        """Bytes held while complete records are read."""
        return self._records.scratch_bytes


class Group(Node):
    """A group of arrays and groups."""

    @abstractmethod
    def names(self) -> list[str]:
        """Names of the children, including broken links."""

    @abstractmethod
    def child(self, name: str) -> Array | Group:
        """The array or group at a path relative to this group.

        Raises
        ------
        SourceFormatError
            If it does not exist, or its values are not in the file.
        """

    def array(self, name: str) -> Array:
        """The array at a relative path."""
        node = self.child(name)
        if not isinstance(node, Array):
            raise node.fault("is a group", "an array")
        return node

    def group(self, name: str) -> Group:
        """The group at a relative path."""
        node = self.child(name)
        if not isinstance(node, Group):
            raise node.fault(f"is an array of shape {node.shape}", "a group")
        return node


def kind_of(dtype: np.dtype[Any]) -> Kind:
    """Classify a dtype."""
    if dtype.fields is not None:
        return "record"
    if dtype.kind in _NUMERIC_KINDS and dtype.itemsize <= 8:
        return "number"
    # h5py represents variable-length text as objects and tags the dtype.
    tags: dict[str, Any] = dict(dtype.metadata or {})
    return "text" if dtype.kind in "SUT" or tags.get("vlen") in (str, bytes) else "other"


def native(values: NDArray[Any]) -> NDArray[Any]:
    """Convert values to native byte order."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def join(*names: str) -> str:
    """Join paths inside a file, skipping empty ones."""
    return "/".join(name for name in names if name)


def _decoded(value: Any) -> Any:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
