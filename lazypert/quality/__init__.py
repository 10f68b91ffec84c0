"""Knockdown quality control."""

from lazypert.quality.knockdown import (
    KnockdownFilterConfig,
    KnockdownFilterKwargs,
    KnockdownResult,
    OnTargetKnockdownFilter,
    is_on_target_knockdown,
)

__all__ = [
    "KnockdownFilterConfig",
    "KnockdownFilterKwargs",
    "KnockdownResult",
    "OnTargetKnockdownFilter",
    "is_on_target_knockdown",
]
