"""How a loader divides its memory limit among cached controls, blocks and prefetched batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lazypert.loading.config import LoaderConfig

# Shares of the limit: first controls, then blocks and batches as shares of what is left.
_CONTROL_SHARE, _BLOCK_SHARE, _BATCH_SHARE = 0.35, 0.6, 0.4
# Selected genes, such as highly variable ones, are detected in more cells than most genes are.
_DETECTION_OF_SELECTED_GENES = 3
# Scratch bytes per value while genes are selected.
_SELECTION_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSize:
    """What determines how many bytes a cell takes.

    Attributes
    ----------
    n_features
        Features per cell of a batch.
    n_genes
        Genes of the source.
    nnz_per_cell
        Mean number of stored values per cell, over all genes.
    value_bytes
        Bytes per stored value.
    is_embedding
        Whether features are dense float32 embeddings.
    selects_genes
        Whether genes are selected while rows are read.
    """

    n_features: int
    n_genes: int
    nnz_per_cell: float
    value_bytes: int
    is_embedding: bool
    selects_genes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSize:
    """What determines how many bytes a block and all controls take.

    Attributes
    ----------
    batch_size
        Cells per batch.
    batches_per_block
        Batches per block.
    n_controls
        Controls in all pools together.
    """

    batch_size: int
    batches_per_block: int
    n_controls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Shares of the memory limit. At least two blocks and one batch, however small the limit is.

    Attributes
    ----------
    control_cache_bytes
        Bytes of the control cache.
    control_bytes
        Bytes per cached control, estimated.
    buffer_bytes
        Bytes that the buffer pool may keep for reuse.
    n_blocks
        Blocks in memory at a time.
    batches_ahead
        Batches that may be ready before the caller asks for them.
    nnz_per_cell
        Expected number of values per cell of a batch; 0 for embeddings.
    reads_dense
        Whether blocks hold their cells as dense rows.
    """

    control_cache_bytes: int
    control_bytes: int
    buffer_bytes: int
    n_blocks: int
    batches_ahead: int
    nnz_per_cell: float
    reads_dense: bool


def plan_memory(limit: int, config: LoaderConfig, cell: CellSize, epoch: EpochSize) -> MemoryPlan:
    """Divide `limit` bytes."""
    nnz, sparse_bytes = _sparse_size(cell)
    dense_bytes = 4.0 * cell.n_features
    # A dense row of few genes takes no more memory than a sparse row of all genes.
    reads_dense = cell.selects_genes and config.layout == "dense" and cell.n_features <= cell.nnz_per_cell
    block_cell_bytes = dense_bytes if cell.is_embedding or reads_dense else sparse_bytes
    batch_cell_bytes = dense_bytes if config.layout == "dense" else block_cell_bytes
    rows_per_cell = 1 + config.n_basal_samples
    cache_bytes = int(limit * _CONTROL_SHARE) if config.n_basal_samples else 0
    # Blocks point to controls in the cache. Embeddings, and fixed pairs that don't all fit in the cache, are
    # copied into each block instead, and the cache's share goes to the blocks.
    overflows = config.fixed_pairs and block_cell_bytes * epoch.n_controls > cache_bytes
    blocks_hold_controls = cell.is_embedding or overflows
    rest = limit if blocks_hold_controls else limit - cache_bytes
    rows_per_block_cell = rows_per_cell if blocks_hold_controls else 1
    block_bytes = block_cell_bytes * epoch.batch_size * epoch.batches_per_block * rows_per_block_cell
    batch_bytes = epoch.batch_size * rows_per_cell * batch_cell_bytes
    # One block for each thread that reads, and one that batches are collated from. Fewer take less new memory, so that
    # the first batches of a loader come earlier, but they leave threads without work: a tenth of the throughput.
    n_blocks = min(config.n_threads + 1, int(rest * _BLOCK_SHARE / max(1.0, block_bytes)))
    batches_ahead = min(config.prefetch, int(rest * _BATCH_SHARE / max(1.0, batch_bytes)))
    return MemoryPlan(
        control_cache_bytes=cache_bytes,
        control_bytes=int(block_cell_bytes) + 1,
        buffer_bytes=rest,
        n_blocks=max(2, n_blocks),
        batches_ahead=max(1, batches_ahead),
        nnz_per_cell=nnz,
        reads_dense=reads_dense,
    )


def _sparse_size(cell: CellSize) -> tuple[float, float]:
    """Values and bytes per sparse row."""
    if cell.is_embedding:
        return 0.0, 0.0
    nnz = cell.nnz_per_cell
    bytes_per_value = max(2, cell.value_bytes) + (2 if cell.n_genes <= 2**16 else 4)
    if cell.selects_genes:
        detected = min(1, _DETECTION_OF_SELECTED_GENES * cell.n_features / max(1, cell.n_genes))
        nnz = min(nnz * detected, cell.n_features)
        bytes_per_value += _SELECTION_BYTES
    return nnz, nnz * bytes_per_value
