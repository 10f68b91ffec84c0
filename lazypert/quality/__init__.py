"""Knockdown quality control."""

from lazypert.quality.config import KnockdownFilterConfig, KnockdownFilterKwargs, KnockdownOptions
from lazypert.quality.filtered_splits import filter_splits
from lazypert.quality.knockdown import KnockdownResult, OnTargetKnockdownFilter, is_on_target_knockdown

__all__ = [
    "KnockdownFilterConfig",
    "KnockdownFilterKwargs",
    "KnockdownOptions",
    "KnockdownResult",
    "OnTargetKnockdownFilter",
    "filter_splits",
    "is_on_target_knockdown",
]
