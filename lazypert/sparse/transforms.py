"""Kernels over the values of one row: sums and log1p normalisation."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from lazypert._internal.kernels import kernel


@partial(kernel, fastmath={"reassoc"})  # in any order, so that the loop is vector instructions
def total(values: Any) -> float:
    """Sum of values, float64: exact for counts."""
    found = 0.0
    for k in range(len(values)):
        found += values[k]
    return found


@kernel
def scale_log1p(values: Any, scale: Any, out: Any) -> None:
    """``log1p(values * scale)`` into `out`, which may be `values`."""
    known = np.empty(32, np.float32)  # most counts are small: their logarithms are taken once
    for count in range(len(known)):
        known[count] = np.log1p(count * scale)
    for k in range(len(values)):
        value = values[k]
        small = np.int64(value)
        out[k] = known[small] if 0 <= small < len(known) and small == value else np.log1p(value * scale)
