"""The loader: batches of sentences and matched controls, prefetched to the device."""

from __future__ import annotations

import os
import sys
import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.fork import is_forked_with_jax
from lazypert._internal.memory import parse_bytes
from lazypert._internal.validation import require, require_integer
from lazypert.errors import ConfigError
from lazypert.loading.block_reader import BlockConfig, BlockReader
from lazypert.loading.buffer_pool import BufferPool
from lazypert.loading.cell_metadata import CellMetadata
from lazypert.loading.collate import CollateConfig, Collator
from lazypert.loading.config import LoaderConfig
from lazypert.loading.loader_iterator import LoaderIterator
from lazypert.loading.matrix_plan import MatrixPlan
from lazypert.loading.memory_plan import CellSize, EpochSize, plan_memory
from lazypert.loading.prefetch import divide_steps, prefetch
from lazypert.loading.state import Position, digest, plan_fingerprint, restore_position, save_state
from lazypert.sparse.row_view import contiguous_layout

if TYPE_CHECKING:
    from collections.abc import Generator

    import pandas as pd

    from lazypert.design.control_pools import ControlPools
    from lazypert.design.epoch_share import Epoch
    from lazypert.design.sentence_plan import SentencePlan
    from lazypert.loading.batch import PerturbationBatch
    from lazypert.screen.rows import Rows
    from lazypert.sources.base import PerturbationSource


# `host` and `n_hosts` are kept as well: another process may have another number, but its loader's batches are the same.
_PICKLED = (
    *("source", "rows", "plan", "pools", "config", "host", "n_hosts"),
    *("arguments", "epoch", "_start", "_latest"),
)


