"""Options of the splitters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from lazypert._internal.config import Config
from lazypert._internal.validation import require, require_choice, require_flag, require_integer, require_number
from lazypert.errors import ConfigError
from lazypert.screen.labels import label_text
from lazypert.splits.fractions import exact

if TYPE_CHECKING:
    from collections.abc import Sequence

OnMissing = Literal["error", "ignore"]

Label: TypeAlias = str | tuple[str, ...]
"""A label, or one label for each column that cells are held out by."""

HeldOut: TypeAlias = tuple[Label, ...] | float
"""Labels to hold out, or the fraction of all labels."""


@dataclass(frozen=True, kw_only=True, repr=False)
class SplitRule(Config):
    """Options of every splitter.

    Parameters
    ----------
    seed
        Determines what is chosen at random.
    exclude_perturbations, exclude_cell_types
        Labels whose cells are in no split, such as ``"unassigned"``.
    min_cells_per_group
        Cells of a group, a (cell type, perturbation) in one condition, with fewer cells than this are in no split;
        controls are kept. The labels above are excluded first.
    missing
        What to do if a named label does not occur: ``"error"``, or ``"ignore"`` it. A rule that then holds
        nothing out is an error in any case.
    """

    seed: int = 42
    exclude_perturbations: tuple[str, ...] = ()
    exclude_cell_types: tuple[str, ...] = ()
    min_cells_per_group: int = 0
    missing: OnMissing = "error"

    def __post_init__(self) -> None:
        require_integer("seed", self.seed)
        for name in ("exclude_perturbations", "exclude_cell_types"):
            _set(self, name, _labels(name, getattr(self, name)))
        require_integer("min_cells_per_group", self.min_cells_per_group)
        require_choice("missing", self.missing, OnMissing)


@dataclass(frozen=True, kw_only=True, repr=False)
class SplitFractions(SplitRule):
    """Options of the splitters that divide cells at random.

    Parameters
    ----------
    train_frac, valid_frac
        Fractions of the cells, taken as written: 0.1 is exactly one tenth.
    stratify_by
        obs columns (or ``"batch"``, ``"dataset"``) within whose values each group is divided evenly, too. Cells
        without a value count as a value of their own.
    """

    train_frac: float = 0.8
    valid_frac: float = 0.1
    stratify_by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train_frac", "valid_frac"):
            require_number(name, getattr(self, name), least=0, most=1)
        if exact(self.train_frac) + exact(self.valid_frac) > 1:
            raise ConfigError(
                f"train_frac + valid_frac: got {self.train_frac} + {self.valid_frac}, expected at most 1."
            )
        _set(self, "stratify_by", _labels("stratify_by", self.stratify_by))


@dataclass(frozen=True, kw_only=True, repr=False)
class FoldOptions(Config):
    """Options of cross-validation.

    Parameters
    ----------
    n_folds
        Number of folds, which are disjoint and together cover everything; None for a single split.
    fold
        The fold that is tested, from 0.
    valid_fold
        Whether the next fold validates (after the last comes the first); otherwise, it trains like all others.
    """

    n_folds: int | None = None
    fold: int | None = None
    valid_fold: bool = True

    def check_folds(self) -> None:
        """Check the options of the folds."""
        require_flag("valid_fold", self.valid_fold)
        if self.n_folds is None:
            require(self.fold is None, "fold", self.fold, "None without n_folds")
            require(self.valid_fold, "valid_fold", self.valid_fold, "True (the default) without n_folds")
            return
        require_integer("n_folds", self.n_folds, 3 if self.valid_fold else 2)
        if self.fold is None:
            raise ConfigError(f"fold: got None, expected the fold to test, 0 to {self.n_folds - 1}.")
        require_integer("fold", self.fold)
        require(
            self.fold < self.n_folds, "fold", self.fold, f"at most {self.n_folds - 1}, as n_folds is {self.n_folds}"
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class RandomSplitterConfig(FoldOptions, SplitFractions):
    """Options of `RandomSplitter`: the fractions for training and validation; the rest is test.

    With `n_folds`, the sizes follow from the folds, so the fractions must be left out.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_folds()
        if self.n_folds is not None:
            for name in ("train_frac", "valid_frac"):
                _require_default(self, name, f"no {name} with n_folds, as the sizes follow from the folds")


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
        _set(self, "held_out_cell_types", _labels("held_out_cell_types", self.held_out_cell_types, least=1))
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
        _set(self, "held_out_perturbations", _labels("held_out_perturbations", self.held_out_perturbations, least=1))
        _require_a_fraction(self)
        if self.val_subsample_fraction is not None:
            require_number("val_subsample_fraction", self.val_subsample_fraction, above=0, most=1)


