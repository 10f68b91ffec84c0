"""Blocks: the cells of several batches and their controls, read together and held as stored."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.randomness import counter_hash
from lazypert.design.control_draws import DrawnCells
from lazypert.design.epoch_share import Sentences
from lazypert.loading.control_arena import ControlArena, arena_bytes
from lazypert.loading.control_cache import ControlCache
from lazypert.loading.row_pointers import RowPointers
from lazypert.sparse.row_view import contiguous_layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lazypert.design.control_pools import ControlPools
    from lazypert.design.epoch_share import Epoch
    from lazypert.loading.cell_metadata import CellMetadata
    from lazypert.screen.rows import Rows
    from lazypert.sources.base import PerturbationSource
    from lazypert.sparse.columns import ColumnSelection
    from lazypert.sparse.row_view import RowLayout

_CELL_READS, _CONTROL_READS = 201, 202  # streams of random numbers that determine which reads are kept


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The cells of several batches, batch by batch: ``n`` cells with ``K`` controls each.

    Attributes
    ----------
    columns
        Fields of a batch by name, cells first, in the dtypes that a batch has.
    cells, controls
        ``n`` and ``n * K`` sparse rows; or (n, width) and (n * K, width) float32 features as in a
        batch. Controls are None if K is 0.
    cell_keys, control_keys
        uint64 random number of each of these rows.
    metadata
        Cell names and obs columns, by name.
    """

    columns: dict[str, NDArray[Any]]
    cells: RowPointers | NDArray[np.float32]
    controls: RowPointers | NDArray[np.float32] | None
    cell_keys: NDArray[np.uint64]
    control_keys: NDArray[np.uint64]
    metadata: dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockConfig:
    """Options of `BlockReader`.

    Parameters
    ----------
    n_basal_samples
        Controls per cell.
    fixed_pairs
        Give each cell the same controls in every epoch.
    is_embedding
        Read the embedding instead of the matrix.
    columns, target_sum
        Columns to read, None for all; and the sum that rows are scaled to, if any.
    reads_dense
        Read cells as dense rows, already scaled.
    control_cache_bytes, control_bytes
        Byte budget of the control cache, and bytes per control, estimated.
    n_cells, visits_all_controls
        Cells that get controls in one epoch; and whether all controls come within reach in each epoch, however few
        the cells are.
    row_dtype
        Dtype of row numbers in batches.
    """

    n_basal_samples: int
    fixed_pairs: bool
    is_embedding: bool
    columns: ColumnSelection | None
    target_sum: float | None
    reads_dense: bool
    control_cache_bytes: int
    control_bytes: int
    n_cells: int
    visits_all_controls: bool
    row_dtype: Any = np.int32


