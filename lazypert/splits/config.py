"""Options of the splitters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lazypert._internal.config import Config
from lazypert._internal.validation import require, require_integer, require_number
from lazypert.errors import ConfigError
from lazypert.splits.group_cutting import exact

SplitMode = Literal["random", "zeroshot", "fewshot"]

SPLIT_MODES: tuple[SplitMode, ...] = get_args(SplitMode)


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


def _require_labels(name: str, labels: object) -> None:
    are_texts = isinstance(labels, tuple | list) and all(isinstance(label, str) for label in labels)
    require(are_texts and bool(labels), name, labels, "a tuple of at least one label, such as ('A',)")


def _require_a_fraction(config: SplitFractions) -> None:
    if config.train_frac + config.valid_frac <= 0:
        raise ConfigError(
            f"train_frac + valid_frac: got {config.train_frac} + {config.valid_frac}, expected more than 0. "
            "Cells that are not held out need a split."
        )
