"""What a reader of a source format must be able to do. lazypert knows no format itself.

A converter only reads: it says what is in a file and hands out blocks of rows of a size it is
told. The engine alone sorts, writes, checks and finalises. Converters are found through the
entry-point group ``lazypert.converters``, so one of a third party is the equal of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lazypert._internal.kernels import kernel
from lazypert.errors import SourceFormatError, SourceMissingError
from lazypert.sparse.csr import CSRBlock, first_bad_index

if TYPE_CHECKING:
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
    "first_bad_index",
    "kernel",
    # what the engine calls
    "converters",
    "open_source",
    "SourceMissingError",
]  # fmt: skip

ENTRY_POINTS = "lazypert.converters"


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """A piece of a matrix that is read at once: rows of a row-wise matrix, columns of a column-wise one.

    `start` and `stop` mean something to the converter only.
    """

    matrix: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Values of a piece: a CSR block whose first row is the matrix's row `first_row`.

    Blocks of a column-wise matrix cover all rows, each with the values of some columns.
    """

    first_row: int
    csr: CSRBlock


class ScreenReader(Protocol):
    """An opened source file. Deterministic, picklable, and safe to use from many threads.

    Attributes
    ----------
    path
        The file.
    n_obs, n_vars
        Cells and genes.
    obs_columns
        Names of the obs columns, in the file's order.
    matrices
        Name and number of columns of each matrix: ``"X"``, ``"layers/<name>"``, ``"raw/X"``, and
        sparse ``"obsm/<name>"``.
    obsm
        Name and width of each dense embedding.
    not_carried
        Paths inside the file that a store cannot hold, each with the reason.
    """

    path: Path
    n_obs: int
    n_vars: int
    obs_columns: tuple[str, ...]
    matrices: dict[str, int]
    obsm: dict[str, int]
    not_carried: tuple[str, ...]

    def obs_names(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """(stop - start,) cell names, as strings; reads no more than it must."""
        ...

    def obs_column(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        """(stop - start,) values of an obs column: a NumPy array, a Categorical or a nullable pandas array.

        Every piece has the same dtype: a Categorical lists all categories in each.
        """
        ...

    def var(self) -> pd.DataFrame:
        """Return the var table; its index holds the gene names."""
        ...

    def raw_var(self) -> pd.DataFrame:
        """Return the var table of ``"raw/X"``; asked only where `matrices` names that."""
        ...

    def nnz(self, matrix: str) -> int | None:
        """Stored values of a matrix; None where only reading it would tell."""
        ...

    def scratch_bytes(self, matrix: str) -> int:
        """Bytes that `read_block` needs at once beside the block: the largest HDF5 chunk, say."""
        ...

    def blocks(self, matrix: str, max_bytes: int) -> list[BlockSpec]:
        """Cut a matrix into pieces of at most `max_bytes` (of data and indices) where rows allow it."""
        ...

    def read_block(self, spec: BlockSpec) -> RowBlock:
        """Read and check one piece.

        Raises
        ------
        SourceFormatError
            When the file's content is not a valid matrix; the message names the path inside the file.
        """
        ...

    def read_obsm(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """(stop - start, width) rows of an embedding."""
        ...


@runtime_checkable
class Converter(Protocol):
    """A source format."""

    name: str

    def recognises(self, path: Path) -> bool:
        """Whether the file is of this format, by its content as well as its name."""
        ...

    def open(self, path: Path) -> ScreenReader:
        """Open a file and check its structure.

        Raises
        ------
        SourceFormatError
            When it is not of this format or cannot be carried.
        """
        ...


def converters() -> dict[str, Converter]:
    """Every installed converter, by name."""
    return {point.name: point.load()() for point in sorted(entry_points(group=ENTRY_POINTS))}


def open_source(path: str | Path) -> ScreenReader:
    """Open a source file with the converter that recognises it.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    SourceFormatError
        When no installed converter recognises it.
    """
    path = Path(path)
    if not path.exists():
        raise SourceMissingError(f"There is no file {str(path)!r}. Check the path; nothing was written.")
    if path.is_file():
        try:
            path.open("rb").close()
        except OSError as error:
            raise SourceFormatError(
                f"{str(path)!r} cannot be read ({error.strerror}). Check its permissions; nothing was written."
            ) from error
    known = converters()
    for converter in known.values():
        if converter.recognises(path):
            return converter.open(path)
    raise SourceFormatError(
        f"{str(path)!r} is not a file of a known format: {_describe(path)}. Expected one of: "
        f"{', '.join(sorted(known.keys() - {'foreign'})) or 'none installed'}. Nothing was written."
    )


def _describe(path: Path) -> str:
    if path.is_dir():
        return "it is a folder"
    with path.open("rb") as file:
        head = file.read(8)
    if not head:
        return "it is empty (0 bytes)"
    if head[:2] == b"\x1f\x8b":
        return "it is gzip-compressed (decompress it first)"
    if head[:2] == b"PK":
        return "it is a zip archive"
    if head.lstrip()[:1] == b"<":
        return "it is a web page or XML (a download that failed?)"
    return f"it starts with the bytes {head!r}"