class BlockReader:
    """Reads the blocks of an epoch. Thread-safe; the content of a batch depends only on epoch and step.

    Parameters
    ----------
    source, rows, pools
        The source of features, the rows of the split, and the control pools.
    config
        What to read.
    metadata
        Reads cell names and obs columns.
    layout, allocate
        Offsets of the cells' rows in memory, and the function that allocates it; see
        `RowReader.read_view`.

    Attributes
    ----------
    reach
        The part of each pool that may be drawn from at a time; None if all controls fit in the cache.
    """

    def __init__(
        self,
        source: PerturbationSource,
        rows: Rows,
        pools: ControlPools,
        config: BlockConfig,
        *,
        metadata: CellMetadata,
        layout: RowLayout = contiguous_layout,
        allocate: Callable[[Any, Any], NDArray[Any]] = np.empty,
    ) -> None:
        self._source, self._rows, self._pools, self._config = source, rows, pools, config
        self._metadata, self._layout, self._allocate = metadata, layout, allocate
        n_fitting = config.control_cache_bytes // max(1, config.control_bytes)
        # Pages at both ends of a reach are cached too, and those that it has just left.
        fits = config.is_embedding or n_fitting >= len(pools.controls)  # embeddings are not cached
        n_within_reach = len(pools.controls) if fits else n_fitting * 3 // 4
        self.reach = pools.reach(n_within_reach, config.n_cells, config.n_basal_samples)
        if self.reach is not None and config.visits_all_controls:
            self.reach = replace(self.reach, turns=1.0)
        self._planning = threading.Lock()
        self._planned: deque[tuple[tuple[int, int], Sentences]] = deque(maxlen=2)
        self._controls = None if config.is_embedding or not config.n_basal_samples else self._make_control_cache()

    def _make_control_cache(self) -> ControlArena | ControlCache:
        config, matrix, controls = self._config, self._source.matrix, self._pools.controls
        totals = config.target_sum is not None
        if self.reach is None:
            n_bytes = arena_bytes(matrix, controls, config.columns)
            if n_bytes <= config.control_cache_bytes:
                return ControlArena(matrix, controls, n_bytes, config.columns, totals=totals)
        # Fixed pairs are scattered over their pools. If the cache does not hold all controls, reading whole
        # pages would be mostly read amplification.
        n_bytes = 0 if config.fixed_pairs and self.reach is not None else config.control_cache_bytes
        return ControlCache(matrix, controls, n_bytes, config.columns, totals=totals)

    def read(self, epoch: Epoch, steps: range) -> Block:
        """Read the batches of consecutive steps of an epoch, which are all of one block or some of it."""
        sentences = self._sentences(epoch, steps)
        positions = self._rows.positions(sentences.cells.ravel())
        cells = DrawnCells(
            positions,
            self._rows.to_rows(positions),
            self._source.groups.run_of(positions),
            sentences.draw.ravel(),
            np.repeat(sentences.phase, sentences.cells.shape[1]),
        )
        seed, n, row_dtype = epoch.plan.config.seed, self._config.n_basal_samples, self._config.row_dtype
        control_index = self._draw_controls(epoch, positions, cells)
        control_row = self._pools.controls[control_index] if n else control_index
        allocate = self._allocate_share(epoch.plan.batches_per_block / len(steps))
        features, controls = self._read_features(cells.row, control_index.ravel(), control_row.ravel(), allocate)
        pair_number = (cells.counter[:, None] * np.int64(n) + np.arange(n)).ravel()
        columns = self._label_columns(cells) | {
            "is_padding": sentences.is_padding.ravel(),
            "row": cells.row.astype(row_dtype),
        }
        if n:
            columns["control_row"] = control_row.astype(row_dtype)
        return Block(
            columns,
            features,
            controls,
            counter_hash((seed, epoch.number, _CELL_READS), cells.counter),
            counter_hash((seed, epoch.number, _CONTROL_READS), pair_number),
            self._metadata.read(cells.row),
        )

    def _sentences(self, epoch: Epoch, steps: range) -> Sentences:
        """Sentences of steps that are in the same block."""
        number, first = divmod(steps.start, epoch.plan.batches_per_block)
        per_batch = epoch.plan.config.sentences_per_batch
        of_steps = slice(first * per_batch, (first + len(steps)) * per_batch)
        with self._planning:  # threads read parts of the same block
            planned = [sentences for key, sentences in self._planned if key == (epoch.number, number)]
            if not planned:
                planned = [epoch.block(number)]
                self._planned.append(((epoch.number, number), planned[0]))
        cells, is_padding, draw, phase = planned[0]
        return Sentences(cells[of_steps], is_padding[of_steps], draw[of_steps], phase[of_steps])

    def _draw_controls(self, epoch: Epoch, positions: NDArray[np.int64], cells: DrawnCells) -> NDArray[np.int64]:
        """(n, K) control index of the controls of each cell."""
        seed, n = epoch.plan.config.seed, self._config.n_basal_samples
        if not n:
            return np.empty((len(positions), 0), np.int64)
        if self._config.fixed_pairs:
            return self._pools.fixed_control_index(positions, n, seed)
        return self._pools.control_index(cells, n, (seed, epoch.number), self.reach)

    def _label_columns(self, cells: DrawnCells) -> dict[str, NDArray[Any]]:
        groups, run = self._source.groups, cells.run
        condition = {"condition_code": groups.condition[run]} if groups.roles.covariates else {}
        return condition | {
            "pert_code": groups.codes["perturbation"][run],
            "cell_type_code": groups.codes["cell_type"][run],
            "batch_code": groups.batch_of(cells.row),
            "dataset_code": groups.codes["dataset"][run],
            "is_control": groups.is_control[run],
        }

    def _allocate_share(self, parts: float) -> Callable[[Any, Any], NDArray[Any]]:
        """Allocate arrays of one of so many parts of a block in memory for a whole one, which can be reused for that.

        What is not used costs nothing, because the system provides memory only once it is written to.
        """

        def allocate(shape: Any, dtype: Any) -> NDArray[Any]:
            size = int(np.prod(shape))
            return self._allocate(int(size * parts), dtype)[:size].reshape(shape)

        return allocate

    def _read_features(
        self,
        row: NDArray[np.int64],
        control_index: NDArray[np.int64],
        control_row: NDArray[np.int64],
        allocate: Callable[[Any, Any], NDArray[Any]],
    ) -> tuple[Any, Any]:
        """Features of cells and controls, or None without controls."""
        config, matrix = self._config, self._source.matrix
        if config.is_embedding:
            return self._source.read_embedding(row), self._source.read_embedding(control_row)
        controls = None if self._controls is None else self._controls.rows(control_index)
        if config.columns is None:
            view = matrix.read_view(row, layout=self._layout, allocate=allocate)
        elif config.reads_dense:
            dense = matrix.read_dense(row, config.columns, target_sum=config.target_sum, allocate=allocate)
            return dense, controls
        else:
            view = matrix.read_columns(row, config.columns, totals=config.target_sum is not None)
        return RowPointers.from_view(view), controls
