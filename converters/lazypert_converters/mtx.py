"""Converter for 10x Genomics folders of ``matrix.mtx``, ``barcodes.tsv`` and ``features.tsv`` (or ``genes.tsv``).

The matrix is a text file of genes x cells, sorted by cell. It is streamed twice: once to check every entry
and to find where each cell begins, and once to read source blocks. Features that are not genes, such as guides and
antibodies, become sparse obsm entries.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lazypert.converter import BlockSpec, CSRBlock, RowBlock, as_remote, raise_machine_error
from lazypert.errors import SourceFormatError
from lazypert_converters._feature_types import columns_by_matrix, names_of, select
from lazypert_converters._links import check_links
from lazypert_converters._matrix_market import BANNER, SHORTEST_ENTRY, Header, parse, read_header, scan
from lazypert_converters._reader import Reader
from lazypert_converters._row_pointers import blocks_by_nnz, row_pointers
from lazypert_converters._text import ACCESS_POINTS_BYTES, TEXT_BLOCK_BYTES, TextFile, invalid_file, is_gzip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_MATRIX_NAMES = ("matrix.mtx", "matrix.mtx.gz")
_ENTRY_BYTES = 16  # of an entry in memory: row, column, and a value of 8 bytes
_PARSED_BYTES = _ENTRY_BYTES + 9  # and its text offset, and whether Python must parse its value
_LINES = 1 << 16  # of a .tsv file that are read at once
_PART = "part of a 10x folder"


class MtxConverter:
    """Opens a 10x folder, or the ``matrix.mtx`` in one; all three file names may share a prefix."""

    name = "10x_mtx"

    def recognises(self, path: Path) -> bool:
        """Whether the folder has a ``matrix.mtx``, or the file is a Matrix Market file."""
        if as_remote(path) is not None:  # a folder of three files
            return False
        if path.is_dir():
            return bool(_matrices(path))
        return path.is_file() and _is_matrix_market(path)

    def open(self, path: Path) -> MtxReader:
        """Read names, sizes and the header, but no entries of the matrix."""
        matrix = _only_matrix(path) if path.is_dir() else path
        barcodes, features = _companions(matrix)
        check_links(matrix.parent, (barcodes, features, *([matrix] if matrix is not path else [])))
        text = TextFile(matrix)
        header = read_header(text)
        genes = _read_table(features)
        _check_lengths(path, header, features, len(genes), barcodes, sum(map(len, _tables(barcodes))))
        if genes.shape[1] < 2:
            got = f"has {genes.shape[1]} column"
            raise invalid_file(features, _PART, got, "at least two: the id and the name of each gene")
        columns = columns_by_matrix(genes[2].tolist() if 2 in genes else None)
        more = f"{features.name} after its third column: stores keep the id, name and type of a gene"
        not_carried = (more,) if genes.shape[1] > 3 else ()
        return MtxReader(
            path=path,
            n_obs=header.n_cols,
            n_vars=len(columns.get("X", range(header.n_rows))),
            obs_columns=(),
            matrices={name: len(numbers) for name, numbers in columns.items()} or {"X": header.n_rows},
            obsm={},
            not_carried=not_carried,
            text=text,
            header=header,
            barcodes=barcodes,
            features=features,
            stamp=_stamp(matrix),
            columns=columns,
        )


@dataclass(frozen=True)
class MtxReader(Reader):
    """A 10x folder.

    Attributes
    ----------
    text, header
        The matrix.
    barcodes, features
        Files of the cells and of the genes.
    stamp
        Size and modification time of the matrix's file when it was opened.
    columns
        Columns of each matrix among the features; empty if all of them are X.
    """

    text: TextFile
    header: Header
    barcodes: Path
    features: Path
    stamp: tuple[int, int]
    columns: dict[str, NDArray[np.int64]] = field(default_factory=dict, compare=False)

    def obs_names(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """(stop - start,) barcodes."""
        stop = self.n_obs if stop is None else min(stop, self.n_obs)
        names, first = [np.empty(0, dtype=object)], 0
        for table in _tables(self.barcodes):
            names.append(table[0].to_numpy(dtype=object)[max(0, start - first) : max(0, stop - first)])
            first += len(table)
            if first >= stop:
                break
        return np.concatenate(names)

    def obs_column(self, name: str, start: int = 0, stop: int | None = None) -> Any:  # noqa: ARG002
        """Raise `ColumnNotFoundError`: 10x folders have no obs columns."""
        raise self.no_obs_column(name)

    def var(self) -> pd.DataFrame:
        """Return gene ids and, from Cell Ranger 3 on, feature types, indexed by the gene names in the file."""
        table = _read_table(self.features)
        columns = {name: table[n] for n, name in ((0, "gene_ids"), (2, "feature_types")) if n in table}
        genes = pd.DataFrame(
            {name: values.to_numpy() for name, values in columns.items()}, index=pd.Index(table[1].to_numpy())
        )
        return genes.iloc[self.columns["X"]] if self.columns else genes

    def column_names(self, matrix: str) -> NDArray[Any] | None:
        """(n_columns,) names of the features of an obsm entry."""
        return names_of(_read_table(self.features)[1].to_numpy(dtype=object), self.columns, matrix)

    def nnz(self, matrix: str) -> int | None:  # noqa: ARG002 - the file has only one
        """Number of stored values of the matrix; None if some features are in another matrix."""
        return None if self.columns else self.header.nnz

    def scratch_bytes(self, matrix: str) -> int:  # noqa: ARG002 - the file has only one
        """Bytes of text and its entries, of the access points of a gzip file, and of pointers to all cells."""
        text = 2 * TEXT_BLOCK_BYTES
        entries = text // SHORTEST_ENTRY * _PARSED_BYTES
        return text + entries + ACCESS_POINTS_BYTES * self.text.is_gzip + 3 * 8 * self.n_obs

    def blocks(self, matrix: str, max_bytes: int) -> list[BlockSpec]:
        """Read and check the entire matrix once, and cut its text where cells begin.

        If the file is sorted by gene, it is cut where genes begin.

        Raises
        ------
        SourceFormatError
            If an entry is invalid, or the entries are sorted neither by cell nor by gene.
        """
        genes, cells = scan(self.text, self.header)
        if cells.unsorted_at is not None and genes.unsorted_at is not None:
            raise SourceFormatError(
                f"{str(self.text.path)!r} has unsorted entries: entry {cells.unsorted_at + 1:,} goes back to an "
                f"earlier cell, and entry {genes.unsorted_at + 1:,} to an earlier gene. Expected them sorted by cell, "
                "as 10x writes them, or by gene. Write the matrix again: "
                "scipy.io.mmwrite(path, scipy.sparse.csc_array(scipy.io.mmread(path))). No store was made."
            )
        major = cells if cells.unsorted_at is None else genes
        ranges = blocks_by_nnz(matrix, major.first, max(1, max_bytes // _ENTRY_BYTES))
        offsets = [(int(major.offset[r.start]), int(major.offset[r.stop])) for r in ranges]
        return [BlockSpec(matrix, start, stop) for start, stop in offsets if start < stop]

    def read_block(self, spec: BlockSpec) -> RowBlock:
        """Read the entries between two text offsets."""
        if _stamp(self.text.path) != self.stamp:
            got = "has changed since it was opened"
            raise invalid_file(self.text.path, _PART, got, "the same size and modification time")
        # Sized for the shortest possible entries; pages that are never written take up no memory.
        size = (spec.stop - spec.start) // SHORTEST_ENTRY + 1
        row, col, value = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, self.header.dtype)
        n = 0
        for offset, block in self.text.lines(spec.start, spec.stop):
            entries = parse(self.text.path, self.header, block, offset)
            span = slice(n, n + len(entries.value))
            row[span], col[span], value[span] = entries.row, entries.col, entries.value
            n = span.stop
        rows = _to_rows(col[:n], row[:n], value[:n], self.n_obs, self.header.n_rows)
        return select(rows, self.columns[spec.matrix]) if self.columns else rows


def _to_rows(
    cell: NDArray[np.int32], gene: NDArray[np.int32], value: NDArray[Any], n_obs: int, n_vars: int
) -> RowBlock:
    """Convert entries to rows: those of the cells they span if sorted by cell, of all cells otherwise."""
    if (cell[1:] >= cell[:-1]).all():
        first = int(cell[0])
        return RowBlock(first, CSRBlock(row_pointers(np.bincount(cell - first)), gene, value, n_vars))
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
    return sorted(path for path in folder.iterdir() if path.name.endswith(_MATRIX_NAMES) and path.is_file())


def _only_matrix(folder: Path) -> Path:
    matrices = _matrices(folder)
    if len(matrices) != 1:
        raise SourceFormatError(
            f"{str(folder)!r} has {len(matrices)} matrices, {', '.join(repr(path.name) for path in matrices)}, "
            "expected one. Pass the path of the one you want instead of the folder. Nothing was written."
        )
    return matrices[0]


def _companions(matrix: Path) -> tuple[Path, Path]:
    """Barcodes and features that belong to a matrix: same folder, same prefix."""
    suffix = next((name for name in _MATRIX_NAMES if matrix.name.endswith(name)), None)
    if suffix is None:
        raise SourceFormatError(
            f"{str(matrix)!r} is a Matrix Market file, which names neither cells nor genes. Put barcodes.tsv and "
            "features.tsv next to it and rename it to matrix.mtx (or name the three files <prefix>matrix.mtx, "
            "<prefix>barcodes.tsv and <prefix>features.tsv). Nothing was written."
        )
    prefix = matrix.name.removesuffix(suffix)
    # If a file exists both plain and compressed, take the one that is stored like the matrix.
    endings = ("", ".gz") if suffix == "matrix.mtx" else (".gz", "")
    companions = []
    for stems in (("barcodes",), ("features", "genes")):
        names = [f"{prefix}{stem}.tsv{ending}" for ending in endings for stem in stems]
        path = next((matrix.with_name(name) for name in names if matrix.with_name(name).is_file()), None)
        if path is None:
            raise SourceFormatError(
                f"{str(matrix)!r} has no {stems[0]}: got none of {', '.join(map(repr, names))} in its folder, expected "
                "one. Put the file there. Nothing was written."
            )
        companions.append(path)
    return companions[0], companions[1]


def _check_lengths(path: Path, header: Header, features: Path, n_genes: int, barcodes: Path, n_cells: int) -> None:
    if (n_genes, n_cells) == (header.n_rows, header.n_cols):
        return
    lines = f"{features.name} has {n_genes:,} lines and {barcodes.name} {n_cells:,}"
    if (n_cells, n_genes) == (header.n_rows, header.n_cols):
        raise SourceFormatError(
            f"{str(path)!r} is not a valid 10x folder: {lines}, so its matrix is cells x genes, expected "
            "genes x cells. Transpose it: scipy.io.mmwrite(path, scipy.sparse.csc_array(scipy.io.mmread(path).T)). "
            "Nothing was written."
        )
    raise SourceFormatError(
        f"{str(path)!r} is not a valid 10x folder: its matrix has {header.n_rows:,} genes x {header.n_cols:,} "
        f"cells, but {lines}, expected one per gene and one per cell, without a header line. Use files that were "
        "written together. Nothing was written."
    )


def _read_table(path: Path) -> pd.DataFrame:
    """Read a ``.tsv`` as text columns: nothing in it is parsed as a number or a missing value."""
    return pd.concat(list(_tables(path)) or [pd.DataFrame({0: [], 1: []}, dtype=object)], ignore_index=True)


def _tables(path: Path) -> Iterator[pd.DataFrame]:
    """Yield a ``.tsv`` as tables of consecutive lines."""
    try:
        options: dict[str, Any] = {"sep": "\t", "header": None, "dtype": object, "na_filter": False}
        with gzip.open(path) if is_gzip(path) else path.open("rb") as file:
            with pd.read_csv(file, chunksize=_LINES, **options) as tables:
                yield from tables
            file.read()  # pandas does not notice if a gzip file is cut short
    except pd.errors.EmptyDataError:
        return
    except (OSError, EOFError, zlib.error, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise_machine_error(path, error)
        expected = "tab-separated text in UTF-8, plain or gzip-compressed"
        raise invalid_file(path, _PART, f"cannot be read ({error})", expected) from error


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
