"""Train, validation and test splits with exact counts, as intervals of rows.

Totals are exact, and every group is represented as evenly as its size allows. Which cells go where is a function
of the seed and of the cells' names alone; see `lazypert.design.group_cutting`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from lazypert._internal.config import Config, derive
from lazypert._internal.validation import require, require_choice, require_integer, require_number
from lazypert.design.group_cutting import cut_groups, exact
from lazypert.design.split_names import SPLITS, Split, split_name
from lazypert.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups, HasGroups
    from lazypert.screen.rows import Rows

SplitMode = Literal["random", "zeroshot", "fewshot"]

SPLIT_MODES: tuple[SplitMode, ...] = get_args(SplitMode)


@dataclass(frozen=True, slots=True)
class SplitResult:
    """Three disjoint lists of store rows, sorted by group.

    Attributes
    ----------
    train_indices, valid_indices, test_indices
        `Rows`, which behave like (n,) int64 arrays and are stored as intervals.
    """

    train_indices: Rows
    valid_indices: Rows
    test_indices: Rows

    def __getitem__(self, name: str) -> Rows:
        """Rows of ``"train"``, ``"valid"`` (or ``"val"``) or ``"test"``."""
        rows: Rows = getattr(self, f"{split_name(name)}_indices")
        return rows

    def keep(self, mask: NDArray[np.bool_]) -> SplitResult:
        """Return the splits without the rows for which the (n_obs,) mask is False."""
        return SplitResult(*(self[name].keep(mask) for name in SPLITS))

    def __repr__(self) -> str:
        return "SplitResult(" + ", ".join(f"{name} {len(self[name]):,}" for name in SPLITS) + ")"


@dataclass(frozen=True, kw_only=True, repr=False)
class SplitFractions(Config):
    """Options of every splitter.

    Parameters
    ----------
    train_frac, valid_frac
        Fractions of the cells, taken as written: 0.1 is exactly one tenth.
    seed
        Determines which cells go where.
    """

    train_frac: float = 0.8
    valid_frac: float = 0.1
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("train_frac", "valid_frac"):
            require_number(name, getattr(self, name), least=0, most=1)
        if exact(self.train_frac) + exact(self.valid_frac) > 1:
            raise ConfigError(
                f"train_frac + valid_frac: got {self.train_frac} + {self.valid_frac}, expected at most 1."
            )
        require_integer("seed", self.seed)


@dataclass(frozen=True, kw_only=True, repr=False)
class RandomSplitterConfig(SplitFractions):
    """Options of `RandomSplitter`: the fractions for training and validation; the rest is test."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ZeroShotSplitterConfig(SplitFractions):
    """Options of `ZeroShotSplitter`.

    Parameters
    ----------
    held_out_cell_types
        Cell types whose cells, including controls, all go to test.
    train_frac, valid_frac
        The remaining cells are split in this proportion.
    """

    held_out_cell_types: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_labels("held_out_cell_types", self.held_out_cell_types)
        _require_a_fraction(self)


@dataclass(frozen=True, kw_only=True, repr=False)
class FewShotSplitterConfig(SplitFractions):
    """Options of `FewShotSplitter`.

    Parameters
    ----------
    held_out_perturbations
        Perturbations whose cells all go to test.
    train_frac, valid_frac
        The remaining perturbed cells are split in this proportion; all controls go to train.
    val_subsample_fraction
        Fraction of the validation cells to keep; None keeps all.
    """

    held_out_perturbations: tuple[str, ...]
    val_subsample_fraction: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_labels("held_out_perturbations", self.held_out_perturbations)
        _require_a_fraction(self)
        if self.val_subsample_fraction is not None:
            require_number("val_subsample_fraction", self.val_subsample_fraction, above=0, most=1)


@dataclass(frozen=True, kw_only=True, repr=False)
class SplitOptions(SplitFractions):
    """Options of all splitters together; `make_splitter` checks them and makes the splitter.

    Parameters
    ----------
    split_mode
        Which splitter to use.
    held_out_cell_types
        With ``split_mode="zeroshot"`` only.
    held_out_perturbations
        With ``split_mode="fewshot"`` only.
    """

    split_mode: SplitMode = "random"
    held_out_cell_types: tuple[str, ...] = ()
    held_out_perturbations: tuple[str, ...] = ()


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
        return SplitResult(*cut_groups(groups, is_divided, totals, self.config.seed))


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
        return SplitResult(*cut_groups(groups, is_divided, totals, self.config.seed, (None, None, is_held_out)))


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
        return SplitResult(*cut_groups(groups, is_divided, totals, self.config.seed, undivided, n_kept))


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


def split_by_run(groups: Groups, names: Sequence[Split | None]) -> SplitResult:
    """Assign each run to the split named for it; None leaves the run out."""
    split_of_run = np.array([name or "" for name in names])
    return SplitResult(*(groups.rows(split_of_run == name) for name in SPLITS))


def _totals(groups: Groups, is_divided: NDArray[np.bool_], fractions: Sequence[Fraction]) -> list[int]:
    """Cells of the divided runs up to each cumulative fraction, rounded down."""
    n_cells = int(groups.sizes[is_divided].sum())
    return [math.floor(n_cells * fraction) for fraction in fractions]


def _cumulative_fractions(config: SplitFractions) -> list[Fraction]:
    """Cumulative fractions of train, valid and test where nothing is left for test."""
    train, valid = exact(config.train_frac), exact(config.valid_frac)
    return [train / (train + valid), Fraction(1), Fraction(1)]


def _require_labels(name: str, labels: object) -> None:
    are_texts = isinstance(labels, tuple | list) and all(isinstance(label, str) for label in labels)
    require(are_texts and bool(labels), name, labels, "a tuple of at least one label, such as ('A',)")


def _require_a_fraction(config: SplitFractions) -> None:
    if config.train_frac + config.valid_frac <= 0:
        raise ConfigError(
            f"train_frac + valid_frac: got {config.train_frac} + {config.valid_frac}, expected more than 0. "
            "Cells that are not held out need a split."
        )
