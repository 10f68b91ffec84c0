"""Sums, numbers of non-zero values and sums of squares of genes per group, as a Dask graph.

A matrix is divided into tiles of rows, which depend on nothing but the store. A task adds up the rows of a tile that
are in one block of the result; another adds the tiles of a block, in their order. So the sum of a group is the same to
the last bit, whatever else is grouped, however the result is divided into blocks, and on any scheduler.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np

from lazypert.quality.value_scale import PER
from lazypert.sparse.columns import ColumnSelection
from lazypert.store.sum_kernels import RowSums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from lazypert.analysis.cell_labels import CellLabels
    from lazypert.store.matrix import Matrix
    from lazypert.store.sum_kernels import Values

_TILE_VALUES, _TILE_ROWS = 1 << 23, 1 << 20
"""Stored values of a tile, about those of a shard; and its most rows."""

_BLOCK_BYTES = 64 * 1024**2
"""Bytes of the sums of one block of the result."""


@dataclass(frozen=True, eq=False)
class Summation:
    """What is added up.

    Attributes
    ----------
    matrix, columns
        The values, and which genes.
    labels
        The group of each cell.
    values
        Values as stored, scaled to a total of 10,000 per cell, or log1p of these.
    n_moments
        1 for sums, 2 for numbers of non-zero values too, 3 for sums of squares too.
    tile_rows
        Rows of a tile.
    """

    matrix: Matrix
    columns: ColumnSelection
    labels: CellLabels
    values: Values
    n_moments: int
    tile_rows: int

    @classmethod
    def of(
        cls, matrix: Matrix, columns: ColumnSelection, labels: CellLabels, values: Values, n_moments: int
    ) -> Summation:
        """Divide a matrix into tiles of about as many values as a shard."""
        per_row = max(1.0, len(matrix.data) / max(1, matrix.shape[0]))
        rows = 1 << max(0, int(np.log2(_TILE_VALUES / per_row)))
        return cls(matrix, columns, labels, values, n_moments, min(rows, _TILE_ROWS))

    def add_tile(self, start: int, wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Add up the rows of a tile that belong to some groups.

        Parameters
        ----------
        start
            First row of the tile.
        wanted
            Numbers of the groups, ascending.

        Returns
        -------
        Positions among `wanted` of the groups that have cells in the tile, and their (n, n_genes, n_moments) sums.
        """
        group = self.labels.of_rows(start, min(self.matrix.shape[0], start + self.tile_rows))
        position = np.searchsorted(wanted, group).clip(max=len(wanted) - 1)
        is_wanted = wanted[position] == group
        present, slots = np.unique(position[is_wanted], return_inverse=True)
        slot_of_row = np.full(len(group), -1)
        slot_of_row[is_wanted] = slots
        out = np.zeros((len(present), self.columns.n_columns + 1, self.n_moments))
        factors = None if self.values == "stored" else self._factors(start, slot_of_row)
        self.matrix.add_up(start, RowSums.make(slot_of_row, factors, self.values, out), self.columns)
        return present, out[:, :-1]

    def _factors(self, start: int, slots: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n_rows,) what scales each row to the total; 0 for rows without counts."""
        totals = np.zeros((len(slots), 2, 1))
        each = np.where(slots >= 0, np.arange(len(slots)), -1)
        self.matrix.add_up(
            start, RowSums.make(each, None, "stored", totals), ColumnSelection.joined(self.matrix.shape[1])
        )
        total = totals[:, 0, 0]
        return np.divide(PER, total, out=np.zeros(len(total)), where=total > 0)


def reduce_blocks(
    summation: Summation, finish: Callable[[NDArray[np.float64], NDArray[np.int64]], tuple[NDArray[Any], ...]],
    dtypes: tuple[Any, ...],
) -> tuple[tuple[da.Array, ...], NDArray[np.int64]]:  # fmt: skip
    """Make lazy arrays of statistics of every group.

    Parameters
    ----------
    finish
        Makes the statistics of ``(n_groups, n_genes, n_moments)`` sums and ``(n_groups,)`` numbers of cells.
    dtypes
        Of the statistics.

    Returns
    -------
    ``(*labels.shape, n_genes)`` Dask arrays, and the ``labels.shape`` numbers of cells.
    """
    labels, n_genes = summation.labels, summation.columns.n_columns
    n_cells, occurring = labels.count(summation.matrix.shape[0], summation.tile_rows)
    tiles_of_group = _tiles_of(occurring)
    chunks = block_chunks(labels.shape, _BLOCK_BYTES // max(1, n_genes * summation.n_moments * 8))
    shared = dask.delayed(summation, pure=False, traverse=False)
    blocks: list[list[Any]] = [[] for _ in dtypes]
    for wanted, shape in block_groups(labels.shape, chunks):
        tiles = np.unique(np.concatenate([np.empty(0, np.int64), *(tiles_of_group(g) for g in wanted.tolist())]))
        finished = dask.delayed(_finish, pure=False, nout=len(dtypes))(
            _add_tiles(summation, shared, tiles, wanted), finish, n_cells[wanted], shape, n_genes,
            summation.n_moments,
        )  # fmt: skip
        for parts, part, dtype in zip(blocks, finished, dtypes, strict=True):
            parts.append(da.from_delayed(part, (*shape, n_genes), dtype))
    counts, shape = tuple(len(sizes) for sizes in chunks), (*labels.shape, n_genes)
    arrays = (
        _assemble(parts, counts) if parts else da.zeros(shape, dtype)  # an axis without labels
        for parts, dtype in zip(blocks, dtypes, strict=True)
    )
    return tuple(arrays), n_cells.reshape(labels.shape)


def _tiles_of(occurring: list[NDArray[np.int64]]) -> Callable[[int], NDArray[np.int64]]:
    """Return a function that lists the tiles in which a group has cells, ascending."""
    group = np.concatenate([np.empty(0, np.int64), *occurring])
    tile = np.repeat(np.arange(len(occurring)), np.array([len(found) for found in occurring], np.int64))
    order = np.argsort(group, kind="stable")
    group, tile = group[order], tile[order]
    return lambda number: tile[np.searchsorted(group, number) : np.searchsorted(group, number, side="right")]


def _add_tiles(summation: Summation, shared: Any, tiles: NDArray[np.int64], wanted: NDArray[np.int64]) -> Any:
    """Make the tasks that add up a block: one tile after another, so that the matrix is read from front to back."""
    sums = None
    for tile in tiles.tolist():
        part = dask.delayed(_add_tile, pure=False)(shared, tile * summation.tile_rows, wanted)
        sums = dask.delayed(_add_part, pure=False)(sums, part, len(wanted))
    return sums


def _add_tile(summation: Summation, start: int, wanted: NDArray[np.int64]) -> Any:
    return summation.add_tile(start, wanted)


def _add_part(sums: NDArray[np.float64] | None, part: Any, n_groups: int) -> NDArray[np.float64]:
    present, of_tile = part
    result = np.zeros((n_groups, *of_tile.shape[1:])) if sums is None else sums.copy()
    result[present] += of_tile
    return result


def _finish(
    sums: NDArray[np.float64] | None, finish: Any, n_cells: NDArray[np.int64], shape: tuple[int, ...], n_genes: int,
    n_moments: int,
) -> tuple[NDArray[Any], ...]:  # fmt: skip
    if sums is None:
        sums = np.zeros((len(n_cells), n_genes, n_moments))
    return tuple(part.reshape(*shape, n_genes) for part in finish(sums, n_cells))


def block_chunks(shape: tuple[int, ...], n_groups: int) -> tuple[tuple[int, ...], ...]:
    """Divide the axes of groups into chunks of at most `n_groups`, of the last axes first."""
    left, chunks = max(1, n_groups), []
    for length in reversed(shape):
        size = max(1, min(length, left))
        chunks.append(tuple(min(size, length - at) for at in range(0, length, size)))
        left = left // size if size == length else 1
    return tuple(reversed(chunks))


def block_groups(
    shape: tuple[int, ...], chunks: tuple[tuple[int, ...], ...]
) -> Iterator[tuple[NDArray[np.int64], tuple[int, ...]]]:
    """Yield the numbers of the groups of each block, ascending, and its shape."""
    starts = [np.cumsum([0, *sizes[:-1]]) if sizes else np.empty(0, np.int64) for sizes in chunks]
    for index in itertools.product(*(range(len(sizes)) for sizes in chunks)):
        spans = [np.arange(starts[d][i], starts[d][i] + chunks[d][i]) for d, i in enumerate(index)]
        numbers = np.zeros((), np.int64)
        for span, length in zip(spans, shape, strict=True):
            numbers = numbers[..., None] * length + span
        yield numbers.reshape(-1), tuple(len(span) for span in spans)


def _assemble(parts: list[da.Array], counts: tuple[int, ...]) -> da.Array:
    """Put blocks, listed in C order, together."""
    if not counts:
        return parts[0]
    nested: Any = parts
    for count in reversed(counts[1:]):
        nested = [nested[i : i + count] for i in range(0, len(nested), count)]
    return _block(nested, 0)


def _block(nested: list[Any], axis: int) -> da.Array:
    return da.concatenate([_block(part, axis + 1) if isinstance(part, list) else part for part in nested], axis=axis)
