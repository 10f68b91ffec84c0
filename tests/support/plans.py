"""Sentence plans from group codes, and their epochs as arrays."""

import numpy as np
from hypothesis import strategies as st

from lazypert.design.sampler_config import PerturbationSamplerConfig
from lazypert.design.sentence_plan import SentencePlan

code_lists = st.lists(st.integers(-2, 5), min_size=1, max_size=60)


def plan_of(codes, sentence_size, *, shuffle=True, **options):
    return SentencePlan.from_codes(
        PerturbationSamplerConfig(sentence_size=sentence_size, **options), codes, shuffle=shuffle
    )


def epoch_of(plan, epoch=0, **host):
    """(n_sentences, sentence_size) cells and padding flags, block by block."""
    arranged = plan.epoch(epoch, **host)
    blocks = [arranged.block(number, fill=False) for number in range(arranged.n_blocks)]
    if not blocks:
        empty = np.empty((0, plan.config.sentence_size))
        return empty.astype(int), empty.astype(bool)
    return np.concatenate([b.cells for b in blocks]), np.concatenate([b.is_padding for b in blocks])
