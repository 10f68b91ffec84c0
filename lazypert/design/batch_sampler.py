"""Batches of sentences as lists of integers, for use as a sampler in other libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lazypert._internal.validation import require_integer
from lazypert.design.sentence_plan import SentencePlan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lazypert.design.sampler_config import PerturbationSamplerConfig


class PerturbationBatchSampler:
    """Batches of whole sentences, as lists of split indices.

    Parameters
    ----------
    config
        Sizes and seed.
    group_codes
        (n_cells,) group code of every cell of the split, or a `SentencePlan`.

    Examples
    --------
    >>> from lazypert import PerturbationSamplerConfig
    >>> sampler = PerturbationBatchSampler(PerturbationSamplerConfig(sentence_size=2), [0, 0, 1, 1])
    >>> sorted(map(sorted, sampler))
    [[0, 1], [2, 3]]
    """

    def __init__(self, config: PerturbationSamplerConfig, group_codes: Any) -> None:
        is_plan = isinstance(group_codes, SentencePlan)
        self.plan: SentencePlan = group_codes if is_plan else SentencePlan.from_codes(config, group_codes)
        self.config = self.plan.config
        self.epoch = 0

    def __repr__(self) -> str:
        config = self.config
        return (
            f"PerturbationBatchSampler({len(self):,} batches of {config.sentences_per_batch} x {config.sentence_size} "
            f"cells, epoch {self.epoch})"
        )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration runs through. Each iteration goes on to the next one by itself."""
        self.epoch = require_integer("epoch", epoch)

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, per_batch = self.plan.epoch(self.epoch), self.config.sentences_per_batch
        self.epoch += self.plan.shuffle
        for number in range(epoch.n_blocks):
            cells = epoch.block(number, fill=False).cells
            for start in range(0, len(cells), per_batch):
                yield cells[start : start + per_batch].ravel().tolist()
