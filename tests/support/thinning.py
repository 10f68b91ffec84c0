"""Counts to thin, and downsamplers that compile quickly."""

from __future__ import annotations

import jax
import numpy as np

from lazypert.downsampling.config import DownsamplingConfig
from lazypert.downsampling.downsampler import ReadDownsampler

KEY = jax.random.key(0)
# For what does not depend on the estimator: it compiles in a fifth of the time.
FAST = {"estimator": "rounding"}


def screen(shape=(6, 40), seed=0, dtype=np.float32):
    """Counts as a screen has them: mostly zeros, a few large."""
    rng = np.random.default_rng(seed)
    return rng.negative_binomial(0.4, 0.4 / (0.4 + np.exp(rng.normal(0, 2.5, shape)))).astype(dtype)


def thinner(**options):
    return ReadDownsampler(DownsamplingConfig(**options))


def bits(array):
    array = np.asarray(array)
    return array.view(f"u{array.dtype.itemsize}")