class Loader:
    """Iterates over a split in batches of static shape, so that jit compiles once.

    Each iteration runs through one epoch and goes on to the next, with other sentences and other controls;
    evaluation (``shuffle=False``) repeats its epoch, so that two evaluations can be compared.

    Background threads read, decode and collate blocks and transfer batches to the device while the
    caller computes; they release the GIL most of the time. The content of a batch depends on seed,
    epoch, host, step and, for pools of controls that do not fit, `memory_limit`; never on threads or timing.
    Usually created by ``result.loader(split)``.

    Loaders and their iterators can be pickled and copied; a copy continues from the same position, and reads and
    prefetches on its own.

    Parameters
    ----------
    source
        Where features come from.
    rows
        The rows of the split.
    plan
        The sentences of the split.
    pools
        The control pools.
    config
        Options; the default is ``LoaderConfig()``.

    Attributes
    ----------
    host, n_hosts
        The share of each epoch that is iterated over.
    epoch
        The epoch that the next iteration runs through.
    arguments
        Arguments of ``result.loader`` that made it, or nothing.

    Raises
    ------
    ConfigError
        If the options do not fit the source or the plan.
    ColumnNotFoundError
        If a gene or an obs column does not exist.
    NotCountsError
        If reads are to be downsampled or normalised and the matrix does not hold counts.
    """

    def __init__(
        self,
        source: PerturbationSource,
        rows: Rows,
        plan: SentencePlan,
        pools: ControlPools,
        config: LoaderConfig | None = None,
    ) -> None:
        is_config = config is None or isinstance(config, LoaderConfig)
        require(is_config, "config", config, "a LoaderConfig or None")
        config = LoaderConfig() if config is None else config
        self.source, self.rows, self.plan, self.pools, self.config = source, rows, plan, pools, config
        host, n_hosts = _this_process(config)
        self.host = host if config.host is None else config.host
        self.n_hosts = n_hosts if config.n_hosts is None else config.n_hosts
        require(self.host < self.n_hosts, "host", self.host, f"0 to {self.n_hosts - 1}, as n_hosts is {self.n_hosts}")
        self.arguments: dict[str, Any] = {}
        self.epoch = 0
        self._start = 0
        self._latest = Position(0, 0)
        self._prepare()

    def _prepare(self) -> None:
        """Make what belongs to this process: readers, caches and buffers."""
        config = self.config
        self._features = MatrixPlan.from_config(self.source, config)
        self._metadata = CellMetadata(self.source, config.extras, config.obs, text_width=config.text_width)
        self._memory = plan_memory(parse_bytes(config.memory_limit), config, self._cell_size(), self._epoch_size())
        buffers = BufferPool(self._memory.buffer_bytes)
        self._collator = self._make_collator(buffers)
        self._block_reader = self._make_block_reader(buffers)
        self._lock, self._process = threading.Lock(), os.getpid()
        self._planned_epoch: Epoch | None = None

    def _prepare_if_forked(self) -> None:
        """Make anew, in a forked child, what threads of the parent may have been changing.

        Raises
        ------
        ConfigError
            If batches are JAX arrays and the parent had imported JAX, which would wait for its threads for ever.
        """
        if self._process == os.getpid():
            return
        if self.config.to == "jax" and is_forked_with_jax():
            raise ConfigError(
                "to: got 'jax' in a process that was forked after JAX was imported, which would hang. Start processes "
                "with 'spawn' or 'forkserver', or load with to='numpy'."
            )
        self._prepare()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or another process needs: what to read, and the position; no threads, caches or buffers."""
        with self._lock:
            return {name: getattr(self, name) for name in _PICKLED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def __copy__(self) -> Loader:
        loader = object.__new__(Loader)
        # A copy's position moves on its own.
        loader.__setstate__(self.__getstate__() | {"_latest": Position(self._latest.epoch, self._latest.step)})
        return loader

    def _cell_size(self) -> CellSize:
        features, is_sparse = self._features, not self._features.is_embedding
        return CellSize(
            n_features=features.n_features,
            n_genes=self.source.get_n_genes(),
            nnz_per_cell=self.source.nnz_per_cell if is_sparse else 0.0,
            value_bytes=self.source.matrix.dtype.itemsize if is_sparse else 4,
            is_embedding=features.is_embedding,
            selects_genes=features.columns is not None,
        )

    def _epoch_size(self) -> EpochSize:
        return EpochSize(
            batch_size=self.batch_size,
            batches_per_block=self.plan.batches_per_block,
            n_controls=len(self.pools.controls),
        )

    @property
    def _is_zero_copy(self) -> bool:
        """Whether a batch shows the cells' rows exactly as they are read."""
        features = self._features
        return (
            self.config.layout == "csr"
            and features.columns is None
            and features.transform.columns is None
            and not features.transform.changes_values
            and self.source.matrix.dtype.itemsize <= 4
        )

    def _make_collator(self, buffers: BufferPool) -> Collator:
        config = CollateConfig(
            batch_size=self.batch_size,
            sentence_size=self.plan.sentence_size,
            n_basal_samples=self.config.n_basal_samples,
            layout=self.config.layout,
            to=self.config.to,
            sharding=self.config.sharding,
            nnz_per_cell=self._memory.nnz_per_cell,
            is_zero_copy=self._is_zero_copy,
        )
        return Collator(config, self._features.transform, self._metadata, buffers)

    def _make_block_reader(self, buffers: BufferPool) -> BlockReader:
        config = BlockConfig(
            n_basal_samples=self.config.n_basal_samples,
            fixed_pairs=self.config.fixed_pairs,
            is_embedding=self._features.is_embedding,
            columns=self._features.columns,
            target_sum=self.config.target_sum,
            reads_dense=self._memory.reads_dense,
            control_cache_bytes=self._memory.control_cache_bytes,
            control_bytes=self._memory.control_bytes,
            n_cells=int(self.plan.n_visited.sum()),
            visits_all_controls=not self.plan.shuffle,
            row_dtype=self._row_dtype,
        )
        return BlockReader(
            self.source,
            self.rows,
            self.pools,
            config,
            metadata=self._metadata,
            layout=self._collator.padded_layout if self._is_zero_copy else contiguous_layout,
            allocate=buffers.take,
        )

    @property
    def _row_dtype(self) -> type[np.signedinteger[Any]]:
        if self.config.to == "numpy":
            return np.int32
        from lazypert.loading.jax_arrays import row_dtype

        return row_dtype()

    @property
    def batch_size(self) -> int:
        """Cells per batch."""
        return self.plan.sentence_size * self.plan.config.sentences_per_batch

    @property
    def width(self) -> int:
        """Features per cell."""
        return self._features.n_features

    @property
    def obs_labels(self) -> dict[str, list[str]]:
        """Labels of the codes in ``batch.obs``, for each categorical obs column."""
        return self._metadata.labels

    @property
    def conditions(self) -> pd.DataFrame:
        """One row per ``batch.condition_code``, and a column for each covariate: labels, empty where missing."""
        return self.source.conditions

    def __len__(self) -> int:
        return self._plan_epoch(self.epoch).n_batches

    def __repr__(self) -> str:
        plan = self.plan.config
        host = f", host {self.host} of {self.n_hosts}" if self.n_hosts > 1 else ""
        return (
            f"Loader({len(self):,} batches of {plan.sentences_per_batch} x {plan.sentence_size} cells, "
            f"{self.plan.padding_share:.0%} padding, {self.width:,} features{host}, {self.config!r})"
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs through.

        It begins with the first batch, unless `load_state_dict` has just restored a position in this epoch.
        """
        epoch = require_integer("epoch", epoch)
        if epoch != self.epoch:
            self.epoch, self._start = epoch, 0
        self._latest = Position(self.epoch, self._start)

    def _plan_epoch(self, number: int) -> Epoch:
        epoch = self._planned_epoch
        if epoch is None or epoch.number != number:
            self._planned_epoch = epoch = self.plan.epoch(number, host=self.host, n_hosts=self.n_hosts)
        return epoch

    def __iter__(self) -> LoaderIterator:
        self._prepare_if_forked()
        # The threads refer to the loader. If it referred to the iterator, the iterator would never be collected.
        with self._lock:
            self._latest = position = Position(self.epoch, self._start)
            self.epoch, self._start = self.epoch + self.plan.shuffle, 0
        return LoaderIterator(self, position)

    def batch(self, step: int, epoch: int) -> PerturbationBatch:
        """Read a single batch: that of `step` in an epoch.

        Raises
        ------
        IndexError
            If the epoch has no such step.
        """
        self._prepare_if_forked()
        planned = self._plan_epoch(require_integer("epoch", epoch))
        if not 0 <= step < planned.n_batches:
            raise IndexError(f"step: got {step!r}, expected 0 to {planned.n_batches - 1}.")
        return self._collator.batch(self._block_reader.read(planned, range(step, step + 1)), 0)

    def _batches(self, start: Position) -> Generator[PerturbationBatch]:
        """Prefetch the rest of an epoch."""
        epoch, reader = self._plan_epoch(start.epoch), self._block_reader
        steps = range(min(start.step, epoch.n_batches), epoch.n_batches)
        return prefetch(
            lambda part: reader.read(epoch, part),
            self._collator.batch,
            divide_steps(steps, self.plan.batches_per_block),
            threads=self.config.n_threads,
            batches_ahead=self._memory.batches_ahead,
            n_blocks=self._memory.n_blocks,
        )

    def state_dict(self) -> dict[str, Any]:
        """Position of the latest iteration: a small dictionary that can be saved as JSON.

        Save it with a model. To resume, pass it to `load_state_dict` of a loader constructed with the same
        arguments.
        """
        return self._state(self._latest)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume: let the next iteration continue from where `state_dict` was called.

        A state that was saved at the end of an epoch continues with the next one.

        Raises
        ------
        ConfigError
            If the state has another version, or comes from a loader with different arguments.
        """
        position = self._restore(state)
        if 0 < self._plan_epoch(position.epoch).n_batches <= position.step:
            position = Position(position.epoch + self.plan.shuffle, 0)
        self._latest = position
        self.epoch, self._start = position.epoch, position.step

    def _state(self, position: Position) -> dict[str, Any]:
        return save_state(position, self.fingerprint)

    def _restore(self, state: Any) -> Position:
        return restore_position(state, self.fingerprint, lambda epoch: self._plan_epoch(epoch).n_batches)

    @property
    def _features_from_file(self) -> tuple[Any, ...]:
        is_used = "pert_emb" in self.config.extras and self.source.config.perturbation_features_file is not None
        return (self.source.perturbation_features,) if is_used else ()

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that must be equal for a step of another loader to be the same batch, as JSON values."""
        reach, features, plan = self._block_reader.reach, self._features, self.plan
        match = self.pools.match
        used = self.config.obs if match is None else (*self.config.obs, *match.obs_columns)
        return plan_fingerprint(
            plan,
            stores=digest(*self.source.content_digests(used)),
            cells=digest(self.rows.starts, self.rows.stops, plan.first, plan.size),
            controls=digest(self.pools.controls.starts, self.pools.controls.stops, self.pools.by_batch),
            features=digest(*features.fingerprint(self.source), *self._features_from_file),
            n_cells=len(self.rows),
            host=self.host,
            n_hosts=self.n_hosts,
            n_basal_samples=self.config.n_basal_samples,
            match=None if match is None else list(match.match),
            fallback=None if match is None else match.fallback,
            fixed_pairs=self.config.fixed_pairs,
            controls_in_reach=None
            if reach is None or self.config.fixed_pairs
            else reach.n_controls,  # follows from memory_limit
        )


def _this_process(config: LoaderConfig) -> tuple[int, int]:
    """Number of this process in `jax.distributed`, and number of processes.

    Where JAX is not imported there is none to ask, and NumPy batches do not need its import, which takes long.
    """
    if config.to == "numpy" and "jax" not in sys.modules:
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()
