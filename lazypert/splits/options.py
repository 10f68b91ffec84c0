"""Options of all splitters together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict, get_args

from lazypert.splits.config import FoldOptions, SplitFractions

if TYPE_CHECKING:
    from lazypert.splits.config import HeldOut, OnMissing

SplitMode = Literal["random", "zeroshot", "fewshot", "heldout", "combinations"]

SPLIT_MODES: tuple[SplitMode, ...] = get_args(SplitMode)


@dataclass(frozen=True, kw_only=True, repr=False)
class SplitOptions(FoldOptions, SplitFractions):
    """Options of all splitters together; `make_splitter` checks them and makes the splitter.

    The config of each splitter explains its options. Those that the chosen mode does not have must keep their
    defaults.

    Parameters
    ----------
    split_mode
        Which splitter to use: ``"random"`` (`RandomSplitterConfig`), ``"zeroshot"`` (`ZeroShotSplitterConfig`),
        ``"fewshot"`` (`FewShotSplitterConfig`), ``"heldout"`` (`HeldOutSplitterConfig`) or ``"combinations"``
        (`CombinationSplitterConfig`).
    """

    split_mode: SplitMode = "random"
    held_out_cell_types: tuple[str, ...] | None = None
    held_out_perturbations: tuple[str, ...] | None = None
    by: str | tuple[str, ...] | None = None
    test: HeldOut | None = None
    valid: HeldOut | None = None
    separator: str | None = None
    n_seen: tuple[int, ...] | None = None
    test_combination_frac: float = 0.0
    valid_combination_frac: float = 0.0

    def __post_init__(self) -> None:
        """Leave all checks to the config of the splitter."""


class SplitKwargs(TypedDict, total=False):
    """Keyword arguments of ``ds.pert.split``: the fields of `SplitOptions` without `split_mode`."""

    seed: int
    exclude_perturbations: tuple[str, ...]
    exclude_cell_types: tuple[str, ...]
    min_cells_per_group: int
    missing: OnMissing
    train_frac: float
    valid_frac: float
    stratify_by: tuple[str, ...]
    n_folds: int | None
    fold: int | None
    valid_fold: bool
    held_out_cell_types: tuple[str, ...] | None
    held_out_perturbations: tuple[str, ...] | None
    by: str | tuple[str, ...] | None
    test: HeldOut | None
    valid: HeldOut | None
    separator: str | None
    n_seen: tuple[int, ...] | None
    test_combination_frac: float
    valid_combination_frac: float
