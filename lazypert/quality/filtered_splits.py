"""What quality control leaves of each split."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import TYPE_CHECKING

from lazypert.errors import ConfigError
from lazypert.splits.names import SPLITS

if TYPE_CHECKING:
    from lazypert.quality.knockdown import KnockdownResult
    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows
    from lazypert.splits.split_result import SplitResult


def filter_splits(splits: SplitResult, knockdown: KnockdownResult) -> SplitResult:
    """Remove the cells that fail quality control from the splits.

    Raises
    ------
    ConfigError
        If all perturbed cells of the training split fail.

    Warns
    -----
    UserWarning
        For every other split whose perturbed cells all fail.
    """
    kept = splits.keep(knockdown.mask)
    for name in SPLITS:
        before, after = (_n_perturbed(s.groups, s[name]) for s in (splits, kept))
        if not before or after:
            continue
        left = f"its {len(kept[name]):,} controls are" if len(kept[name]) else "nothing is"
        happened = (
            f"enable_knockdown_filter: none of the {before:,} perturbed cells of split {name!r} passes, so that {left} "
            f"left. Verdicts: {_reasons(knockdown)}. "
        )
        if name == "train":
            raise ConfigError(
                happened + "Look at the table of OnTargetKnockdownFilter(config.filter_config()).run(source), and "
                "change the filter's options (residual_expression, cell_residual_expression, min_cells, direction), "
                "or train without the filter."
            )
        warnings.warn(happened + "Change the filter's options or the split.", stacklevel=4)
    return kept


def _n_perturbed(groups: Groups, rows: Rows) -> int:
    """Number of perturbed cells among the rows, whose intervals are of one run each."""
    is_control = groups.is_control[groups.run_of(rows.starts)]
    return int((rows.stops - rows.starts)[~is_control].sum())


def _reasons(knockdown: KnockdownResult) -> str:
    """Count the perturbations by verdict."""
    counts = Counter(reason.partition(" (")[0] for reason in knockdown.table["reason"])
    return ", ".join(f"{n:,} {reason}" for reason, n in counts.most_common())
