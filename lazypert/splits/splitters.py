"""Train, validation and test splits with exact counts, as intervals of rows.

Totals are exact, and every group is represented as evenly as its size allows. Which cells go where is a function
of the seed and of the cells' names alone; see `lazypert.splits.group_cutting`.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.config import derive
from lazypert._internal.validation import require_choice
from lazypert.errors import ConfigError
from lazypert.splits.cell_labels import read_cell_labels
from lazypert.splits.combinations import CombinationSplitter
from lazypert.splits.config import (
    FewShotSplitterConfig,
    RandomSplitterConfig,
    SplitFractions,
    ZeroShotSplitterConfig,
    default_of,
)
from lazypert.splits.filters import find_codes, holds_nothing_out, refuse_control
from lazypert.splits.fractions import exact
from lazypert.splits.group_cutting import cut_groups, unite
from lazypert.splits.held_out import HeldOutSplitter
from lazypert.splits.options import SPLIT_MODES, SplitOptions
from lazypert.splits.splitter_base import Splitter
from lazypert.splits.stratified_cutting import cut_strata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups
    from lazypert.screen.rows import Rows
    from lazypert.splits.cell_source import CellSource


class RandomSplitter(Splitter[RandomSplitterConfig]):
    """Split all cells at random, evenly across groups.

    Of ``n`` cells, ``floor(n * train_frac)`` are used for training and
    ``floor(n * (train_frac + valid_frac))`` for training or validation. With folds, fold ``k`` has the cells from
    ``floor(n * k / n_folds)`` to ``floor(n * (k + 1) / n_folds)``.
    """

    config_type = RandomSplitterConfig

    def __init__(self, config: RandomSplitterConfig | None = None) -> None:
        super().__init__(config or RandomSplitterConfig())

    def _divide(self, source: CellSource, used: NDArray[np.bool_]) -> list[Rows]:
        config = self.config
        if config.n_folds is None:
            train, valid = exact(config.train_frac), exact(config.valid_frac)
            return _cut(source, used, [train, train + valid, Fraction(1)], config)
        assert config.fold is not None
        folds = _cut(source, used, [Fraction(k + 1, config.n_folds) for k in range(config.n_folds)], config)
        test = folds[config.fold]
        following = (config.fold + 1) % config.n_folds
        valid_rows = folds[following] if config.valid_fold else unite(source.groups, [])
        held_out = {config.fold, following} if config.valid_fold else {config.fold}
        train_rows = unite(source.groups, [rows for k, rows in enumerate(folds) if k not in held_out])
        return [train_rows, valid_rows, test]


class ZeroShotSplitter(Splitter[ZeroShotSplitterConfig]):
    """Hold out whole cell types."""

    config_type = ZeroShotSplitterConfig

    def _divide(self, source: CellSource, used: NDArray[np.bool_]) -> list[Rows]:
        groups, config, option = source.groups, self.config, "held_out_cell_types"
        held_out = find_codes(groups, "cell_type", config.held_out_cell_types, used, option, config)
        if not held_out:
            raise holds_nothing_out(option, config.held_out_cell_types, "none of which occurs")
        is_held_out = np.isin(groups.codes["cell_type"], held_out) & used
        if not (used & ~is_held_out).any():
            raise ConfigError(
                f"{option}: got {config.held_out_cell_types!r}, which are all cell types there are, so no cell is "
                "left to train on. Hold out some of them."
            )
        fractions = _cumulative_fractions(config)
        return _cut(source, used & ~is_held_out, fractions, config, (None, None, is_held_out))


class FewShotSplitter(Splitter[FewShotSplitterConfig]):
    """Hold out perturbations in all cell types. All controls go to train, because every model may see them."""

    config_type = FewShotSplitterConfig

    def _divide(self, source: CellSource, used: NDArray[np.bool_]) -> list[Rows]:
        groups, config, option = source.groups, self.config, "held_out_perturbations"
        held_out = find_codes(groups, "perturbation", config.held_out_perturbations, used, option, config)
        refuse_control(groups, held_out, option)
        if not held_out:
            raise holds_nothing_out(option, config.held_out_perturbations, "none of which occurs")
        is_held_out = np.isin(groups.codes["perturbation"], held_out) & used
        is_control = groups.is_control & used
        is_divided = used & ~is_held_out & ~is_control
        fractions = _cumulative_fractions(config)
        n_kept = {}
        if config.val_subsample_fraction is not None:
            n_train, n_both, _ = _totals(groups, is_divided, fractions)
            n_kept = {1: math.ceil((n_both - n_train) * exact(config.val_subsample_fraction))}
        return _cut(source, is_divided, fractions, config, (is_control, None, is_held_out), n_kept)


SPLITTERS: dict[str, type[Splitter[Any]]] = {
    "random": RandomSplitter,
    "zeroshot": ZeroShotSplitter,
    "fewshot": FewShotSplitter,
    "heldout": HeldOutSplitter,
    "combinations": CombinationSplitter,
}
"""The splitter of each mode."""


def make_splitter(options: SplitOptions) -> Splitter[Any]:
    """Make the splitter of ``options.split_mode``.

    Raises
    ------
    ConfigError
        If an option is invalid, or is one that this mode does not have.
    """
    require_choice("split_mode", options.split_mode, SPLIT_MODES)
    splitter = SPLITTERS[options.split_mode]
    for name in SplitOptions.__dataclass_fields__:
        value = getattr(options, name)
        if name == "split_mode" or name in splitter.config_type.__dataclass_fields__:
            continue
        if value != default_of(SplitOptions, name):
            raise wrong_mode(name, value, options.split_mode)
    return splitter(derive(splitter.config_type, options))


def wrong_mode(name: str, value: object, mode: str) -> ConfigError:
    """Return the error for an option that a mode does not have."""
    modes = [repr(other) for other in SPLIT_MODES if name in SPLITTERS[other].config_type.__dataclass_fields__]
    return ConfigError(f"{name}: got {value!r} with mode {mode!r}, expected it only with mode {' or '.join(modes)}.")


def _cut(
    source: CellSource,
    is_divided: NDArray[np.bool_],
    fractions: Sequence[Fraction],
    config: SplitFractions,
    undivided: Sequence[NDArray[np.bool_] | None] = (),
    n_kept: Mapping[int, int] | None = None,
) -> list[Rows]:
    """Cut the divided runs at cumulative fractions; see `cut_groups`."""
    groups = source.groups
    totals = _totals(groups, is_divided, fractions)
    if not config.stratify_by:
        return cut_groups(groups, is_divided, totals, config.seed, undivided, n_kept)
    strata = read_cell_labels(source, config.stratify_by, is_divided, "stratify_by")
    parts = cut_strata(groups, is_divided, totals, config.seed, strata, n_kept)
    whole = [None if runs is None else groups.rows(runs) for runs in undivided]
    return [
        unite(groups, [part, *([] if runs is None else [runs])])
        for part, runs in zip(parts, whole or [None] * len(parts), strict=True)
    ]


def _totals(groups: Groups, is_divided: NDArray[np.bool_], fractions: Sequence[Fraction]) -> list[int]:
    """Cells of the divided runs up to each cumulative fraction, rounded down."""
    n_cells = int(groups.sizes[is_divided].sum())
    return [math.floor(n_cells * fraction) for fraction in fractions]


def _cumulative_fractions(config: SplitFractions) -> list[Fraction]:
    """Cumulative fractions of train, valid and test where nothing is left for test."""
    train, valid = exact(config.train_frac), exact(config.valid_frac)
    return [train / (train + valid), Fraction(1), Fraction(1)]