@dataclass(frozen=True, kw_only=True, repr=False)
class HeldOutSplitterConfig(FoldOptions, SplitRule):
    """Options of `HeldOutSplitter`.

    Parameters
    ----------
    by
        What to hold out: ``"perturbation"``, ``"cell_type"``, ``"batch"``, ``"dataset"``, or an obs column such as
        ``"donor"`` or a covariate; or several of them, such as ``("cell_type", "perturbation")`` or
        ``("perturbation", "dose")``.
    test, valid
        Labels, or a fraction of all labels. Of ``n`` labels, a fraction ``f`` is ``floor(n * f)`` labels, the first in
        the order of a hash of label and seed; validation takes the next ones. With several `by`, a label is a tuple.
    """

    by: str | tuple[str, ...]
    test: HeldOut | None = None
    valid: HeldOut | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_folds()
        if not isinstance(self.by, str):
            columns = _labels("by", self.by, least=1)
            require(len(set(columns)) == len(columns), "by", self.by, "each column once")
            _set(self, "by", columns)
        for name in ("test", "valid"):
            _set(
                self,
                name,
                _held_out(name, getattr(self, name), len(self.columns), is_pair=not isinstance(self.by, str)),
            )
        if self.n_folds is not None:
            for name in ("test", "valid"):
                _require_default(self, name, "None with n_folds, as the folds say what is held out")
        elif self.test is None:
            raise ConfigError(
                "test: got None, expected labels to hold out, or a fraction of them, or n_folds and fold."
            )
        _require_apart(self.test, self.valid)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that cells are held out by."""
        return (self.by,) if isinstance(self.by, str) else self.by


@dataclass(frozen=True, kw_only=True, repr=False)
class CombinationSplitterConfig(SplitRule):
    """Options of `CombinationSplitter`.

    Parameters
    ----------
    separator
        Text between the parts of a label such as ``"A+B"``. It is never guessed, because names of genes contain
        dots, dashes and underscores. None takes the one with which the screen was opened or converted.
    test, valid
        Parts to hold out, or a fraction of all parts, with the rules of `HeldOutSplitterConfig`. A combination with a
        part in `test` is never in validation.
    n_seen
        Test and validate only combinations with one of these numbers of seen parts; None means all. Other
        combinations with a part that is held out are in no split.
    test_combination_frac, valid_combination_frac
        Fractions of the combinations all of whose parts are seen to hold out as well; ``floor(n * fraction)``.
    """

    separator: str | None = None
    test: HeldOut | None = None
    valid: HeldOut | None = None
    n_seen: tuple[int, ...] | None = None
    test_combination_frac: float = 0.0
    valid_combination_frac: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        separator: object = self.separator
        is_text = separator is None or (isinstance(separator, str) and separator != "")
        require(is_text, "separator", separator, "text, such as '+', or None")
        for name in ("test", "valid"):
            _set(self, name, _held_out(name, getattr(self, name), 1, is_pair=False))
        _require_apart(self.test, self.valid)
        for name in ("test_combination_frac", "valid_combination_frac"):
            require_number(name, getattr(self, name), least=0, most=1)
        if exact(self.test_combination_frac) + exact(self.valid_combination_frac) > 1:
            raise ConfigError(
                f"test_combination_frac + valid_combination_frac: got {self.test_combination_frac} + "
                f"{self.valid_combination_frac}, expected at most 1."
            )
        if self.test is None and not self.test_combination_frac:
            raise ConfigError(
                "test: got None, expected parts to hold out, or a fraction of them, or a test_combination_frac above 0."
            )
        if self.n_seen is not None:
            is_list = isinstance(self.n_seen, tuple | list)
            require(is_list and bool(self.n_seen), "n_seen", self.n_seen, "a tuple of numbers, such as (0, 1)")
            _set(self, "n_seen", tuple(require_integer("n_seen", number) for number in self.n_seen))


def default_of(kind: type[Config], name: str) -> Any:
    """Return the default of a config's field."""
    return kind.__dataclass_fields__[name].default


def _set(config: Config, name: str, value: object) -> None:
    object.__setattr__(config, name, value)


def _labels(name: str, labels: Any, least: int = 0) -> tuple[str, ...]:
    labels = (labels,) if isinstance(labels, str) else labels
    is_list = isinstance(labels, tuple | list) and all(isinstance(label, str) for label in labels)
    expected = "a tuple of at least one label, such as ('A',)" if least else "a tuple of labels, such as ('A',)"
    require(is_list and len(labels) >= least, name, labels, expected)
    return tuple(labels)


def _held_out(name: str, value: Any, width: int, *, is_pair: bool) -> HeldOut | None:
    """Return labels as text, or a fraction; numbers such as ``(1, 2)`` are labels of a numeric column."""
    if value is None:
        return None
    if isinstance(value, float | int | np.floating | np.integer):
        return require_number(name, value, above=0, most=1)
    if isinstance(value, str) and not is_pair:
        value = (value,)
    example = "(('T cell', 'A'),)" if is_pair else "('A', 'B')"
    expected = f"labels, such as {example}, or a fraction of them, such as 0.2"
    require(isinstance(value, tuple | list) and len(value) > 0, name, value, expected)
    labels: list[Label] = []
    for item in value:
        parts: Sequence[Any] = (item,) if not is_pair else item
        is_label = isinstance(parts, tuple | list) and len(parts) == width and all(map(_is_label, parts))
        require(is_label, name, value, expected)
        texts = tuple(label_text(part) for part in parts)
        labels.append(texts if is_pair else texts[0])
    return tuple(dict.fromkeys(labels))


def _is_label(value: object) -> bool:
    return isinstance(value, str | int | float | np.integer | np.floating | np.bool_)


def _require_apart(test: HeldOut | None, valid: HeldOut | None) -> None:
    if isinstance(test, tuple) and isinstance(valid, tuple):
        both = [label for label in test if label in valid]
        require(not both, "valid", valid, f"labels that are not in test, unlike {both!r}")
    elif isinstance(test, float) and isinstance(valid, float) and exact(test) + exact(valid) > 1:
        raise ConfigError(f"test + valid: got {test} + {valid}, expected at most 1.")


def _require_default(config: Config, name: str, expected: str) -> None:
    require(getattr(config, name) == default_of(type(config), name), name, getattr(config, name), expected)


def _require_a_fraction(config: SplitFractions) -> None:
    if config.train_frac + config.valid_frac <= 0:
        raise ConfigError(
            f"train_frac + valid_frac: got {config.train_frac} + {config.valid_frac}, expected more than 0. "
            "Cells that are not held out need a split."
        )
