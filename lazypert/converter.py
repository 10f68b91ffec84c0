"""The protocol that a source format's reader implements. lazypert itself knows no source format.

A converter only reads: it describes a file and returns blocks of rows of at most a given size. Sorting,
writing, checking and finalising are left to `lazypert.convert`. Converters are found through the entry-point
group ``lazypert.converters``, so those of third parties work exactly like the ones that lazypert ships.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lazypert._internal.files import open_to_read, read_at
from lazypert._internal.kernels import kernel
from lazypert._internal.machine import raise_machine_error
from lazypert._internal.paths import is_entry_name, local_path
from lazypert.errors import SourceFormatError, SourceMissingError
from lazypert.sparse.csr import CSRBlock, first_bad_index
from lazypert.store.remote_file import RemoteFile, as_remote

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray


__all__ = [
    # what a converter implements
    "BlockSpec",
    "Converter",
    "RowBlock",
    "ScreenReader",
    # what it may use
    "CSRBlock",
    "RemoteFile",
    "as_remote",
    "first_bad_index",
    "is_entry_name",
    "kernel",
    "open_to_read",
    "raise_machine_error",
    "read_at",
    # what lazypert calls
    "column_names",
    "converters",
    "elements",
    "frames_in_obsm",
    "is_in_memory",
    "is_object",
    "open_source",
    "read_element",
    "SourceMissingError",
]  # fmt: skip

ENTRY_POINTS = "lazypert.converters"


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """A source block: the part of a matrix that is read at once.

    Only the converter interprets `start` and `stop`: typically as rows of a CSR matrix, or columns of a CSC
    matrix.
    """

    matrix: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Values of a source block: CSR rows, the first of which is row `first_row` of the matrix.

    The source blocks of a CSC matrix each cover all rows, with the values of some columns.
    """

    first_row: int
    csr: CSRBlock


