"""Sums, numbers of non-zero values and sums of squares of genes per group, as a Dask graph.

A matrix is divided into tiles of rows, which depend on nothing but the store. The rows of a group are added up within
each tile, and the tiles then, in their order. So the sum of a group is the same to the last bit, whatever else is
grouped, however the result is divided into blocks, and on any scheduler. A block whose cells are in a few tiles, as in
a store that is sorted by group, is one task; otherwise each tile is one.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np

from lazypert.quality.value_scale import PER
from lazypert.store.sum_kernels import RowSums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from lazypert.analysis.cell_labels import CellLabels
    from lazypert.sparse.columns import ColumnSelection
    from lazypert.store.matrix import Matrix
    from lazypert.store.sharded_array import ShardedArray
    from lazypert.store.sum_kernels import Values

_TILE_VALUES, _TILE_ROWS = 1 << 23, 1 << 20
"""Stored values of a tile, about those of a shard; and its most rows."""

_BLOCK_BYTES, _BLOCK_BYTES_OF_RUNS = 64 * 1024**2, 16 * 1024**2
"""Bytes of the sums of one block of the result; smaller ones read nothing twice if groups are consecutive rows."""

_FEW_TILES, _MANY_BLOCKS = 4, 16
"""Blocks of so few tiles are one task each; and all blocks, if there are so many that they occupy the threads."""


class _Buffers:
    """Memory that the tasks of a process use one after another: fresh memory costs as much as what is done with it."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.float64]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return _Buffers, ()

    @contextlib.contextmanager
    def taken(self, length: int) -> Iterator[NDArray[np.float64]]:
        """(length,) array of any content."""
        buffer = self._free.pop() if self._free else np.empty(0)
        if len(buffer) < length:
            buffer = np.empty(length)
        yield buffer[:length]
        self._free.append(buffer)


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
    totals
        (n_obs,) sum of each row, if the store has it.
    """

    matrix: Matrix
    columns: ColumnSelection
    labels: CellLabels
    values: Values
    n_moments: int
    tile_rows: int
    totals: ShardedArray | None
    buffers: _Buffers = field(default_factory=_Buffers)

    @classmethod
    def of(
        cls,
        matrix: Matrix,
        columns: ColumnSelection,
        labels: CellLabels,
        values: Values,
        n_moments: int,
        totals: ShardedArray | None = None,
    ) -> Summation:
        """Divide a matrix into tiles of about as many values as a shard."""
        per_row = max(1.0, len(matrix.data) / max(1, matrix.shape[0]))
        rows = 1 << max(0, int(np.log2(_TILE_VALUES / per_row)))
        return cls(matrix, columns, labels, values, n_moments, min(rows, _TILE_ROWS), totals)

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
        position = self._positions(start, wanted)
        present, slots = np.unique(position[position >= 0], return_inverse=True)
        position[position >= 0] = slots
        out = np.zeros((len(present), self.columns.n_columns + 1, self.n_moments))
        self._add(start, position, out)
        return present, out[:, :-1]

    @contextlib.contextmanager
    def added_tiles(self, starts: NDArray[np.int64], wanted: NDArray[np.int64]) -> Iterator[NDArray[np.float64]]:
        """Give the (n_wanted, n_genes, n_moments) sums of some groups, the same as adding what `add_tile` returns.

        Parameters
        ----------
        starts
            First rows of the tiles, ascending.
        """
        n, row = len(wanted), (self.columns.n_columns + 1) * self.n_moments
        with self.buffers.taken(2 * n * row) as buffer:
            out = buffer.reshape(2 * n, self.columns.n_columns + 1, self.n_moments)
            is_begun = np.zeros(n, bool)
            out[:n] = 0
            for start in starts.tolist():
                position = self._positions(start, wanted)
                present = np.unique(position[position >= 0])
                again = present[is_begun[present]]  # to the others, there is nothing that their tile could be added to
                slots = np.append(np.arange(n), -1)
                slots[again] = n + np.arange(len(again))
                out[n : n + len(again)] = 0
                self._add(start, slots[position], out)
                for k, group in enumerate(again.tolist()):
                    out[group] += out[n + k]
                is_begun[present] = True
            yield out[:n, :-1]

    def _positions(self, start: int, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n_rows,) position among `wanted` of the group of each row of a tile, or -1."""
        group = self.labels.of_rows(start, min(self.matrix.shape[0], start + self.tile_rows))
        position = np.searchsorted(wanted, group).clip(max=len(wanted) - 1)
        return np.where(wanted[position] == group, position, -1)

    def _add(self, start: int, slots: NDArray[np.int64], out: NDArray[np.float64]) -> None:
        factors = None if self.values == "stored" else self._factors(start, slots)
        self.matrix.add_up(start, RowSums.make(slots, factors, self.values, out), self.columns)

    def _factors(self, start: int, slots: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n_rows,) what scales each row to the total; 0 for rows without counts."""
        if self.totals is not None:
            total = self.totals.read(start, start + len(slots))
        else:
            total = np.zeros(len(slots))
            total[slots >= 0] = self.matrix.totals(start + np.flatnonzero(slots >= 0))
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
    block_bytes = _BLOCK_BYTES_OF_RUNS if labels.is_by_run else _BLOCK_BYTES
    chunks = block_chunks(labels.shape, block_bytes // max(1, n_genes * summation.n_moments * 8))
    n_blocks = math.prod(map(len, chunks))
    shared = dask.delayed(summation, pure=False, traverse=False)
    blocks: list[list[Any]] = [[] for _ in dtypes]
    for wanted, shape in block_groups(labels.shape, chunks):
        tiles = np.unique(np.concatenate([np.empty(0, np.int64), *(tiles_of_group(g) for g in wanted.tolist())]))
        starts, of_block = tiles * summation.tile_rows, _Block(wanted, n_cells[wanted], (*shape, n_genes), finish)
        if n_blocks >= _MANY_BLOCKS or len(tiles) <= _FEW_TILES:
            finished = dask.delayed(_reduce, pure=False, nout=len(dtypes))(shared, starts, of_block)
        else:
            sums = _add_tiles(shared, starts, wanted)
            finished = dask.delayed(_finish, pure=False, nout=len(dtypes))(sums, of_block)
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


@dataclass(frozen=True, eq=False)
class _Block:
    """Groups of one block of the result.

    Attributes
    ----------
    wanted
        (n,) numbers of the groups, ascending.
    n_cells
        (n,) cells of each.
    shape
        Shape of the block, the genes last.
    finish
        See `reduce_blocks`.
    """

    wanted: NDArray[np.int64]
    n_cells: NDArray[np.int64]
    shape: tuple[int, ...]
    finish: Callable[[NDArray[np.float64], NDArray[np.int64]], tuple[NDArray[Any], ...]]

    def finished(self, sums: NDArray[np.float64]) -> tuple[NDArray[Any], ...]:
        """Make statistics of ``(n, n_genes, n_moments)`` sums."""
        return tuple(part.reshape(self.shape) for part in self.finish(sums, self.n_cells))


def _reduce(summation: Summation, starts: NDArray[np.int64], block: _Block) -> tuple[NDArray[Any], ...]:
    with summation.added_tiles(starts, block.wanted) as sums:
        return block.finished(sums)


def _add_tiles(shared: Any, starts: NDArray[np.int64], wanted: NDArray[np.int64]) -> Any:
    """Make the tasks that add up a block: one tile after another, so that the matrix is read from front to back."""
    sums = None
    for start in starts.tolist():
        part = dask.delayed(_add_tile, pure=False)(shared, start, wanted)
        sums = dask.delayed(_add_part, pure=False)(sums, part, len(wanted))
    return sums


def _add_tile(summation: Summation, start: int, wanted: NDArray[np.int64]) -> Any:
    return summation.add_tile(start, wanted)


def _add_part(sums: NDArray[np.float64] | None, part: Any, n_groups: int) -> NDArray[np.float64]:
    present, of_tile = part
    result = np.zeros((n_groups, *of_tile.shape[1:])) if sums is None else sums.copy()
    result[present] += of_tile
    return result


def _finish(sums: NDArray[np.float64], block: _Block) -> tuple[NDArray[Any], ...]:
    return block.finished(sums)


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
