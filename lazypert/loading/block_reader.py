"""Blocks: the cells of several batches and their controls, read together and held as stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.randomness import counter_hash
from lazypert.loading.control_cache import PAGE_SIZE, ControlCache
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
    run
        (n,) run of each cell.
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

    run: NDArray[np.int64]
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
    row_dtype: Any = np.int32


class BlockReader:
    """Reads the blocks of an epoch. Thread-safe; the content of a block depends only on epoch and number.

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
    rotating_sample_size
        Controls per pool that may be drawn at a time: as many as fit in the cache together.
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
        self.rotating_sample_size = pools.sample_size(
            config.control_cache_bytes // max(1, config.control_bytes), PAGE_SIZE
        )
        # Fixed pairs are scattered over their pools. If the cache does not hold all controls, reading whole
        # pages would mostly cause read amplification.
        use_cache = not config.fixed_pairs or self.rotating_sample_size >= len(pools.controls)
        self._control_cache = ControlCache(
            source.matrix,
            pools.controls,
            config.control_cache_bytes if use_cache else 0,
            config.columns,
            totals=config.target_sum is not None,
        )

    def read(self, epoch: Epoch, number: int) -> Block:
        """Read block `number` of an epoch."""
        split_index, is_padding = epoch.block(number)
        positions = self._rows.positions(split_index.ravel())
        run = self._source.groups.run_of(positions)
        row = self._rows.to_rows(positions)
        seed, n, row_dtype = epoch.plan.config.seed, self._config.n_basal_samples, self._config.row_dtype
        control_index = self._draw_controls(epoch, number, row, run)
        control_row = self._pools.controls[control_index] if n else control_index
        cells, controls = self._read_features(row, control_index.ravel(), control_row.ravel())
        pair_number = (row[:, None] * np.int64(n) + np.arange(n)).ravel()
        columns = self._label_columns(run) | {"is_padding": is_padding.ravel(), "row": row.astype(row_dtype)}
        if n:
            columns["control_row"] = control_row.astype(row_dtype)
        return Block(
            run,
            columns,
            cells,
            controls,
            counter_hash((seed, epoch.number, _CELL_READS), row),
            counter_hash((seed, epoch.number, _CONTROL_READS), pair_number),
            self._metadata.read(row),
        )

    def _draw_controls(
        self, epoch: Epoch, number: int, row: NDArray[np.int64], run: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """(n, K) control index of the controls of each cell."""
        seed, n = epoch.plan.config.seed, self._config.n_basal_samples
        if not n:
            return np.empty((len(row), 0), np.int64)
        if self._config.fixed_pairs:
            return self._pools.control_index(row, run, n, (seed,))
        block_count = epoch.number * epoch.n_blocks + number
        return self._pools.control_index(
            row, run, n, (seed, epoch.number), sample_size=self.rotating_sample_size, rotation=block_count
        )

    def _label_columns(self, run: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        groups = self._source.groups
        return {
            "pert_code": groups.codes["perturbation"][run],
            "cell_type_code": groups.codes["cell_type"][run],
            "batch_code": groups.codes["batch"][run],
            "is_control": groups.is_control[run],
        }

    def _read_features(
        self, row: NDArray[np.int64], control_index: NDArray[np.int64], control_row: NDArray[np.int64]
    ) -> tuple[Any, Any]:
        """Features of cells and controls, or None without controls."""
        config, matrix = self._config, self._source.matrix
        if config.is_embedding:
            return self._source.read_embedding(row), self._source.read_embedding(control_row)
        controls = self._control_cache.rows(control_index) if len(control_index) else None
        if config.columns is None:
            view = matrix.read_view(row, layout=self._layout, allocate=self._allocate)
        elif config.reads_dense:
            dense = matrix.read_dense(row, config.columns, target_sum=config.target_sum, allocate=self._allocate)
            return dense, controls
        else:
            view = matrix.read_columns(row, config.columns, totals=config.target_sum is not None)
        return RowPointers.from_view(view), controls