class ScreenReader(Protocol):
    """An opened source file. Must be deterministic, picklable, and safe to use from many threads.

    Attributes
    ----------
    path
        The file: a path, or a `RemoteFile` in its place.
    n_obs, n_vars
        Number of cells and genes.
    obs_columns
        Names of the obs columns, in file order.
    matrices
        Number of columns of each matrix, by name: ``"X"``, ``"layers/<name>"``, ``"raw/X"``, or
        ``"obsm/<name>"`` if it is sparse.
    obsm
        Width of each dense embedding, by name.
    not_carried
        What the store will not contain, one ``"<path inside the file>: <reason>"`` each.
    """

    path: Path
    n_obs: int
    n_vars: int
    obs_columns: tuple[str, ...]
    matrices: dict[str, int]
    obsm: dict[str, int]
    not_carried: tuple[str, ...]

    def obs_names(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """(stop - start,) cell names as strings; should read only that range."""
        ...

    def obs_column(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        """(stop - start,) values of an obs column: a NumPy array, a Categorical or a nullable pandas array.

        The dtype is the same for every range: a Categorical always lists all categories.
        """
        ...

    def var(self) -> pd.DataFrame:
        """Return the var table, indexed by gene name."""
        ...

    def raw_var(self) -> pd.DataFrame:
        """Return the var table of ``"raw/X"``; called only if `matrices` contains it."""
        ...

    def nnz(self, matrix: str) -> int | None:
        """Number of stored values of a matrix; None if it would have to be read to find out."""
        ...

    def scratch_bytes(self, matrix: str) -> int:
        """Bytes that `read_block` needs in addition to the block, such as the largest HDF5 chunk."""
        ...

    def blocks(self, matrix: str, max_bytes: int) -> list[BlockSpec]:
        """Cut a matrix into source blocks of at most `max_bytes` of data and indices, but at least one row each."""
        ...

    def read_block(self, spec: BlockSpec) -> RowBlock:
        """Read and check one source block.

        Raises
        ------
        SourceFormatError
            If the file's content is not a valid matrix; the message names the path inside the file.
        """
        ...

    def read_obsm(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """(stop - start, width) rows of an embedding."""
        ...


@runtime_checkable
class Converter(Protocol):
    """A source format.

    A converter of objects, such as AnnData in memory, also has the methods ``recognises_object(value) -> bool`` and
    ``open_object(value) -> ScreenReader``; such a reader has ``in_memory = True`` and need not be picklable.
    """

    name: str

    def recognises(self, path: Path) -> bool:
        """Whether the file has this format, judged by its content rather than its name alone."""
        ...

    def open(self, path: Path) -> ScreenReader:
        """Open a file and check its structure.

        Raises
        ------
        SourceFormatError
            If it does not have this format, or cannot be converted exactly.
        """
        ...


def column_names(reader: ScreenReader, matrix: str) -> NDArray[Any] | None:
    """(n_columns,) names of the columns of an obsm entry; None if they have none.

    A reader need not know them: those that do have a method ``column_names(matrix)``.
    """
    known = getattr(reader, "column_names", None)
    names: NDArray[Any] | None = None if known is None else known(matrix)
    return names


def elements(reader: ScreenReader) -> dict[str, int]:
    """Bytes of each further element of AnnData that a reader can read, such as ``"uns/leiden"`` or ``"varm/PCs"``.

    A reader need not have any: those that do have an attribute `elements` and a method ``read_element(path)``.
    """
    found: dict[str, int] = getattr(reader, "elements", {})
    return found


def read_element(reader: Any, path: str) -> Any:
    """Value of one of a reader's `elements`, as AnnData has it in memory."""
    return reader.read_element(path)


def frames_in_obsm(reader: ScreenReader) -> dict[str, tuple[str, ...]]:
    """Columns of each obsm entry that is a table, by name.

    A reader need not know any: those that do have an attribute `obsm_frames`, and a method
    ``obsm_column(name, column, start, stop)`` that returns values as `ScreenReader.obs_column` does.
    """
    found: dict[str, tuple[str, ...]] = getattr(reader, "obsm_frames", {})
    return found


def converters() -> dict[str, Converter]:
    """All installed converters, by name."""
    return {point.name: point.load()() for point in sorted(entry_points(group=ENTRY_POINTS))}


def is_object(value: object) -> bool:
    """Whether a source is an object that a converter recognises, rather than a path or a list of sources."""
    return not isinstance(value, str | os.PathLike | list | tuple) and _object_converter(value) is not None


def is_in_memory(reader: ScreenReader) -> bool:
    """Whether a reader reads an object, which is gone when the process ends."""
    return bool(getattr(reader, "in_memory", False))


def _object_converter(value: object) -> Any:
    known: list[Any] = [*converters().values()]
    return next((one for one in known if hasattr(one, "open_object") and one.recognises_object(value)), None)


def open_source(path: Any) -> ScreenReader:
    """Open a source file, or an object such as an AnnData, with the converter that recognises it.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ConfigError
        If the path is a URL.
    SourceFormatError
        If no installed converter recognises it, or the one that does cannot convert it.
    """
    if is_object(path):
        opened: ScreenReader = _object_converter(path).open_object(path)
        return opened
    if not isinstance(path, RemoteFile):
        path = local_path("source", path, "Pass it to lazypert.convert, which reads URLs. Nothing was written.")
    if not path.exists():
        raise SourceMissingError(f"{str(path)!r} does not exist. Check the path. Nothing was written.")
    if path.is_file() and not isinstance(path, RemoteFile):
        try:
            path.open("rb").close()
        except OSError as error:
            if not isinstance(error, PermissionError):
                raise_machine_error(path, error)
            raise SourceFormatError(
                f"{str(path)!r} cannot be read ({error.strerror}). Check its permissions. Nothing was written."
            ) from error
    known = converters()
    for converter in known.values():
        if converter.recognises(path):
            return converter.open(path)
    raise SourceFormatError(
        f"{str(path)!r} has an unknown format: it {_described(path)}, expected one of: "
        f"{', '.join(sorted(known.keys() - {'foreign'})) or 'none installed'}. Check the path, or install a converter "
        "for the format. Nothing was written."
    )


def _described(path: Path) -> str:
    """Describe a file of an unknown format, to continue a sentence that begins with "it"."""
    if path.is_dir():
        return "is a folder"
    with path.open("rb") as file:
        head = file.read(8)
    if not head:
        return "is empty (0 bytes)"
    if head[:2] == b"\x1f\x8b":
        return "is gzip-compressed (decompress it first)"
    if head[:2] == b"PK":
        return "is a zip archive"
    if head.lstrip()[:1] == b"<":
        return "is a web page or XML (possibly a failed download)"
    return f"starts with the bytes {head!r}"
