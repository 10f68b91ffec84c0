"""The loader: batches of sentences and matched controls, on the device, while the model computes."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from zlib import crc32

import jax
import numpy as np
import pandas as pd

from lazypert._internal.memory import cpu_count, parse_bytes
from lazypert._internal.validation import (
    require,
    require_choice,
    require_flag,
    require_integer,
    require_names,
    require_number,
)
from lazypert.downsampling.downsampler import DownsamplingConfig
from lazypert.errors import ColumnNotFoundError, ConfigError, NotCountsError, near_matches
from lazypert.loading.block_reader import BlockReader
from lazypert.loading.buffer_pool import BufferPool
from lazypert.loading.cell_metadata import CellMetadata
from lazypert.loading.collate import Collator
from lazypert.loading.prefetch import prefetch
from lazypert.loading.row_pointers import RowTransform
from lazypert.sparse.columns import ColumnSelection
from lazypert.sparse.row_view import contiguous_layout

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from lazypert.design.control_pools import ControlPools
    from lazypert.design.epoch import Epoch
    from lazypert.design.sentences import SentencePlan
    from lazypert.loading.batch import PerturbationBatch
    from lazypert.loading.block_reader import Block
    from lazypert.screen.rows import Rows
    from lazypert.sources.base import PerturbationSource

LAYOUTS = ("dense", "csr")
TARGETS = ("jax", "numpy")
STATE_VERSION = 1


class Loader:
    """Iterates over one epoch of a split; batches have the same shapes, so jit compiles once.

    Blocks of cells are read, decoded, made into batches and put on the device by background threads,
    which hold no GIL for most of it, while the caller computes. What a batch holds depends on the seed,
    epoch, host and number, and which controls are in reach on `memory_limit`; never on threads or timing.
    Usually made by ``result.loader(split)``.

    Parameters
    ----------
    source
        Where features come from.
    rows
        The split's rows.
    plan
        The sentences.
    pools
        Where controls come from.
    n_basal_samples
        Controls a cell; 0 for none.
    layout
        ``"dense"`` float32 arrays; or ``"csr"``, padded `SparseRows`, which go to a device in a fraction
        of the bytes and are made dense there by ``to_dense()`` under jit. Their room is for an average
        batch and 15 % more; a batch that needs more gets a larger one, and jit compiles again.
    genes
        Names of the genes to give, in this order; None takes those of the source's output space.
    target_sum
        Give ``log1p(counts * target_sum / total counts of the cell)``, with the total over all genes
        of the source; None gives counts as they are.
    downsampling
        Lose reads at random before anything else (mode, fraction and target depth of it count). Who
        needs gradients through it uses `ReadDownsampler` on raw counts instead.
    extras
        Which of ``"pert_emb"``, ``"cell_type_onehot"``, ``"batch_onehot"`` and ``"barcode"`` to add.
    obs
        obs columns to add.
    text_width
        Bytes for each barcode and each text of an obs column.
    fixed_pairs
        Give a cell the same controls in every epoch, not new ones in each: with the pipeline's `seed`
        and `n_basal_samples`, those of ``result.control_mapping``.
    to
        ``"jax"``, or ``"numpy"`` for host arrays, which for example PyTorch takes without a copy.
    sharding
        Put batches on several devices: a `jax.sharding.Sharding` whose first axis is the batch.
    host, n_hosts
        Go through one of `n_hosts` equally long parts of each epoch, no two of which share a sentence.
        By default those of ``jax.process_index()`` and ``jax.process_count()``.
    threads
        Background threads that read; by default one more than there are processors, as one may wait for
        a disk, at most 8. As many more, up to `prefetch`, make batches of what was read.
    prefetch
        Batches finished ahead of the caller, at most.
    memory_limit
        Bytes for controls in memory, blocks, and batches finished ahead. At least two blocks and one
        batch are held in any case.

    Raises
    ------
    ConfigError
        When an option has no meaning.
    ColumnNotFoundError
        When a gene or an obs column does not exist.
    """

    def __init__(
        self,
        source: PerturbationSource,
        rows: Rows,
        plan: SentencePlan,
        pools: ControlPools,
        *,
        n_basal_samples: int = 1,
        layout: str = "dense",
        genes: Sequence[str] | None = None,
        target_sum: float | None = None,
        downsampling: DownsamplingConfig | None = None,
        extras: Sequence[str] = (),
        obs: Sequence[str] = (),
        text_width: int = 64,
        fixed_pairs: bool = False,
        to: str = "jax",
        sharding: jax.sharding.Sharding | None = None,
        host: int | None = None,
        n_hosts: int | None = None,
        threads: int | None = None,
        prefetch: int = 2,
        memory_limit: int | str = "512MiB",
    ) -> None:
        self.source, self.rows, self.plan, self.pools = source, rows, plan, pools
        self.n_basal_samples, self.layout, self.to, self.sharding = n_basal_samples, layout, to, sharding
        self.host = jax.process_index() if host is None else host
        self.n_hosts = jax.process_count() if n_hosts is None else n_hosts
        self.threads = min(8, cpu_count() + 1) if threads is None else threads
        self.prefetch = prefetch
        self._check(fixed_pairs)
        self._embedding = source.config.output_space == "embedding"
        self._treatment = self._treat(genes, target_sum, downsampling)
        self._annotations = CellMetadata(source, extras, obs, text_width=text_width)
        self._share_out(parse_bytes(memory_limit), fixed_pairs=fixed_pairs)
        self.epoch = 0
        self._start = 0
        self._latest = _Position(0, 0)
        self._arranged: Epoch | None = None

    def _check(self, fixed_pairs: bool) -> None:
        for name, least in (("n_basal_samples", 0), ("threads", 1), ("prefetch", 1), ("n_hosts", 1), ("host", 0)):
            setattr(self, name, require_integer(name, getattr(self, name), least))
        if self.host >= self.n_hosts:
            raise ConfigError(f"host: got {self.host!r} of {self.n_hosts} hosts, expected 0 to {self.n_hosts - 1}.")
        require_choice("layout", self.layout, LAYOUTS)
        require_choice("to", self.to, TARGETS)
        require_flag("fixed_pairs", fixed_pairs)
        known = self.sharding is None or isinstance(self.sharding, jax.sharding.Sharding)
        require(known, "sharding", self.sharding, "a jax.sharding.Sharding or None")
        if self.sharding is not None and self.to == "numpy":
            raise ConfigError("sharding: got one with to='numpy', expected it only with to='jax'.")
        if fixed_pairs and not self.n_basal_samples:
            raise ConfigError("fixed_pairs: got True with n_basal_samples=0, expected at least one control a cell.")

    def _treat(
        self, genes: Sequence[str] | None, target_sum: float | None, downsampling: DownsamplingConfig | None
    ) -> RowTransform:
        if self._embedding:
            given = {"genes": genes, "target_sum": target_sum, "downsampling": downsampling}
            wrong = [name for name, value in given.items() if value is not None]
            if wrong or self.layout == "csr":
                raise ConfigError(
                    f"{wrong[0] if wrong else 'layout'}: has no meaning with output_space='embedding', which gives "
                    "dense embeddings as they are stored."
                )
        if target_sum is not None:
            target_sum = require_number("target_sum", target_sum, above=0)
        known = downsampling is None or isinstance(downsampling, DownsamplingConfig)
        require(known, "downsampling", downsampling, "a DownsamplingConfig or None")
        if downsampling is not None and (downsampling.is_log1p_input or downsampling.estimator != "binomial"):
            raise ConfigError(
                f"downsampling: got {downsampling!r}, and the loader thins stored reads binomially. "
                "Use ReadDownsampler on the batch for anything else."
            )
        not_counts = [matrix.name for matrix in self.source.matrices if not matrix.is_counts]
        if downsampling is not None and not_counts:
            raise NotCountsError(
                f"downsampling: {not_counts[0]} holds values that are no counts, and reads are what can be lost. "
                "Name a layer of counts (layer=...)."
            )
        columns = self._columns(genes)
        # Reads are lost before genes are chosen, and all else goes as well with the chosen ones only.
        self._read_only = columns if downsampling is None else None
        return RowTransform(
            columns=columns if self._read_only is None else None,
            n_columns=self.source.get_n_genes() if columns is None else columns.n_columns,
            fraction=1.0 if downsampling is None else downsampling.fraction,
            target_depth=None if downsampling is None else downsampling.target_depth,
            target_sum=target_sum,
        )

    def _columns(self, genes: Sequence[str] | None) -> ColumnSelection | None:
        names, wanted = self.source.var.index, self.source.hvg_indices
        if genes is not None:
            asked = pd.Index(require_names("genes", genes), dtype=object)
            absent = asked[~asked.isin(names)]
            if len(absent):
                raise ColumnNotFoundError(
                    f"genes: {absent[0]!r} is not a gene of the screen. {near_matches(absent[0], names)}"
                )
            again = asked[asked.duplicated() | asked.isin(names[names.duplicated()])]
            if len(again):
                raise ConfigError(f"genes: {again[0]!r} occurs more than once, here or in the screen; expected once.")
            wanted = names.get_indexer_for(asked) if len(asked) else np.empty(0, np.int64)
        elif self.source.config.output_space != "gene":
            return None
        assert wanted is not None
        return ColumnSelection.from_indices(wanted, len(names))

    def _share_out(self, limit: int, *, fixed_pairs: bool) -> None:
        """Divide the memory: controls, blocks, batches."""
        width, n_values = self.width, 0.0
        # A dense row of few genes takes no more memory than a sparse one of all.
        few = self._read_only is not None and self.layout == "dense" and width <= self.source.nnz_per_cell
        if self._embedding:
            per_cell = 4.0 * width
        else:
            n_genes = self.source.get_n_genes()
            n_values = self.source.nnz_per_cell
            of_value = max(2, self.source.matrix.dtype.itemsize) + (2 if n_genes <= 2**16 else 4)
            if self._read_only is not None:  # genes that are asked for are seen more often than most
                n_values = min(n_values * min(1, 3 * width / max(1, n_genes)), width)
                of_value += 8  # while they are chosen
            per_cell = 4.0 * width if few else n_values * of_value
        rows = 1 + self.n_basal_samples
        pool_bytes = int(limit * 0.35) if self.n_basal_samples else 0
        # Blocks show controls where they lie in the memory for controls; those of embeddings, and pairs for
        # life that don't all fit in there, lie in the block.
        own = self._embedding or (fixed_pairs and per_cell * len(self.pools.controls) > pool_bytes)
        limit -= 0 if own else pool_bytes
        per_block = per_cell * self.batch_size * self.plan.config.batches_per_block * (rows if own else 1)
        per_batch = self.batch_size * rows * (4.0 * width if self.layout == "dense" else per_cell)
        # One for each thread to read, and one that batches are made of.
        self._n_blocks = max(2, min(self.threads + 1, int(limit * 0.6 / max(1.0, per_block))))
        self._ahead = max(1, min(self.prefetch, int(limit * 0.4 / max(1.0, per_batch))))
        buffers = BufferPool(limit)
        ready_made = (
            self.layout == "csr"
            and self._read_only is None
            and self._treatment.columns is None
            and not self._treatment.changes_values
            and self.source.matrix.dtype.itemsize <= 4
        )
        self._collator = Collator(
            self._annotations,
            self._treatment,
            sparse=self.layout == "csr",
            nnz_per_cell=n_values,
            batch_size=self.batch_size,
            sentence_size=self.plan.config.sentence_size,
            n_basal_samples=self.n_basal_samples,
            on_device=self.to == "jax",
            sharding=self.sharding,
            buffers=buffers,
            is_ready_made=ready_made,
        )
        self._blocks = BlockReader(
            self.source,
            self.rows,
            self.pools,
            annotate=self._annotations.read,
            n_basal_samples=self.n_basal_samples,
            embedding=self._embedding,
            pool_bytes=pool_bytes,
            control_bytes=int(per_cell) + 1,
            fixed_pairs=fixed_pairs,
            row_dtype=np.int64 if jax.config.jax_enable_x64 else np.int32,  # type: ignore[attr-defined]
            columns=self._read_only,
            target_sum=self._treatment.target_sum,
            dense=few,
            place=self._collator.place_padded if ready_made else contiguous_layout,
            empty=buffers.take,
        )

    @property
    def batch_size(self) -> int:
        """Cells a batch."""
        return self.plan.config.sentence_size * self.plan.config.sentences_per_batch

    @property
    def width(self) -> int:
        """Features a cell."""
        return self.source.n_features if self._embedding else self._treatment.n_columns

    @property
    def obs_labels(self) -> dict[str, list[str]]:
        """Labels of the codes in ``batch.obs``, for each obs column that holds no numbers."""
        return self._annotations.labels

    def __len__(self) -> int:
        return self._epoch(self.epoch).n_batches

    def __repr__(self) -> str:
        of = f", host {self.host} of {self.n_hosts}" if self.n_hosts > 1 else ""
        return (
            f"Loader({len(self):,} batches of {self.plan.config.sentences_per_batch} x "
            f"{self.plan.config.sentence_size} cells, {self.width:,} features, {self.layout}{of})"
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs through, from its beginning."""
        epoch = require_integer("epoch", epoch)
        self.epoch, self._start = epoch, 0
        self._latest = _Position(epoch, 0)

    def _epoch(self, number: int) -> Epoch:
        arranged = self._arranged
        if arranged is None or arranged.number != number:
            self._arranged = arranged = self.plan.epoch(number, host=self.host, n_hosts=self.n_hosts)
        return arranged

    def __iter__(self) -> LoaderIterator:
        # Threads know the loader: were the iterator known to it too, it would never be collected.
        self._latest, self._start = _Position(self.epoch, self._start), 0
        return LoaderIterator(self, self._latest)

    def batch(self, step: int, epoch: int) -> PerturbationBatch:
        """Read batch `step` of an epoch, by itself."""
        arranged = self._epoch(require_integer("epoch", epoch))
        if not 0 <= step < arranged.n_batches:
            raise IndexError(f"step: got {step!r}, expected 0 to {arranged.n_batches - 1}.")
        block = self._blocks.read(arranged, step // self.plan.config.batches_per_block)
        return self._make(block, step)

    def _make(self, block: Block, step: int) -> PerturbationBatch:
        return self._collator.batch(block, step % self.plan.config.batches_per_block)

    def state_dict(self) -> dict[str, Any]:
        """Where the latest iteration is: a small dictionary that survives JSON.

        Save it with a model; `load_state_dict` of a loader made alike goes on from there.
        """
        return self._state(self._latest)

    def _state(self, at: _Position) -> dict[str, Any]:
        return {"version": STATE_VERSION, "epoch": at.epoch, "step": at.step, "plan": self._fingerprint()}

    def _fingerprint(self) -> dict[str, Any]:
        """What must be the same for a step to mean the same."""
        weights = self.plan.weights
        return asdict(self.plan.config) | {
            "n_cells": len(self.rows),
            "n_sentences": self.plan.n_sentences,
            "shuffle": self.plan.shuffle,
            "weights": None if weights is None else crc32(weights.tobytes()),
            "host": self.host,
            "n_hosts": self.n_hosts,
            "n_basal_samples": self.n_basal_samples,
            "fixed_pairs": self._blocks.fixed_pairs,
            "controls_in_reach": self._blocks.reach,  # follows from memory_limit
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on from where `state_dict` was taken.

        Raises
        ------
        ConfigError
            When the state is of another version or of a loader made otherwise.
        """
        self._latest = self._checked(state)
        self.epoch, self._start = self._latest.epoch, self._latest.step

    def _checked(self, state: Any) -> _Position:
        if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
            raise ConfigError(
                f"state: got {state!r}, expected what state_dict() of this version gives ('version': {STATE_VERSION})."
            )
        own, given = self._fingerprint(), state.get("plan")
        given = given if isinstance(given, dict) else {}
        for name, value in own.items():
            if given.get(name) != value:
                raise ConfigError(
                    f"state: it was saved with {name}={given.get(name)!r}, and this loader has {value!r}. A step means "
                    "the same only in a loader made alike."
                )
        epoch = require_integer("state['epoch']", state.get("epoch"))
        step = require_integer("state['step']", state.get("step"))
        n_batches = self._epoch(epoch).n_batches
        require(step <= n_batches, "state['step']", step, f"{n_batches} at most, the batches of an epoch")
        return _Position(epoch, step)


@dataclass(slots=True)
class _Position:
    """Epoch, and the next step in it."""

    epoch: int
    step: int


class LoaderIterator:
    """One way through an epoch; may be shared by threads, each batch going to one of them.

    It also has what Grain asks of an iterator, `get_state` and `set_state`.
    """

    def __init__(self, loader: Loader, at: _Position) -> None:
        self._loader, self._at = loader, at
        self._lock = threading.Lock()
        self._batches: Generator[PerturbationBatch] | None = None

    def __iter__(self) -> LoaderIterator:
        return self

    def __next__(self) -> PerturbationBatch:
        with self._lock:
            if self._batches is None:
                self._batches = self._open()
            batch = next(self._batches)
            self._at.step += 1
            return batch

    def _open(self) -> Generator[PerturbationBatch]:
        loader = self._loader
        epoch = loader._epoch(self._at.epoch)
        return prefetch(
            lambda number: loader._blocks.read(epoch, number),
            loader._make,
            range(min(self._at.step, epoch.n_batches), epoch.n_batches),
            per_block=loader.plan.config.batches_per_block,
            threads=loader.threads,
            ahead=loader._ahead,
            n_blocks=loader._n_blocks,
        )

    def close(self) -> None:
        """End the background threads; batches that are left are not read."""
        with self._lock:
            if self._batches is None:
                self._batches = self._open()
            self._batches.close()

    def get_state(self) -> dict[str, Any]:
        """Epoch and next step; see `Loader.state_dict`."""
        return self._loader._state(self._at)

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from where `get_state` was taken."""
        at = self._loader._checked(state)
        self.close()
        with self._lock:
            self._at.epoch, self._at.step, self._batches = at.epoch, at.step, None
