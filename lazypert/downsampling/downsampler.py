"""Differentiable downsampling of read counts: what cells would look like at a lower sequencing depth.

The forward pass keeps or drops each read independently (binomial thinning). The backward pass uses the
gradient of the expected count, so that a depth can be learnt and a model can be trained through the operation.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lazypert._internal.validation import require
from lazypert.downsampling.binomial import sample_binomial, uniform_like
from lazypert.downsampling.config import DownsamplingConfig
from lazypert.downsampling.count_checks import as_reads, float_dtype, require_counts
from lazypert.errors import ColumnNotFoundError, ConfigError, NotCountsError, near_matches

if TYPE_CHECKING:
    from collections.abc import Mapping

# Marks entries of an integer array that are not counts; floats use NaN.
_INVALID_INTEGER = -1


class ReadDownsampler:
    """Keep each read of each cell with some probability, differentiably.

    With `n` reads of a gene in a cell and a fraction `f`, the result is ``Binomial(n, f)``: mean ``n f``,
    variance ``n f (1 - f)``. Where ``f == 1`` (even a traced `f`), and in cells at or below the target
    depth, values are returned unchanged, bit for bit. The gradient with respect to `counts` and `fraction` is that of
    the expected value, ``counts f``, or ``log1p(f expm1(counts))`` in the log1p domain (the
    straight-through estimator). In mode ``"target_depth"``, the expected value depends on a count through
    the cell's total as well, and so does the gradient.

    Calls are pure functions of their arguments: use them under `jax.jit`, `jax.vmap`, `jax.grad` and
    `jax.checkpoint`.

    Parameters
    ----------
    config
        Options; the default keeps all reads.

    Notes
    -----
    *Invalid counts.* Counts are finite, at least 0 and, outside the log1p domain, whole numbers. They are
    below 2**24 in float32 (2**53 in float64), the limit up to which floats represent every integer. Integer
    arrays are computed in float32, or in float64 if they are 64 bits wide. A concrete array that breaks
    these rules raises `NotCountsError` if ``config.check_counts``. Under tracing, or unchecked, values that
    are negative, not whole, infinite or NaN become NaN, or -1 in an integer array (the dtype's largest
    value if it is unsigned). The same happens to every entry of a cell whose fraction is outside [0, 1]
    and, in mode ``"target_depth"``, to every entry of a cell with an invalid value, because its depth is
    unknown. Where the fraction is 1, even invalid values are returned unchanged.

    *The log1p domain* represents whole reads up to about 6e5 in float32. A concrete array of counts, or of
    log1p of *normalised* expression, raises `NotCountsError` if ``config.check_counts``: their ``expm1`` are not
    whole numbers. Under tracing, or unchecked, they are rounded.

    Examples
    --------
    >>> counts = jnp.array([[0.0, 10.0, 2000.0]])
    >>> thin = ReadDownsampler(DownsamplingConfig(fraction=0.5))
    >>> thinned = thin(counts, key=jax.random.key(0))
    >>> bool((thinned <= counts).all()), thinned.dtype
    (True, dtype('float32'))
    >>> jax.grad(lambda f: thin(counts, key=jax.random.key(0), fraction=f).sum())(0.5).item()
    2010.0
    """

    def __init__(self, config: DownsamplingConfig | None = None) -> None:
        is_config = config is None or isinstance(config, DownsamplingConfig)
        require(is_config, "config", config, "a DownsamplingConfig or None")
        self.config = config if config is not None else DownsamplingConfig()
        # JAX compiles once per value of this. The fraction is an array argument, so a new one needs no recompilation.
        self._static_config = dataclasses.replace(self.config, fraction=1.0, check_counts=True)

    def __repr__(self) -> str:
        return f"ReadDownsampler({self.config!r})"

    def __call__(self, counts: Any, *, key: jax.Array, fraction: Any = None) -> jax.Array:
        """Downsample `counts`.

        Parameters
        ----------
        counts
            (..., gene), float32, float64 or integer, JAX or NumPy: reads, or ``log1p(reads)`` if
            ``config.is_log1p_input``. 64-bit NumPy arrays become 32-bit unless JAX's x64 is enabled.
        key
            A JAX key. The same key, counts and fraction give the same result.
        fraction
            Replaces ``config.fraction``: scalar, (...,) or (..., 1), in [0, 1]; may be traced.

        Returns
        -------
        jax.Array
            (..., gene), in the dtype of `counts`; for integer counts with ``apply_log1p``, float32 (float64
            for 64-bit integers). A cell without reads remains without reads.

        Raises
        ------
        NotCountsError
            If the dtype cannot hold counts, or a concrete array has a value that is not a count.
        ConfigError
            If `fraction` does not fit the counts or the mode, or if an integer result is differentiated.
        """
        values = self._as_counts(counts)
        if self.config.mode == "target_depth" and fraction is not None:
            raise ConfigError(
                "fraction: got a value with mode='target_depth', expected None: the target depth determines each "
                "cell's fraction. Leave out fraction, or use a ReadDownsampler with mode='fraction'."
            )
        if fraction is None:
            fraction = self.config.fraction
            if self._keeps_all:
                return values
        cell_fraction = _as_fraction(fraction, values)
        result: jax.Array = _downsample_jit(self._static_config, key, values, cell_fraction)
        return result

    def apply(self, data: Mapping[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """Return a copy of `data` with ``data["counts"]`` downsampled and the other entries unchanged.

        Parameters
        ----------
        data
            A batch, with (..., gene) reads under ``"counts"``.
        key
            A JAX key.

        Raises
        ------
        ColumnNotFoundError
            If there is no ``"counts"``.

        Examples
        --------
        >>> batch = {"counts": jnp.array([[3, 0]]), "cell": 7}
        >>> ReadDownsampler().apply(batch, key=jax.random.key(0))["cell"]
        7
        """
        if "counts" not in data:
            names = sorted(map(str, data))
            raise ColumnNotFoundError(
                f"data: got the entries {names!r}, expected 'counts' among them. {near_matches('counts', names)} "
                "If the array has another name, call the downsampler on the array itself."
            )
        return {**data, "counts": self(data["counts"], key=key)}

    @property
    def _keeps_all(self) -> bool:
        config = self.config
        same_domain = config.is_log1p_input == config.is_log1p_output
        return config.mode == "fraction" and config.fraction == 1 and same_domain

    def _as_counts(self, counts: Any) -> jax.Array:
        # Check before the conversion, in which 64-bit integers would wrap around.
        if self.config.check_counts and isinstance(counts, np.ndarray) and counts.dtype.kind in "iu":
            require_counts(counts, is_log1p=False)
        values: jax.Array = counts
        if not isinstance(counts, jax.core.Tracer):
            # Otherwise a constant inside a jitted function would become a tracer, and remain unchecked.
            with jax.ensure_compile_time_eval():
                values = jnp.asarray(counts)
        is_integer = jnp.issubdtype(values.dtype, jnp.integer)
        if values.ndim == 0 or not (is_integer or values.dtype in (jnp.float32, jnp.float64)):
            raise NotCountsError(
                f"counts: got dtype {values.dtype} and shape {values.shape}, expected float32, float64 or an integer "
                "dtype, and shape (..., gene). Convert it, for example with counts.astype('float32')."
            )
        if is_integer and self.config.is_log1p_input:
            raise NotCountsError(
                f"counts: got dtype {values.dtype} with is_log1p_input=True, expected floats: log1p(reads) are not "
                "whole numbers. Pass floats, or raw reads with is_log1p_input=False."
            )
        if self.config.check_counts and not isinstance(values, jax.core.Tracer):
            require_counts(values, is_log1p=self.config.is_log1p_input)
        return values


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _downsample(config: DownsamplingConfig, key: jax.Array, counts: jax.Array, fraction: jax.Array) -> jax.Array:
    """Forward pass."""
    reads = as_reads(counts, is_log1p=config.is_log1p_input, discrete=True)
    cell_fraction = _cell_fraction(config, reads, fraction)
    is_valid = ~jnp.isnan(reads) & (cell_fraction >= 0) & (cell_fraction <= 1)
    n, f = jnp.where(is_valid, reads, 0), jnp.clip(jnp.nan_to_num(cell_fraction), 0, 1)
    thinned = sample_binomial(key, n, f) if config.estimator == "binomial" else _round_at_random(key, n, f)
    result = _to_output(config, thinned, counts.dtype)
    invalid = jnp.nan if jnp.issubdtype(result.dtype, jnp.inexact) else _INVALID_INTEGER
    result = jnp.where(is_valid, result, jnp.asarray(invalid).astype(result.dtype))
    # Conversion to reads and back may change the last bit of a log1p, but cells that lose no read must not change.
    return jnp.where(cell_fraction == 1, _unthinned(config, counts, reads), result)


@_downsample.defjvp
def _downsample_jvp(
    config: DownsamplingConfig, primals: tuple[jax.Array, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    key, counts, fraction = primals
    result = _downsample(config, key, counts, fraction)
    if not jnp.issubdtype(result.dtype, jnp.inexact):
        # JAX would continue with a gradient of zero.
        raise ConfigError(
            f"counts: got dtype {counts.dtype} in a gradient with respect to fraction, expected floats: the result "
            "has the same dtype, and integers carry no gradient. Pass counts.astype('float32')."
        )
    expected = functools.partial(_expected, config)
    return result, jax.jvp(expected, (counts, fraction), tangents[1:])[1]


_downsample_jit = jax.jit(_downsample, static_argnums=0)


def _expected(config: DownsamplingConfig, counts: jax.Array, fraction: jax.Array) -> jax.Array:
    """Mean of the result: the smooth function whose gradients are used."""
    reads = as_reads(counts, is_log1p=config.is_log1p_input, discrete=False)
    return _to_output(config, reads * _cell_fraction(config, reads, fraction), reads.dtype)


def _cell_fraction(config: DownsamplingConfig, reads: jax.Array, fraction: jax.Array) -> jax.Array:
    """(..., 1) probability of keeping a read; 1 for a cell at or below the target depth."""
    if config.target_depth is None:
        return fraction
    total = jnp.sum(reads, axis=-1, keepdims=True)
    # Whole reads decide in both passes, so that the backward pass follows the branch of the forward pass.
    whole_total = jnp.sum(jnp.round(reads), axis=-1, keepdims=True)
    is_thinned = ~(whole_total <= config.target_depth)
    return jnp.where(is_thinned, config.target_depth / jnp.where(is_thinned, total, 1), 1)


def _round_at_random(key: jax.Array, n: jax.Array, fraction: jax.Array) -> jax.Array:
    mean = n * fraction
    floor = jnp.floor(mean)
    return floor + (uniform_like(key, mean) <= mean - floor).astype(mean.dtype)


def _to_output(config: DownsamplingConfig, reads: jax.Array, dtype: Any) -> jax.Array:
    return jnp.log1p(reads) if config.is_log1p_output else reads.astype(dtype)


def _unthinned(config: DownsamplingConfig, counts: jax.Array, reads: jax.Array) -> jax.Array:
    if config.is_log1p_input == config.is_log1p_output:
        return counts
    return _to_output(config, reads, counts.dtype)


def _as_fraction(fraction: Any, counts: jax.Array) -> jax.Array:
    """Convert `fraction` to (..., 1), or for a scalar to all axes of length 1, in the dtype of the reads."""
    if isinstance(fraction, bool | str | bytes):
        raise ConfigError(f"fraction: got {fraction!r}, expected a number or an array of numbers.")
    if not isinstance(fraction, jax.core.Tracer):
        concrete = np.asarray(fraction)
        is_outside = ~((concrete >= 0) & (concrete <= 1))
        if is_outside.any():
            raise ConfigError(
                f"fraction: got {concrete[is_outside].flat[0]!r} among {concrete.size:,} value(s), expected "
                "probabilities of keeping a read, from 0 to 1."
            )
    values = jnp.asarray(fraction).astype(float_dtype(counts.dtype))
    cells = counts.shape[:-1]
    if values.shape not in ((), cells, (*cells, 1)):
        raise ConfigError(
            f"fraction: got shape {values.shape} with counts of shape {counts.shape}, expected a scalar, "
            f"{cells} or {(*cells, 1)}: one fraction per cell, the same for all its genes."
        )
    return values.reshape((1,) * counts.ndim if values.ndim == 0 else (*cells, 1))
