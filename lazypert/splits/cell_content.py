"""A 64-bit hash of each cell's counts, by which the same cell is recognised under another name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lazypert._internal.kernels import kernel
from lazypert._internal.randomness import GOLDEN, mix
from lazypert.screen.cell_order import name_hashes
from lazypert.splits.repeats import NOTHING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from lazypert.sparse.row_reader import RowReader

MIN_GENES = 20
"""Detected genes that a cell needs to be recognised by its content. With fewer, different cells may be alike."""

_BLOCK_VALUES = 4_194_304  # stored values that are read at once


class Segment(Protocol):
    """One store's matrix, and its place in the screen; see `lazypert.sources.matrix_segment.MatrixSegment`."""

    @property
    def first_row(self) -> int:
        """Row of the screen that corresponds to the matrix's first row."""
        ...

    @property
    def matrix(self) -> RowReader:
        """The matrix."""
        ...

    @property
    def column_of(self) -> NDArray[np.int32]:
        """(n_genes,) column of each of the screen's genes, -1 where the gene was not measured."""
        ...


class HasContent(Protocol):
    """A source of cells with names and counts, such as a `lazypert.PerturbationAnnDataSource`."""

    @property
    def n_rows(self) -> int:
        """Number of cells."""
        ...

    @property
    def config(self) -> Any:
        """Options of the source, of which `layer` matters here."""
        ...

    @property
    def var(self) -> pd.DataFrame:
        """The var table of all genes."""
        ...

    def segments(self, layer: str | None) -> Sequence[Segment]:
        """Return one segment per store."""
        ...

    def obs_names(self, rows: NDArray[np.integer]) -> NDArray[Any]:
        """Read (n,) cell names."""
        ...


def content_hashes(
    source: HasContent, is_wanted: NDArray[np.bool_], *, min_genes: int = MIN_GENES
) -> NDArray[np.uint64]:
    """Hash the counts of each cell: its pairs of gene name and value.

    Cells with the same values of the same genes have the same hash, whatever the order of the genes, the dtype in
    which a store keeps values (they are rounded to float32), and whether it keeps zeros. Genes that a store of the
    screen lacks are left out of all cells. Two different cells among 10^8 share a hash with a probability of 0.0003.

    The matrix is read once, in blocks of rows with about 4 million stored values: 32 to 64 MiB.

    Parameters
    ----------
    source
        The cells; its configured layer is read.
    is_wanted
        (n_rows,) whether to hash the cell in each row; the others are not read.
    min_genes
        Cells with fewer genes whose value is not zero are not hashed.

    Returns
    -------
    (n_rows,) hashes by store row; `NOTHING` where there is none.
    """
    segments = source.segments(source.config.layer)
    is_shared = np.logical_and.reduce([segment.column_of >= 0 for segment in segments])
    keys = name_hashes(source.var.index)[is_shared]
    hashes = np.full(source.n_rows, NOTHING)
    for segment in segments:
        (n_rows, n_columns), first = segment.matrix.shape, segment.first_row
        key_of, is_used = np.zeros(n_columns, np.uint64), np.zeros(n_columns, bool)
        key_of[segment.column_of[is_shared]], is_used[segment.column_of[is_shared]] = keys, True
        start = 0
        n_at_once = max(1, _BLOCK_VALUES // max(1, n_columns))  # a first guess; the rows read so far improve it
        while start < n_rows:
            rows = start + np.flatnonzero(is_wanted[first + start : first + min(n_rows, start + n_at_once)])
            start += n_at_once
            if len(rows):
                n_values = _hash_block(segment.matrix, rows, key_of, is_used, min_genes, hashes[first:])
                n_at_once = int(np.clip(_BLOCK_VALUES * len(rows) / max(1, n_values), 1, 65_536))
    return hashes


def _hash_block(
    matrix: RowReader,
    rows: NDArray[np.int64],
    key_of: NDArray[np.uint64],
    is_used: NDArray[np.bool_],
    min_genes: int,
    hashes: NDArray[np.uint64],
) -> int:
    """Hash some rows into their elements of `hashes`, and return how many values were read."""
    view = matrix.read_view(rows)
    values = view.data.astype(np.float32).view(np.uint32)
    _hash_rows(view.offsets, view.lengths, view.indices, values, key_of, is_used, min_genes, rows, hashes)
    return int(view.lengths.sum())


@kernel
def _hash_rows(
    offsets: Any, lengths: Any, indices: Any, values: Any, key_of: Any, is_used: Any, min_genes: Any, rows: Any,
    hashes: Any,
) -> None:  # fmt: skip
    """Sum the hashes of a row's (gene, value) pairs: addition does not depend on their order."""
    width = np.uint64(len(key_of))
    for i in range(len(rows)):
        total, n_genes = np.uint64(0), 0
        for k in range(offsets[i], offsets[i] + lengths[i]):
            col, magnitude = np.uint64(indices[k]), values[k] & np.uint32(0x7FFFFFFF)
            if magnitude != 0 and col < width and is_used[col]:  # both zeros have no magnitude
                # All kinds of NaN are alike.
                bits = np.uint64(values[k] if magnitude <= np.uint32(0x7F800000) else np.uint32(0x7FC00000))
                total += mix(key_of[col] + bits * GOLDEN)
                n_genes += 1
        if n_genes >= min_genes:
            hashes[rows[i]] = max(total, np.uint64(1))
