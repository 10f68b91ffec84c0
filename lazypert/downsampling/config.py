"""Options of read downsampling. Importing this module does not import JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lazypert._internal.config import Config
from lazypert._internal.validation import require_choice, require_flag, require_integer, require_number
from lazypert.errors import ConfigError

Mode = Literal["fraction", "target_depth"]
Estimator = Literal["binomial", "rounding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DownsamplingConfig(Config):
    """Options of `ReadDownsampler`.

    Parameters
    ----------
    mode
        ``"fraction"`` keeps each read with probability `fraction`; ``"target_depth"`` with probability
        ``min(1, target_depth / total reads of the cell)``.
    fraction
        Probability of keeping a read, in (0, 1]. Used only in mode ``"fraction"``; the default keeps all
        reads.
    target_depth
        Expected number of reads per cell after downsampling, at least 1. Required in mode
        ``"target_depth"``, and allowed only there.
    is_log1p_input
        The input is ``log1p(reads)``. The reads that are thinned are ``round(expm1(counts))``. Counts, and
        ``log1p`` of normalised expression, are refused, because their ``expm1`` are not whole numbers.
    apply_log1p
        Return ``log1p(reads)``. None, the default, does so if and only if the input is ``log1p(reads)``.
    estimator
        ``"binomial"`` draws from the exact distribution. ``"rounding"`` is an older approximation: it
        rounds ``n f`` up or down at random, which has the right mean but a variance of at most 1/4
        instead of ``n f (1 - f)``.
    check_counts
        Check concrete arrays before thinning, and raise if a value is not a count. This costs one pass
        over the array and a wait for the device. Arrays traced under `jax.jit` cannot be checked.

    Raises
    ------
    ConfigError
        If an option has an invalid value, or contradicts another.

    Examples
    --------
    >>> DownsamplingConfig(mode="target_depth", target_depth=5_000).target_depth
    5000
    """

    mode: Mode = "fraction"
    fraction: float = 1.0
    target_depth: int | None = None
    is_log1p_input: bool = False
    apply_log1p: bool | None = None
    estimator: Estimator = "binomial"
    check_counts: bool = True

    def __post_init__(self) -> None:
        require_choice("mode", self.mode, Mode)
        require_choice("estimator", self.estimator, Estimator)
        require_flag("is_log1p_input", self.is_log1p_input)
        require_flag("check_counts", self.check_counts)
        if self.apply_log1p is not None:
            require_flag("apply_log1p", self.apply_log1p)
        require_number("fraction", self.fraction)
        if not 0 < self.fraction <= 1:
            raise ConfigError(
                f"fraction: got {self.fraction!r}, expected a probability of keeping a read, above 0 and at most 1. "
                "For a number of reads per cell, use mode='target_depth' and target_depth."
            )
        self._check_depth()
        # A NumPy scalar would impose its dtype on the reads.
        object.__setattr__(self, "fraction", float(self.fraction))
        if self.target_depth is not None:
            object.__setattr__(self, "target_depth", int(self.target_depth))

    def _check_depth(self) -> None:
        if self.mode == "fraction":
            if self.target_depth is not None:
                raise ConfigError(
                    f"target_depth: got {self.target_depth!r} with mode='fraction', expected None. "
                    "Pass mode='target_depth', or leave out target_depth."
                )
            return
        if self.target_depth is None:
            raise ConfigError(
                "target_depth: got None with mode='target_depth', expected a number of reads per cell, "
                "such as target_depth=5_000."
            )
        require_integer("target_depth", self.target_depth, 1)
        if self.fraction != 1:
            raise ConfigError(
                f"fraction: got {self.fraction!r} with mode='target_depth', expected 1.0: the target depth determines "
                "each cell's fraction. Leave out fraction, or use mode='fraction'."
            )

    @property
    def is_log1p_output(self) -> bool:
        """Whether the result is ``log1p(reads)``."""
        return self.is_log1p_input if self.apply_log1p is None else self.apply_log1p
