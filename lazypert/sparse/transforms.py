"""Kernels for the values of one row: sums and log1p normalisation."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from lazypert._internal.kernels import kernel


@partial(kernel, fastmath={"reassoc"})  # in any order, so that the loop is vectorised
def total(values: Any) -> float:
    """Sum of values as float64, exact for counts."""
    result = 0.0
    for k in range(len(values)):
        result += values[k]
    return result


@kernel
def scale_log1p(values: Any, scale: Any, out: Any) -> None:
    """Write ``log1p(values * scale)`` into `out`, which may be `values`."""
    table = np.empty(32, np.float32)  # most counts are small, so each of their logarithms is computed once
    for count in range(len(table)):
        table[count] = np.log1p(count * scale)
    for k in range(len(values)):
        value = values[k]
        small = np.int64(value)
        out[k] = table[small] if 0 <= small < len(table) and small == value else np.log1p(value * scale)
