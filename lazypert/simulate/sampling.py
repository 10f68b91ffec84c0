"""Sampling cells from a model: streams of random numbers, joined into blocks, on several threads."""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.kernels import kernel
from lazypert._internal.randomness import generator
from lazypert.simulate.constants import DEPTH_LOG_SD, STREAM_CELLS
from lazypert.simulate.h5ad import Block

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from lazypert.simulate.config import SimulationConfig
    from lazypert.simulate.model import Model


def sample_blocks(model: Model, config: SimulationConfig, threads: int) -> Iterator[Block]:
    """Yield blocks in order; at most ``threads + 1`` are sampled ahead."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Block]] = deque()
        for first in range(0, config.n_cells, config.block_cells):
            waiting.append(pool.submit(_sample_block, model, config, first))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _sample_block(model: Model, config: SimulationConfig, first: int) -> Block:
    last = min(first + config.block_cells, config.n_cells)
    streams = [
        _sample_stream(model, config, start, min(start + STREAM_CELLS, last))
        for start in range(first, last, STREAM_CELLS)
    ]
    offsets = np.cumsum([0, *(stream.indptr[-1] for stream in streams)])
    ends = [stream.indptr[1:] + offset for stream, offset in zip(streams, offsets[:-1], strict=True)]
    return Block(
        indptr=np.concatenate([[0], *ends]),
        indices=np.concatenate([stream.indices for stream in streams]),
        data=np.concatenate([stream.data for stream in streams]),
        obs={name: np.concatenate([stream.obs[name] for stream in streams]) for name in streams[0].obs},
    )


def _sample_stream(model: Model, config: SimulationConfig, first: int, last: int) -> Block:
    """Sample the cells of one random stream, which depend only on the config and `first`."""
    design = model.design
    rng = generator(config.seed, 1, first // STREAM_CELLS)
    n_cells = last - first
    # With the grouped order, group sizes are fixed and the row determines the group; otherwise it is drawn.
    quantile = np.arange(first, last) if config.order == "grouped" else rng.random(n_cells)
    group = np.searchsorted(design.group_ends, quantile, side="right")
    cell_type, label = np.divmod(np.minimum(group, len(design.group_ends) - 1), len(design.labels))
    guide = rng.integers(design.guide_start[label], design.guide_start[label + 1])
    batch = rng.integers(config.n_batches, size=n_cells)
    depth = rng.lognormal(model.depth_log_mean, DEPTH_LOG_SD, n_cells)
    # Space for dense rows; the operating system provides only the pages that are written.
    indices = np.empty(n_cells * config.n_genes, dtype=np.int32)
    data = np.empty(n_cells * config.n_genes, dtype=np.float32)
    indptr = np.zeros(n_cells + 1, dtype=np.int64)
    n_umis = np.zeros(n_cells, dtype=np.int64)
    sample_rows(
        rng,
        depth,
        (cell_type, batch, design.label_target[label]),
        (model.profile, model.batch, model.alpha),
        (model.effect_start, model.effect_gene, model.effect_fold),
        (indptr, indices, data, n_umis),
    )
    nnz = indptr[-1]
    obs = {"perturbation": label, "guide": guide, "cell_type": cell_type, "batch": batch, "n_umis": n_umis}
    return Block(indptr=indptr, indices=indices[:nnz].copy(), data=data[:nnz].copy(), obs=obs)


@kernel
def sample_rows(
    rng: np.random.Generator, depth: Any, labels: Any, rates: Any, effects: Any, out: Any
) -> None:  # pragma: no cover - compiled
    """Fill `out` (indptr, indices, data, reads per cell) with negative binomial rows.

    A Poisson process runs along the genes, with rate ``log(1 + alpha m) / alpha`` for each. Each arrival
    is a cluster with a log-series number of reads.
    """
    cell_type, batch, target = labels
    profile, batch_factor, alpha = rates
    effect_start, effect_gene, effect_fold = effects
    indptr, indices, data, n_umis = out
    n_genes = profile.shape[1]
    fold = np.ones(n_genes, np.float32)
    inverse_alpha = 1.0 / alpha.astype(np.float64)
    end = 0
    for cell in range(len(depth)):
        own_target = target[cell]
        if own_target >= 0:
            for effect in range(effect_start[own_target], effect_start[own_target + 1]):
                fold[effect_gene[effect]] = effect_fold[effect]
        mean_row, batch_row = profile[cell_type[cell]], batch_factor[batch[cell]]
        until_next = rng.standard_exponential()
        for gene in range(n_genes):
            mean = depth[cell] * mean_row[gene] * batch_row[gene] * fold[gene]
            odds = alpha[gene] * mean
            log_term = math.log(1.0 + odds)
            until_next -= log_term * inverse_alpha[gene]
            if until_next < 0.0:
                reads = 0
                while until_next < 0.0:
                    reads += log_series(rng, odds, log_term)
                    until_next += rng.standard_exponential()
                indices[end] = gene
                data[end] = reads
                n_umis[cell] += reads
                end += 1
        indptr[cell + 1] = end
        if own_target >= 0:
            for effect in range(effect_start[own_target], effect_start[own_target + 1]):
                fold[effect_gene[effect]] = 1.0


@kernel
def log_series(rng: np.random.Generator, odds: float, log_term: float) -> int:  # pragma: no cover - compiled
    """Draw from the log-series distribution with ``p = odds / (1 + odds)``; `log_term` is ``log(1 + odds)``.

    Algorithm LK of Kemp, "Efficient generation of logarithmically distributed pseudo-random
    variables", Applied Statistics 30 (1981).
    """
    v = rng.random()
    if v * (1.0 + odds) >= odds:
        return 1
    q = -math.expm1(-log_term * rng.random())
    if v <= q * q:
        return int(1.0 + math.log(v) / math.log(q)) if v > 0.0 else 1
    return 1 if v > q else 2
