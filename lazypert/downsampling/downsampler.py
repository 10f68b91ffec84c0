"""Differentiable downsampling of read counts: what a cell would look like had it been sequenced less.

Forward, every read is kept or lost by itself (binomial thinning); backward, gradients are those of the
expected count, so that a depth can be learnt and a model can be trained through the operation.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lazypert._internal.validation import require_choice, require_flag, require_integer, require_number
from lazypert.downsampling.binomial import sample_binomial, uniform_like
from lazypert.errors import ColumnNotFoundError, ConfigError, NotCountsError, near_matches

if TYPE_CHECKING:
    from collections.abc import Mapping

_MODES = ("fraction", "target_depth")
_ESTIMATORS = ("binomial", "rounding")
# Entries of an integer array that are not counts; floats say NaN.
_INVALID_INTEGER = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class DownsamplingConfig:
    """Options of `ReadDownsampler`.

    Parameters
    ----------
    mode
        ``"fraction"`` keeps each read with probability `fraction`; ``"target_depth"`` with probability
        ``min(1, target_depth / total reads of the cell)``.
    fraction
        Probability of keeping a read, in (0, 1]. Only in mode ``"fraction"``; the default keeps all.
    target_depth
        Reads a cell has left on average, at least 1. Given in mode ``"target_depth"``, and only there.
    is_log1p_input
        The counts come as ``log1p(reads)``: they are thinned as ``round(expm1(counts))``.
    apply_log1p
        The result is ``log1p(reads)``. None, the default: if and only if the input is.
    estimator
        ``"binomial"`` draws the exact distribution. ``"rounding"`` is the older way: ``n f`` rounded up
        or down at random, right on average, but with a variance of at most 1/4 instead of
        ``n f (1 - f)``.
    check_counts
        Look at concrete arrays before they are thinned, and raise where a value is not a count. It
        costs one pass over the array and a wait for the device; arrays traced under `jax.jit` cannot
        be looked at.

    Raises
    ------
    ConfigError
        If an option has no meaning, or contradicts another.

    Examples
    --------
    >>> DownsamplingConfig(mode="target_depth", target_depth=5_000).target_depth
    5000
    """

    mode: Literal["fraction", "target_depth"] = "fraction"
    fraction: float = 1.0
    target_depth: int | None = None
    is_log1p_input: bool = False
    apply_log1p: bool | None = None
    estimator: Literal["binomial", "rounding"] = "binomial"
    check_counts: bool = True

    def __post_init__(self) -> None:
        require_choice("mode", self.mode, _MODES)
        require_choice("estimator", self.estimator, _ESTIMATORS)
        for name in ("is_log1p_input", "apply_log1p", "check_counts"):
            if not (name == "apply_log1p" and self.apply_log1p is None):
                require_flag(name, getattr(self, name))
        require_number("fraction", self.fraction)
        if not 0 < self.fraction <= 1:
            raise ConfigError(
                f"fraction is {self.fraction!r}; expected a probability of keeping a read, above 0 and at "
                f"most 1. For a number of reads per cell, use mode='target_depth' and target_depth."
            )
        self._check_depth()
        # NumPy scalars would impose their dtype on the reads.
        object.__setattr__(self, "fraction", float(self.fraction))
        if self.target_depth is not None:
            object.__setattr__(self, "target_depth", int(self.target_depth))

    def _check_depth(self) -> None:
        if self.mode == "fraction":
            if self.target_depth is not None:
                raise ConfigError(
                    f"target_depth is {self.target_depth!r}, but mode is 'fraction', which does not use it. "
                    f"Pass mode='target_depth', or leave target_depth out."
                )
            return
        if self.target_depth is None:
            raise ConfigError(
                "mode is 'target_depth', but target_depth is None; expected a number of reads per cell, "
                "such as target_depth=5_000."
            )
        require_integer("target_depth", self.target_depth, 1)
        if self.fraction != 1:
            raise ConfigError(
                f"fraction is {self.fraction!r}, but mode is 'target_depth', which works out each cell's "
                f"own. Leave fraction out, or use mode='fraction'."
            )

    @property
    def is_log1p_output(self) -> bool:
        """Whether the result is ``log1p(reads)``."""
        return self.is_log1p_input if self.apply_log1p is None else self.apply_log1p


class ReadDownsampler:
    """Keep each read of each cell with some probability, differentiably.

    With `n` reads of a gene in a cell and a fraction `f`, the result is ``Binomial(n, f)``: mean
    ``n f``, variance ``n f (1 - f)``. Where ``f == 1``, a traced `f` too, and in cells at or below the
    target depth, values come back bit for bit. The gradient, with respect to `counts` and to `fraction`,
    is the gradient of the expected value, ``counts f``, or ``log1p(f expm1(counts))`` in the log1p
    domain (the straight-through estimator). In mode ``"target_depth"`` the expected value depends on a
    count through the cell's total as well, and so does the gradient.

    It is a pure function of its arguments: use it under `jax.jit`, `jax.vmap`, `jax.grad` and
    `jax.checkpoint`.

    Parameters
    ----------
    config
        What to do; the default keeps all reads.

    Notes
    -----
    *What is not a count.* Counts are finite, at least 0 and, outside the log1p domain, whole; and below
    2**24 in float32 (2**53 in float64), above which a float cannot count by ones. Integer arrays are
    computed in float32, or in float64 when they are 64 bits wide. A concrete array that breaks this
    raises `NotCountsError` if ``config.check_counts``. Under tracing, or unchecked, values that are
    negative, not whole, infinite or NaN come back as NaN, in an integer array as -1 (the dtype's largest
    value if it is unsigned); so does every entry of a cell whose fraction is outside [0, 1], and in mode
    ``"target_depth"`` every entry of a cell that has such a value, since its depth is unknown. Where the
    fraction is 1, even these come back as they were.

    *The log1p domain* holds whole reads up to about 6e5 in float32; values of ``expm1`` between whole
    numbers are rounded, so log1p of *normalised* expression must not be passed.

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
        if config is not None and not isinstance(config, DownsamplingConfig):
            raise ConfigError(f"config is {config!r}; expected a DownsamplingConfig.")
        self.config = config if config is not None else DownsamplingConfig()
        # What JAX compiles for: the fraction is passed as an array, so that a new one compiles nothing.
        self._plan = dataclasses.replace(self.config, fraction=1.0, check_counts=True)

    def __repr__(self) -> str:
        return f"ReadDownsampler({self.config!r})"

    def __call__(self, counts: Any, *, key: jax.Array, fraction: Any = None) -> jax.Array:
        """Return `counts` with fewer reads.

        Parameters
        ----------
        counts
            (..., gene), float32, float64 or integer, JAX or NumPy: reads, or ``log1p(reads)`` if
            ``config.is_log1p_input``. A 64-bit NumPy array becomes 32 bits unless JAX's x64 is enabled.
        key
            A JAX key. The same key, counts and fraction give the same result.
        fraction
            In place of ``config.fraction``: scalar, (...,) or (..., 1), in [0, 1]; may be traced.

        Returns
        -------
        jax.Array
            (..., gene), of the dtype of `counts`; but float32 (float64 for 64-bit integers) for integer
            counts with ``apply_log1p``. A cell without reads stays one.

        Raises
        ------
        NotCountsError
            If the dtype cannot hold counts, or a concrete array has a value that is not a count.
        ConfigError
            If `fraction` does not fit the counts or the mode; or on differentiating an integer result.
        """
        values = self._as_counts(counts)
        if self.config.mode == "target_depth" and fraction is not None:
            raise ConfigError(
                "fraction was passed, but config.mode is 'target_depth', which works out each cell's own. "
                "Leave fraction out, or use a ReadDownsampler with mode='fraction'."
            )
        if fraction is None:
            fraction = self.config.fraction
            if self._keeps_all:
                return values
        per_cell = _as_fraction(fraction, values)
        result: jax.Array = _downsample_jit(self._plan, key, values, per_cell)
        return result

    def apply(self, data: Mapping[str, Any], *, key: jax.Array) -> dict[str, Any]:
        """Return a copy of `data` with ``data["counts"]`` downsampled; other entries are passed on.

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
            raise ColumnNotFoundError(
                f"The batch has no entry 'counts' to downsample; it has {sorted(map(str, data))!r}. "
                f"{near_matches('counts', map(str, data))} Call the downsampler on the array itself if it "
                f"goes by another name."
            )
        return {**data, "counts": self(data["counts"], key=key)}

    @property
    def _keeps_all(self) -> bool:
        config = self.config
        same_domain = config.is_log1p_input == config.is_log1p_output
        return config.mode == "fraction" and config.fraction == 1 and same_domain

    def _as_counts(self, counts: Any) -> jax.Array:
        # Before the conversion: it would wrap 64-bit integers around.
        if self.config.check_counts and isinstance(counts, np.ndarray) and counts.dtype.kind in "iu":
            _check_values(counts, is_log1p=False)
        values: jax.Array = counts
        if not isinstance(counts, jax.core.Tracer):
            # Else a constant inside a jitted function would become a tracer, and go unchecked.
            with jax.ensure_compile_time_eval():
                values = jnp.asarray(counts)
        integer = jnp.issubdtype(values.dtype, jnp.integer)
        if values.ndim == 0 or not (integer or values.dtype in (jnp.float32, jnp.float64)):
            raise NotCountsError(
                f"counts has dtype {values.dtype} and shape {values.shape}; expected float32, float64 or an "
                f"integer dtype, and (..., gene). Convert it, for example with counts.astype('float32')."
            )
        if integer and self.config.is_log1p_input:
            raise NotCountsError(
                f"counts has dtype {values.dtype}, but config.is_log1p_input says that it holds "
                f"log1p(reads), which are not whole numbers. Pass floats, or raw reads with "
                f"is_log1p_input=False."
            )
        if self.config.check_counts and not isinstance(values, jax.core.Tracer):
            _check_values(values, is_log1p=self.config.is_log1p_input)
        return values


# -- forward and backward -------------------------------------------------------------------------


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _downsample(config: DownsamplingConfig, key: jax.Array, counts: jax.Array, fraction: jax.Array) -> jax.Array:
    reads = _reads(counts, is_log1p=config.is_log1p_input, discrete=True)
    per_cell = _fraction_of_cells(config, reads, fraction)
    usable = ~jnp.isnan(reads) & (per_cell >= 0) & (per_cell <= 1)
    n, f = jnp.where(usable, reads, 0), jnp.clip(jnp.nan_to_num(per_cell), 0, 1)
    kept = sample_binomial(key, n, f) if config.estimator == "binomial" else _round_at_random(key, n, f)
    result = _as_output(config, kept, counts.dtype)
    invalid = jnp.nan if jnp.issubdtype(result.dtype, jnp.inexact) else _INVALID_INTEGER
    result = jnp.where(usable, result, jnp.asarray(invalid).astype(result.dtype))
    # The way through reads and back may change the last bit of a log1p; what loses no read must not.
    return jnp.where(per_cell == 1, _unthinned(config, counts, reads), result)


@_downsample.defjvp
def _downsample_jvp(
    config: DownsamplingConfig, primals: tuple[jax.Array, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    key, counts, fraction = primals
    result = _downsample(config, key, counts, fraction)
    if not jnp.issubdtype(result.dtype, jnp.inexact):
        # JAX would go on with a gradient of zero: integers have none.
        raise ConfigError(
            f"A gradient with respect to fraction was asked for, but the counts are {counts.dtype}, and "
            f"so is the result, which can carry no gradient. Pass counts.astype('float32')."
        )
    expected = functools.partial(_expected, config)
    return result, jax.jvp(expected, (counts, fraction), tangents[1:])[1]


_downsample_jit = jax.jit(_downsample, static_argnums=0)


def _expected(config: DownsamplingConfig, counts: jax.Array, fraction: jax.Array) -> jax.Array:
    """Return the mean of the result: the smooth function whose gradients are used."""
    reads = _reads(counts, is_log1p=config.is_log1p_input, discrete=False)
    return _as_output(config, reads * _fraction_of_cells(config, reads, fraction), reads.dtype)


def _reads(counts: jax.Array, *, is_log1p: bool, discrete: bool) -> jax.Array:
    """Return the reads as floats; with `discrete`, whole ones, and NaN for what is not a count."""
    values = counts.astype(_float_dtype(counts.dtype))
    reads = jnp.expm1(values) if is_log1p else values
    if not discrete:
        return reads
    whole = jnp.round(reads)
    is_count = (whole >= 0) & jnp.isfinite(whole)
    return jnp.where(is_count if is_log1p else is_count & (whole == reads), whole, jnp.nan)


def _fraction_of_cells(config: DownsamplingConfig, reads: jax.Array, fraction: jax.Array) -> jax.Array:
    """Return (..., 1) the probability of keeping a read; 1 for a cell at or below the target depth."""
    if config.target_depth is None:
        return fraction
    total = jnp.sum(reads, axis=-1, keepdims=True)
    # Whole reads decide on both ways, so that backward follows the branch which forward took.
    whole_total = jnp.sum(jnp.round(reads), axis=-1, keepdims=True)
    thinned = ~(whole_total <= config.target_depth)
    return jnp.where(thinned, config.target_depth / jnp.where(thinned, total, 1), 1)


def _round_at_random(key: jax.Array, n: jax.Array, fraction: jax.Array) -> jax.Array:
    mean = n * fraction
    floor = jnp.floor(mean)
    return floor + (uniform_like(key, mean) <= mean - floor).astype(mean.dtype)


def _as_output(config: DownsamplingConfig, reads: jax.Array, dtype: Any) -> jax.Array:
    return jnp.log1p(reads) if config.is_log1p_output else reads.astype(dtype)


def _unthinned(config: DownsamplingConfig, counts: jax.Array, reads: jax.Array) -> jax.Array:
    if config.is_log1p_input == config.is_log1p_output:
        return counts
    return _as_output(config, reads, counts.dtype)


def _float_dtype(dtype: Any) -> Any:
    return jnp.float64 if np.dtype(dtype).itemsize == 8 else jnp.float32


# -- checks ---------------------------------------------------------------------------------------


def _as_fraction(fraction: Any, counts: jax.Array) -> jax.Array:
    """Return `fraction` as (..., 1), or as a scalar with all its axes 1, in the dtype of the reads."""
    if isinstance(fraction, bool | str | bytes):
        raise ConfigError(f"fraction is {fraction!r}; expected a number or an array of numbers.")
    if not isinstance(fraction, jax.core.Tracer):
        given = np.asarray(fraction)
        outside = ~((given >= 0) & (given <= 1))
        if outside.any():
            raise ConfigError(
                f"fraction has {given[outside].flat[0]!r} among {given.size:,} value(s); expected "
                f"probabilities of keeping a read, from 0 to 1."
            )
    values = jnp.asarray(fraction).astype(_float_dtype(counts.dtype))
    cells = counts.shape[:-1]
    if values.shape not in ((), cells, (*cells, 1)):
        raise ConfigError(
            f"fraction has shape {values.shape}, but counts has shape {counts.shape}; expected a scalar, "
            f"{cells} or {(*cells, 1)}: one fraction for each cell, the same for all its genes."
        )
    return values.reshape((1,) * counts.ndim if values.ndim == 0 else (*cells, 1))


@functools.partial(jax.jit, static_argnames="is_log1p")
def _all_counts(values: jax.Array, *, is_log1p: bool) -> jax.Array:
    reads = _reads(values, is_log1p=is_log1p, discrete=True)
    return jnp.all(reads < _limit(values.dtype))


def _limit(dtype: Any) -> float:
    # Integer arrays on a host are checked before JAX may narrow them.
    narrow = np.dtype(dtype).itemsize < 8 or jnp.result_type(float) == jnp.float32
    return 2.0**24 if narrow else 2.0**53


def _check_values(values: Any, *, is_log1p: bool) -> None:
    """Raise `NotCountsError` for the first value of a concrete array that is not a count."""
    if isinstance(values, np.ndarray):
        good = values.size == 0 or (values.min() >= 0 and values.max() < _limit(values.dtype))
    else:
        with jax.ensure_compile_time_eval():
            good = bool(_all_counts(values, is_log1p=is_log1p))
    if not good:
        _raise_not_counts(np.asarray(values), is_log1p=is_log1p)


def _raise_not_counts(values: np.ndarray[Any, Any], *, is_log1p: bool) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        reads = np.rint(np.expm1(values)) if is_log1p else values
        bad = ~((reads >= 0) & (reads < _limit(values.dtype)) & (is_log1p | (np.rint(reads) == reads)))
    place = np.unravel_index(np.flatnonzero(bad)[0], values.shape)
    value = values[place].item()
    limit = _limit(values.dtype)
    what = "log1p(reads)" if is_log1p else "whole numbers of reads"
    if math.isfinite(value) and value > 0 and value != round(value) and not is_log1p:
        cure = "Pass raw counts (often in layers['counts']), or is_log1p_input=True if this is log1p(reads)."
    elif math.isfinite(value) and value >= 0:
        cure = "Pass raw counts; for larger ones, use float64 with JAX's x64 enabled."
    else:
        cure = "Pass raw counts, with nothing subtracted, scaled or missing."
    raise NotCountsError(
        f"counts has {value!r} at {tuple(int(i) for i in place)}, and {int(bad.sum()):,} such value(s) of "
        f"{values.size:,}; expected {what}, at least 0 and below {limit:,.0f}. Only reads can be thinned. "
        f"{cure} DownsamplingConfig(check_counts=False) skips this check; such values then come back as NaN."
    )
