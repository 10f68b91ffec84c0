"""Knockdown quality control."""

from lazypert.quality.knockdown import (
    KnockdownFilterConfig,
    KnockdownFilterKwargs,
    KnockdownOptions,
    KnockdownResult,
    OnTargetKnockdownFilter,
    is_on_target_knockdown,
)

__all__ = [
    "KnockdownFilterConfig",
    "KnockdownFilterKwargs",
    "KnockdownOptions",
    "KnockdownResult",
    "OnTargetKnockdownFilter",
    "is_on_target_knockdown",
]
