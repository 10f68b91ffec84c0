"""Blocks: the cells of some batches and their controls, read together, in memory as compact as stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.randomness import counter_hash
from lazypert.loading.row_pointers import RowPointers

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lazypert.design.control_pools import ControlPools
    from lazypert.design.epoch import Epoch
    from lazypert.screen.rows import Rows
    from lazypert.sources.base import PerturbationSource
    from lazypert.sparse.columns import ColumnSelection
    from lazypert.sparse.row_view import RowLayout
from lazypert.loading.control_cache import PIECE, ControlCache

_CELLS, _CONTROLS = 201, 202  # whose reads random numbers are for


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The cells of some batches, batch by batch, with ``n`` cells and ``K`` controls each.

    Attributes
    ----------
    run
        (n,) run of each cell in the groups.
    columns
        What a batch shows of its cells, under the names and in the dtypes that it has there, cells first.
    cells, controls
        Their ``n`` and ``n * K`` sparse rows; or (n, width) and (n * K, width) float32 as a batch shows
        them. Controls are None where K is 0.
    cell_keys, control_keys
        uint64 random number of each of these rows.
    annotations
        Cell names and obs columns, by name.
    """

    run: NDArray[np.int64]
    columns: dict[str, NDArray[Any]]
    cells: RowPointers | NDArray[np.float32]
    controls: RowPointers | NDArray[np.float32] | None
    cell_keys: NDArray[np.uint64]
    control_keys: NDArray[np.uint64]
    annotations: dict[str, NDArray[Any]]


class BlockReader:
    """Reads blocks of an epoch. Thread-safe; what a block holds depends on its number alone.

    Parameters
    ----------
    source, rows, pools
        Where features come from, the split's rows, and where controls come from.
    annotate
        Gives what else is wanted of cells, by their store rows.
    n_basal_samples
        Controls a cell.
    embedding
        Read the embedding in place of the matrix.
    pool_bytes
        Bytes of controls to keep in memory.
    control_bytes
        Bytes that one control takes, about.
    fixed_pairs
        Give a cell the same controls in every epoch.
    row_dtype
        Of row numbers in batches.
    columns, target_sum
        Read these columns only, None reads all; and the sum that is to be scaled to, if any.
    dense
        Read cells dense, and scaled.
    place, empty
        Where the cells' rows should lie in memory, and whose memory it is; see `Matrix.read_view`.
    """

    def __init__(
        self,
        source: PerturbationSource,
        rows: Rows,
        pools: ControlPools,
        *,
        annotate: Callable[[NDArray[np.int64]], dict[str, NDArray[Any]]],
        n_basal_samples: int,
        embedding: bool,
        pool_bytes: int,
        control_bytes: int,
        fixed_pairs: bool,
        row_dtype: Any,
        columns: ColumnSelection | None,
        target_sum: float | None,
        dense: bool,
        place: RowLayout,
        empty: Callable[[Any, Any], NDArray[Any]],
    ) -> None:
        self.source, self.rows, self.pools, self.annotate = source, rows, pools, annotate
        self.place, self.empty, self.row_dtype = place, empty, row_dtype
        self.columns, self.target_sum, self.dense = columns, target_sum, dense
        self.n_basal_samples, self.embedding, self.fixed_pairs = n_basal_samples, embedding, fixed_pairs
        self.reach = pools.sample_size(pool_bytes // max(1, control_bytes), PIECE)
        # Pairs for life are all over the pools: where not all controls stay in memory, each is read by itself.
        in_pieces = not fixed_pairs or self.reach >= len(pools.controls)
        self._kept = ControlCache(
            source.matrix, pools.controls, pool_bytes if in_pieces else 0, columns, totals=target_sum is not None
        )

    def read(self, epoch: Epoch, number: int) -> Block:
        """Read block `number` of an epoch."""
        places, is_padding = epoch.block(number)
        positions = self.rows.positions(places.ravel())
        run = self.source.groups.run_of(positions)
        row = self.rows.to_rows(positions)
        seed, n = epoch.plan.config.seed, self.n_basal_samples
        if not n:
            chosen = np.empty((len(row), 0), np.int64)
        elif self.fixed_pairs:
            chosen = self.pools.control_index(row, run, n, (seed,))
        else:
            turn = epoch.number * epoch.n_blocks + number
            chosen = self.pools.control_index(row, run, n, (seed, epoch.number), sample_size=self.reach, rotation=turn)
        control_row = self.pools.controls[chosen] if n else chosen
        cells, controls = self._features(row, chosen.ravel(), control_row.ravel())
        keys = counter_hash((seed, epoch.number, _CELLS), row)
        of_control = (row[:, None] * np.int64(n) + np.arange(n)).ravel()
        control_keys = counter_hash((seed, epoch.number, _CONTROLS), of_control)
        columns = self._columns(run) | {"is_padding": is_padding.ravel(), "row": row.astype(self.row_dtype)}
        if n:
            columns["control_row"] = control_row.astype(self.row_dtype)
        return Block(run, columns, cells, controls, keys, control_keys, self.annotate(row))

    def _columns(self, run: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        groups = self.source.groups
        return {
            "pert_code": groups.codes["perturbation"][run],
            "cell_type_code": groups.codes["cell_type"][run],
            "batch_code": groups.codes["batch"][run],
            "is_control": groups.is_control[run],
        }

    def _features(
        self, row: NDArray[np.int64], chosen: NDArray[np.int64], control_row: NDArray[np.int64]
    ) -> tuple[Any, Any]:
        if self.embedding:
            return self.source.read_embedding(row), self.source.read_embedding(control_row)
        controls = self._kept.rows(chosen) if len(chosen) else None
        if self.columns is None:
            placed = self.source.matrix.read_view(row, layout=self.place, allocate=self.empty)
        elif self.dense:
            return self.source.matrix.read_dense(
                row, self.columns, target_sum=self.target_sum, allocate=self.empty
            ), controls
        else:
            placed = self.source.matrix.read_columns(row, self.columns, totals=self.target_sum is not None)
        return RowPointers.whole(placed), controls
