"""Train, validation and test splits with exact counts, as intervals of rows.

Totals are exact, and every group is represented as evenly as its size allows. Which cells go where is a function
of the seed and of the cells' names alone; see `lazypert.splits.group_cutting`.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from lazypert._internal.config import derive
from lazypert._internal.validation import require_choice
from lazypert.errors import ConfigError
from lazypert.splits.config import (
    SPLIT_MODES,
    FewShotSplitterConfig,
    RandomSplitterConfig,
    SplitFractions,
    SplitOptions,
    ZeroShotSplitterConfig,
)
from lazypert.splits.group_cutting import cut_groups, exact
from lazypert.splits.split_result import SplitResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups, HasGroups


class RandomSplitter:
    """Split all cells at random, evenly across groups.

    Of ``n`` cells, ``floor(n * train_frac)`` are used for training and
    ``floor(n * (train_frac + valid_frac))`` for training or validation.
    """

    def __init__(self, config: RandomSplitterConfig | None = None) -> None:
        self.config = config or RandomSplitterConfig()

    def __repr__(self) -> str:
        return f"RandomSplitter({self.config!r})"

    def split(self, source: HasGroups) -> SplitResult:
        """Split a source's cells. Cells with a missing label are in no split."""
        train, valid = exact(self.config.train_frac), exact(self.config.valid_frac)
        groups = source.groups
        is_divided = groups.ids >= 0
        totals = _totals(groups, is_divided, [train, train + valid, Fraction(1)])
        return SplitResult(*cut_groups(groups, is_divided, totals, self.config.seed), groups)


class ZeroShotSplitter:
    """Hold out whole cell types."""

    def __init__(self, config: ZeroShotSplitterConfig) -> None:
        self.config = config

    def __repr__(self) -> str:
        return f"ZeroShotSplitter({self.config!r})"

    def split(self, source: HasGroups) -> SplitResult:
        """Split a source's cells.

        Raises
        ------
        LabelNotFoundError
            If a held-out cell type does not occur.
        """
        groups = source.groups
        held_out = [groups.code_of("cell_type", name) for name in self.config.held_out_cell_types]
        is_held_out = np.isin(groups.codes["cell_type"], held_out) & (groups.ids >= 0)
        is_divided = ~is_held_out & (groups.ids >= 0)
        totals = _totals(groups, is_divided, _cumulative_fractions(self.config))
        undivided = (None, None, is_held_out)
        return SplitResult(*cut_groups(groups, is_divided, totals, self.config.seed, undivided), groups)


class FewShotSplitter:
    """Hold out perturbations in all cell types. All controls go to train, because every model may see them."""

    def __init__(self, config: FewShotSplitterConfig) -> None:
        self.config = config

    def __repr__(self) -> str:
        return f"FewShotSplitter({self.config!r})"

    def split(self, source: HasGroups) -> SplitResult:
        """Split a source's cells.

        Raises
        ------
        LabelNotFoundError
            If a held-out perturbation does not occur.
        ConfigError
            If the control label is held out.
        """
        groups = source.groups
        held_out = [groups.code_of("perturbation", name) for name in self.config.held_out_perturbations]
        if groups.control_code in held_out:
            raise ConfigError(
                f"held_out_perturbations: got {groups.roles.control_pert!r}, which marks the controls, expected "
                "perturbations only. Remove it: every split is compared with controls."
            )
        labelled = groups.ids >= 0
        is_held_out = np.isin(groups.codes["perturbation"], held_out) & labelled
        is_control = groups.is_control & labelled
        is_divided = labelled & ~is_held_out & ~is_control
        n_train, n_both, _ = totals = _totals(groups, is_divided, _cumulative_fractions(self.config))
        n_kept = {}
        if self.config.val_subsample_fraction is not None:
            n_kept = {1: math.ceil((n_both - n_train) * exact(self.config.val_subsample_fraction))}
        undivided = (is_control, None, is_held_out)
        return SplitResult(*cut_groups(groups, is_divided, totals, self.config.seed, undivided, n_kept), groups)


def make_splitter(options: SplitOptions) -> RandomSplitter | ZeroShotSplitter | FewShotSplitter:
    """Make the splitter of ``options.split_mode``.

    Raises
    ------
    ConfigError
        If an option is invalid, or labels are held out that this mode does not hold out.
    """
    require_choice("split_mode", options.split_mode, SPLIT_MODES)
    held_out = {"zeroshot": "held_out_cell_types", "fewshot": "held_out_perturbations"}
    for mode, name in held_out.items():
        labels = getattr(options, name)
        if labels and mode != options.split_mode:
            raise ConfigError(
                f"{name}: got {labels!r} with mode {options.split_mode!r}, expected it only with mode {mode!r}."
            )
    if options.split_mode == "zeroshot":
        return ZeroShotSplitter(derive(ZeroShotSplitterConfig, options))
    if options.split_mode == "fewshot":
        return FewShotSplitter(derive(FewShotSplitterConfig, options))
    return RandomSplitter(derive(RandomSplitterConfig, options))


def _totals(groups: Groups, is_divided: NDArray[np.bool_], fractions: Sequence[Fraction]) -> list[int]:
    """Cells of the divided runs up to each cumulative fraction, rounded down."""
    n_cells = int(groups.sizes[is_divided].sum())
    return [math.floor(n_cells * fraction) for fraction in fractions]


def _cumulative_fractions(config: SplitFractions) -> list[Fraction]:
    """Cumulative fractions of train, valid and test where nothing is left for test."""
    train, valid = exact(config.train_frac), exact(config.valid_frac)
    return [train / (train + valid), Fraction(1), Fraction(1)]
