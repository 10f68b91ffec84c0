"""What is a valid count, and checks of concrete arrays."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lazypert.errors import NotCountsError


def float_dtype(dtype: Any) -> Any:
    """Float dtype that reads of this dtype are computed in."""
    return jnp.float64 if np.dtype(dtype).itemsize == 8 else jnp.float32


def as_reads(counts: jax.Array, *, is_log1p: bool, discrete: bool) -> jax.Array:
    """Convert counts to reads as floats; with `discrete`, to whole numbers, and NaN for invalid counts."""
    values = counts.astype(float_dtype(counts.dtype))
    reads = jnp.expm1(values) if is_log1p else values
    if not discrete:
        return reads
    whole = jnp.round(reads)
    is_count = (whole >= 0) & jnp.isfinite(whole)
    return jnp.where(is_count if is_log1p else is_count & (whole == reads), whole, jnp.nan)


def require_counts(values: Any, *, is_log1p: bool) -> None:
    """Raise `NotCountsError` for the first value of a concrete array that is not a count."""
    if isinstance(values, np.ndarray):
        if values.size and not (values.min() >= 0 and values.max() < _limit(values.dtype)):
            _raise_not_counts(values, (values >= 0) & (values < _limit(values.dtype)), is_log1p=is_log1p)
        return
    with jax.ensure_compile_time_eval():
        is_valid = bool(_all_counts(values, is_log1p=is_log1p))
        is_count = None if is_valid else np.asarray(_is_count(values, is_log1p=is_log1p))
    if is_count is not None:
        _raise_not_counts(np.asarray(values), is_count, is_log1p=is_log1p)


@functools.partial(jax.jit, static_argnames="is_log1p")
def _all_counts(values: jax.Array, *, is_log1p: bool) -> jax.Array:
    return jnp.all(_is_count(values, is_log1p=is_log1p))


@functools.partial(jax.jit, static_argnames="is_log1p")
def _is_count(values: jax.Array, *, is_log1p: bool) -> jax.Array:
    whole = as_reads(values, is_log1p=is_log1p, discrete=True)
    is_count = whole < _limit(values.dtype)
    if not is_log1p:
        return is_count
    # Only log1p(reads) has whole reads as its expm1: counts declared as log1p do not, nor does normalised expression.
    # The error of a logarithm in float32 grows with the reads; values may have been float32 before they were float64.
    error = 4 * np.finfo(np.float32).eps * (1 + whole) * jnp.maximum(values, 1)
    return is_count & (jnp.abs(jnp.expm1(values) - whole) <= error)


def _limit(dtype: Any) -> float:
    # Integer arrays on the host are checked before JAX may narrow them.
    is_narrow = np.dtype(dtype).itemsize < 8 or jnp.result_type(float) == jnp.float32
    return 2.0**24 if is_narrow else 2.0**53


def _raise_not_counts(values: np.ndarray[Any, Any], is_count: np.ndarray[Any, Any], *, is_log1p: bool) -> None:
    limit, is_wrong = _limit(values.dtype), ~is_count
    index = np.unravel_index(np.flatnonzero(is_wrong)[0], values.shape)
    value = values[index].item()
    expected = "log1p(reads)" if is_log1p else "whole numbers of reads"
    if math.isfinite(value) and value > 0 and value != round(value) and not is_log1p:
        advice = "Pass raw counts (often in layers['counts']), or is_log1p_input=True if this is log1p(reads)."
    elif is_log1p and 0 < value < math.log1p(limit):
        advice = (
            f"expm1 of it is {math.expm1(value):g}. For raw counts, pass is_log1p_input=False; "
            "reads cannot be recovered from log1p of normalised expression."
        )
    elif math.isfinite(value) and value >= 0:
        advice = "Pass raw counts; for larger ones, use float64 with JAX's x64 enabled."
    else:
        advice = "Pass raw counts, with nothing subtracted, scaled or missing."
    raise NotCountsError(
        f"counts: got {value!r} at {tuple(int(i) for i in index)} (invalid values: {int(is_wrong.sum()):,} of "
        f"{values.size:,}), expected {expected}, at least 0 and below {limit:,.0f}: only reads can be thinned. "
        f"{advice} DownsamplingConfig(check_counts=False) skips this check; such values then become NaN, or whole "
        "numbers if their expm1 is not whole."
    )
