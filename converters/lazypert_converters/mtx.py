"""10x Genomics' folders of ``matrix.mtx``, ``barcodes.tsv`` and ``features.tsv`` (or ``genes.tsv``).

The matrix is genes x cells in text, by cell. It is read twice in pieces: once to check every
entry and to find where each cell begins, once to hand out blocks.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert.converter import BlockSpec, CSRBlock, RowBlock
from lazypert.errors import ColumnNotFoundError, SourceFormatError
from lazypert_converters._matrix_market import BANNER, SHORTEST_ENTRY, Header, parse, read_header, scan
from lazypert_converters._sparse import blocks_by_nnz
from lazypert_converters._text import BLOCK, MARKS_BYTES, TextFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_MATRIX = ("matrix.mtx", "matrix.mtx.gz")
_ENTRY_BYTES = 16  # an entry in memory: row, column, and a value of 8 bytes
_PARSED_BYTES = _ENTRY_BYTES + 9  # with where it begins and whether Python must read it
_LINES = 1 << 16  # of a table that are read at once


class MtxConverter:
    """Opens a 10x folder, or the ``matrix.mtx`` of one; a prefix before all three names is fine."""

    name = "10x_mtx"

    def recognises(self, path: Path) -> bool:
        """Whether the folder has a ``matrix.mtx``, or the file is Matrix Market."""
        if path.is_dir():
            return bool(_matrices(path))
        return path.is_file() and _is_matrix_market(path)

    def open(self, path: Path) -> MtxReader:
        """Read names, sizes and the header; no entry of the matrix."""
        matrix = _only_matrix(path) if path.is_dir() else path
        barcodes, features = _companions(matrix)
        text = TextFile(matrix)
        header = read_header(text)
        genes = _read_table(features)
        _check_lengths(path, header, features, len(genes), barcodes, sum(map(len, _tables(barcodes))))
        if genes.shape[1] < 2:
            raise _bad(features, f"has {genes.shape[1]} column", "two at least: the id and the name of each gene")
        return MtxReader(
            path=path,
            n_obs=header.n_cols,
            n_vars=header.n_rows,
            obs_columns=(),
            matrices={"X": header.n_rows},
            obsm={},
            not_carried=(f"{features.name}: only its first three columns",) if genes.shape[1] > 3 else (),
            text=text,
            header=header,
            barcodes=barcodes,
            features=features,
            stamp=_stamp(matrix),
        )


@dataclass(frozen=True)
class MtxReader:
    """A 10x folder. Holds no open handle, so it can be pickled and used from many threads.

    Attributes
    ----------
    text, header
        The matrix.
    barcodes, features
        Files of the cells and of the genes.
    stamp
        Size and time of the matrix's file when it was opened.
    """

    path: Path
    n_obs: int
    n_vars: int
    obs_columns: tuple[str, ...]
    matrices: dict[str, int]
    obsm: dict[str, int]
    not_carried: tuple[str, ...]
    text: TextFile
    header: Header
    barcodes: Path
    features: Path
    stamp: tuple[int, int]

    def obs_names(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """(stop - start,) barcodes."""
        stop = self.n_obs if stop is None else min(stop, self.n_obs)
        pieces, first = [np.empty(0, dtype=object)], 0
        for table in _tables(self.barcodes):
            pieces.append(table[0].to_numpy(dtype=object)[max(0, start - first) : max(0, stop - first)])
            first += len(table)
            if first >= stop:
                break
        return np.concatenate(pieces)

    def obs_column(self, name: str, start: int = 0, stop: int | None = None) -> Any:  # noqa: ARG002
        """10x folders have no obs columns."""
        raise ColumnNotFoundError(
            f"obs column {name!r} is not in {str(self.path)!r}: 10x folders carry no cell annotations."
        )

    def var(self) -> pd.DataFrame:
        """Return gene ids and, from Cell Ranger 3 on, feature types, indexed by gene name as it is in the file."""
        table = _read_table(self.features)
        columns = {name: table[n] for n, name in ((0, "gene_ids"), (2, "feature_types")) if n in table}
        return pd.DataFrame(
            {name: values.to_numpy() for name, values in columns.items()}, index=pd.Index(table[1].to_numpy())
        )

    def raw_var(self) -> pd.DataFrame:
        """10x folders have no raw."""
        raise ColumnNotFoundError(f"raw is not in {str(self.path)!r}: 10x folders have none.")

    def nnz(self, matrix: str) -> int | None:  # noqa: ARG002 - there is one
        """Stored values of the matrix."""
        return self.header.nnz

    def scratch_bytes(self, matrix: str) -> int:  # noqa: ARG002 - there is one
        """Bytes of some text and its entries, of the marks in a gzip file, and of pointers to all cells."""
        text = 2 * BLOCK
        return text + text // SHORTEST_ENTRY * _PARSED_BYTES + MARKS_BYTES * self.text.is_gzip + 3 * 8 * self.n_obs

    def blocks(self, matrix: str, max_bytes: int) -> list[BlockSpec]:
        """Read the whole matrix once, check it, and cut its text where cells begin.

        A file that is ordered by gene is cut where genes begin.

        Raises
        ------
        SourceFormatError
            When an entry is not valid, or the entries are in neither order.
        """
        genes, cells = scan(self.text, self.header)
        if cells.fault is not None and genes.fault is not None:
            raise SourceFormatError(
                f"{str(self.text.path)!r} has its entries in no order: number {cells.fault + 1:,} goes back to an "
                f"earlier cell, and number {genes.fault + 1:,} to an earlier gene. Expected them by cell, as 10x "
                "writes them, or by gene. Write the matrix again: "
                "scipy.io.mmwrite(path, scipy.sparse.csc_array(scipy.io.mmread(path))). No store was made."
            )
        major = cells if cells.fault is None else genes
        ranges = blocks_by_nnz(matrix, major.first, max(1, max_bytes // _ENTRY_BYTES))
        cuts = [(int(major.offset[piece.start]), int(major.offset[piece.stop])) for piece in ranges]
        return [BlockSpec(matrix, start, stop) for start, stop in cuts if start < stop]

    def read_block(self, spec: BlockSpec) -> RowBlock:
        """Read the entries between two offsets in the text."""
        if _stamp(self.text.path) != self.stamp:
            raise _bad(self.text.path, "has changed since it was opened", "the same size and time")
        # Room for the shortest entries that fit; what is not written to takes no memory.
        size = (spec.stop - spec.start) // SHORTEST_ENTRY + 1
        row, col, value = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, self.header.dtype)
        n = 0
        for offset, block in self.text.lines(spec.start, spec.stop):
            entries = parse(self.text.path, self.header, block, offset)
            piece = slice(n, n + len(entries.value))
            row[piece], col[piece], value[piece] = entries.row, entries.col, entries.value
            n = piece.stop
        return _to_rows(col[:n], row[:n], value[:n], self.n_obs, self.n_vars)

    def read_obsm(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """10x folders have no embeddings."""
        raise ColumnNotFoundError(f"embedding {name!r} ({start} to {stop}) is not in {str(self.path)!r}: it has none.")


def _to_rows(
    cell: NDArray[np.int32], gene: NDArray[np.int32], value: NDArray[Any], n_obs: int, n_vars: int
) -> RowBlock:
    """Entries as rows: the cells they span when they come by cell, all cells otherwise."""
    if (cell[1:] >= cell[:-1]).all():
        first = int(cell[0])
        lengths = np.bincount(cell - first)
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return RowBlock(first, CSRBlock(indptr, gene, value, n_vars))
    from scipy.sparse import coo_array

    rows = coo_array((value, (cell, gene)), shape=(n_obs, n_vars)).tocsr()
    return RowBlock(0, CSRBlock(rows.indptr.astype(np.int64), rows.indices.astype(np.int32), rows.data, n_vars))


def _is_matrix_market(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(1024)
    if head[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(wbits=31).decompress(head)
        except zlib.error:
            return False
    return head[: len(BANNER)].lower() == BANNER.lower()


def _matrices(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.endswith(_MATRIX) and path.is_file())


def _only_matrix(folder: Path) -> Path:
    found = _matrices(folder)
    if len(found) != 1:
        raise SourceFormatError(
            f"{str(folder)!r} has {len(found)} matrices, {', '.join(repr(path.name) for path in found)}, expected one. "
            "Give the path of the one you want in place of the folder's. Nothing was written."
        )
    return found[0]


def _companions(matrix: Path) -> tuple[Path, Path]:
    """Barcodes and features that belong to a matrix: same folder, same prefix."""
    ending = next((ending for ending in _MATRIX if matrix.name.endswith(ending)), None)
    if ending is None:
        raise SourceFormatError(
            f"{str(matrix)!r} is a Matrix Market file, which names neither cells nor genes. Put barcodes.tsv and "
            "features.tsv beside it and call it matrix.mtx (or the three <prefix>matrix.mtx, <prefix>barcodes.tsv, "
            "<prefix>features.tsv). Nothing was written."
        )
    prefix = matrix.name.removesuffix(ending)
    # Where there are both, the ones packed like the matrix were written with it.
    packings = ("", ".gz") if ending == "matrix.mtx" else (".gz", "")
    found = []
    for kinds in (("barcodes",), ("features", "genes")):
        names = [f"{prefix}{kind}.tsv{packing}" for packing in packings for kind in kinds]
        path = next((matrix.with_name(name) for name in names if matrix.with_name(name).is_file()), None)
        if path is None:
            raise SourceFormatError(
                f"{str(matrix)!r} lies without its {kinds[0]}: none of {', '.join(map(repr, names))} is beside it. "
                "Put the file there. Nothing was written."
            )
        found.append(path)
    return found[0], found[1]


def _check_lengths(path: Path, header: Header, features: Path, n_genes: int, barcodes: Path, n_cells: int) -> None:
    if (n_genes, n_cells) == (header.n_rows, header.n_cols):
        return
    sizes = f"the matrix is of {header.n_rows:,} genes x {header.n_cols:,} cells"
    if (n_cells, n_genes) == (header.n_rows, header.n_cols):
        raise SourceFormatError(
            f"{str(path)!r} is no 10x folder: {features.name} has {n_genes:,} lines and {barcodes.name} {n_cells:,}, "
            "so that its matrix is of cells x genes, expected genes x cells. Transpose it: scipy.io.mmwrite(path, "
            "scipy.sparse.csc_array(scipy.io.mmread(path).T)). No store was made."
        )
    raise SourceFormatError(
        f"{str(path)!r} is no valid 10x folder: {sizes}, but {features.name} has {n_genes:,} lines and "
        f"{barcodes.name} {n_cells:,}, expected one a gene and one a cell, without a header line. Put together the "
        "files that were written together. No store was made."
    )


def _read_table(path: Path) -> pd.DataFrame:
    """Columns of a ``.tsv`` as text: nothing in it is a number or a missing value."""
    return pd.concat(list(_tables(path)) or [pd.DataFrame({0: [], 1: []}, dtype=object)], ignore_index=True)


def _tables(path: Path) -> Iterator[pd.DataFrame]:
    """Some lines of a ``.tsv`` after others."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        options: dict[str, Any] = {"sep": "\t", "header": None, "dtype": object, "na_filter": False}
        with gzip.open(path) if packed else path.open("rb") as file:
            with pd.read_csv(file, chunksize=_LINES, **options) as tables:
                yield from tables
            file.read()  # pandas does not notice that a gzip file ends too early
    except pd.errors.EmptyDataError:
        return
    except (OSError, EOFError, zlib.error, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise _bad(
            path, f"cannot be read ({error})", "tab-separated text in UTF-8, plain or gzip-compressed"
        ) from error


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _bad(path: Path, got: str, expected: str) -> SourceFormatError:
    return SourceFormatError(
        f"{str(path)!r} is not a valid part of a 10x folder: it {got}, expected {expected}. "
        "The file is damaged or was written by a faulty tool; get it again. No store was made."
    )
