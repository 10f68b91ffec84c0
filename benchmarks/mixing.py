"""How well the sentences of an epoch are mixed: groups in neighbouring batches, and cells that meet again.

Everything is measured from the batches of `PerturbationBatchSampler`, and compared with sentences in random order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from lazypert import PerturbationBatchSampler, PerturbationSamplerConfig

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

NEIGHBOURS = 16  # batches, among which distinct groups are counted
LAG = 2  # batches after which a group may come back


def group_sizes(n_groups: int, *, least: int = 100, most: int = 1_000, seed: int = 0) -> NDArray[np.int64]:
    """(n_groups,) sizes like those of a genome-wide screen: between `least` and `most`, small ones more often."""
    rng = np.random.default_rng(seed)
    return np.exp(rng.uniform(np.log(least), np.log(most), n_groups)).astype(np.int64)


def batches_of(sampler: Any, codes: NDArray[np.integer], sentence_size: int) -> list[NDArray[np.integer]]:
    """Group of each sentence, one array per batch."""
    return [codes[np.asarray(batch)[::sentence_size]] for batch in sampler]


def distinct_groups(batches: list[NDArray[np.integer]], *, seed: int = 0) -> float:
    """Distinct groups in `NEIGHBOURS` successive batches, divided by the number in random order."""
    shuffled = np.random.default_rng(seed).permutation(np.concatenate(batches))
    ends = np.cumsum([len(batch) for batch in batches])
    in_random_order = np.split(shuffled, ends[:-1])
    found, chance = (
        [
            len(np.unique(np.concatenate(order[start : start + NEIGHBOURS])))
            for start in range(0, len(order) - NEIGHBOURS + 1)
        ]
        for order in (batches, in_random_order)
    )
    return float(np.sum(found) / np.sum(chance))


def comebacks(batches: list[NDArray[np.integer]]) -> float:
    """How often two sentences that are `LAG` batches apart are of one group, divided by how often by chance."""
    n_per_group = np.bincount(np.concatenate(batches))
    n, found, pairs = int(n_per_group.sum()), 0, 0
    for early, late in zip(batches, batches[LAG:], strict=False):
        found += int((early[:, None] == late[None, :]).sum())
        pairs += len(early) * len(late)
    by_chance = float((n_per_group * (n_per_group - 1.0)).sum() / (n * (n - 1.0)))
    return found / (pairs * by_chance)


def meetings(first: Iterable[NDArray[np.integer]], second: Iterable[NDArray[np.integer]], n_cells: int) -> float:
    """How often two cells of a sentence are together in the next epoch too, divided by how often any two are.

    Parameters
    ----------
    first, second
        The sentences of one group in two epochs.
    n_cells
        Cells of the group, which are numbered from 0.
    """
    together = [_pairs(sentences, n_cells) for sentences in (first, second)]
    again = together[0].multiply(together[1]).nnz
    share_again = again / together[0].nnz
    return float(share_again / (together[1].nnz / (n_cells * (n_cells - 1))))


def _pairs(sentences: Iterable[NDArray[np.integer]], n_cells: int) -> Any:
    """(n_cells, n_cells) sparse matrix whose elements are the pairs of cells that share a sentence."""
    listed = [np.unique(sentence) for sentence in sentences]
    number = np.repeat(np.arange(len(listed)), [len(cells) for cells in listed])
    cell = np.concatenate(listed)
    member = sparse.csr_matrix((np.ones(len(cell)), (cell, number)), shape=(n_cells, len(listed)))
    pairs = (member @ member.T).tocoo()
    is_pair = pairs.row != pairs.col
    found = pairs.row[is_pair], pairs.col[is_pair]
    return sparse.csr_matrix((np.ones(len(found[0])), found), shape=pairs.shape)


def measure_neighbours(sizes: NDArray[np.int64], shuffle_size: int, *, n_epochs: int) -> dict[str, float]:
    """Distinct groups and comebacks on a screen whose groups have these sizes, in batches of 16 sentences of 32."""
    codes = np.repeat(np.arange(len(sizes)), sizes)
    config = PerturbationSamplerConfig(sentence_size=32, sentences_per_batch=16, shuffle_size=shuffle_size)
    sampler = PerturbationBatchSampler(config, codes)
    found = []
    for epoch in range(n_epochs):
        sampler.set_epoch(epoch)
        batches = batches_of(sampler, codes, config.sentence_size)
        found.append((distinct_groups(batches), comebacks(batches)))
    distinct, again = np.mean(found, axis=0)
    return {"distinct_groups": float(distinct), "comebacks": float(again)}


def measure_meetings(size: int, shuffle_size: int, *, n_groups: int) -> float:
    """How often two cells of a sentence of 32 meet again in the next epoch, in groups of one size."""
    codes = np.repeat(np.arange(n_groups), size)
    config = PerturbationSamplerConfig(sentence_size=32, sentences_per_batch=16, shuffle_size=shuffle_size)
    sampler = PerturbationBatchSampler(config, codes)
    epochs = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        sentences = np.concatenate([np.reshape(batch, (-1, config.sentence_size)) for batch in sampler])
        epochs.append([sentences[sentences[:, 0] // size == group] - group * size for group in range(n_groups)])
    return float(np.mean([meetings(*two, n_cells=size) for two in zip(*epochs, strict=True)]))
