"""Train, validation and test splits with exact counts, as intervals of rows.

A split never looks at cells one by one: each run of like cells is cut at exact places, so that the
totals are exact, every group is represented as evenly as its size allows, and the work and memory
are those of the run table.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from lazypert._internal.randomness import generator
from lazypert._internal.validation import require, require_choice, require_integer, require_number
from lazypert.errors import ConfigError
from lazypert.screen.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups, HasGroups

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, slots=True)
class SplitResult:
    """Three disjoint lists of store rows, sorted by group.

    Attributes
    ----------
    train_indices, valid_indices, test_indices
        `Rows`: read like (n,) int64 arrays, held as intervals.
    """

    train_indices: Rows
    valid_indices: Rows
    test_indices: Rows

    def __getitem__(self, name: str) -> Rows:
        """Rows of ``"train"``, ``"valid"`` (or ``"val"``) or ``"test"``."""
        name = "valid" if name == "val" else name
        require_choice("split", name, SPLITS)
        rows: Rows = getattr(self, f"{name}_indices")
        return rows

    def keep(self, mask: NDArray[np.bool_]) -> SplitResult:
        """Return the splits without the rows for which the (n_obs,) mask is False."""
        return SplitResult(*(self[name].keep(mask) for name in SPLITS))

    def __repr__(self) -> str:
        return "SplitResult(" + ", ".join(f"{name} {len(self[name]):,}" for name in SPLITS) + ")"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fractions:
    train_frac: float = 0.8
    valid_frac: float = 0.1
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("train_frac", "valid_frac"):
            require_number(name, getattr(self, name), least=0, most=1)
        if _exact(self.train_frac) + _exact(self.valid_frac) > 1:
            raise ConfigError(
                f"train_frac + valid_frac: got {self.train_frac} + {self.valid_frac}, expected at most 1."
            )
        require_integer("seed", self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSplitterConfig(_Fractions):
    """Options of `RandomSplitter`: the fractions of train and validation; the rest is test."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroShotSplitterConfig(_Fractions):
    """Options of `ZeroShotSplitter`.

    Parameters
    ----------
    held_out_cell_types
        Cell types whose cells, controls included, are all test.
    train_frac, valid_frac
        The other cells are split in this proportion.
    """

    held_out_cell_types: tuple[str, ...]

    def __post_init__(self) -> None:
        _Fractions.__post_init__(self)
        _require_labels("held_out_cell_types", self.held_out_cell_types)
        _require_some(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShotSplitterConfig(_Fractions):
    """Options of `FewShotSplitter`.

    Parameters
    ----------
    held_out_perturbations
        Perturbations whose cells are all test.
    train_frac, valid_frac
        The other perturbed cells are split in this proportion; controls all train.
    val_subsample_fraction
        Keep only this part of the validation cells; None keeps all.
    """

    held_out_perturbations: tuple[str, ...]
    val_subsample_fraction: float | None = None

    def __post_init__(self) -> None:
        _Fractions.__post_init__(self)
        _require_labels("held_out_perturbations", self.held_out_perturbations)
        _require_some(self)
        if self.val_subsample_fraction is not None:
            require_number("val_subsample_fraction", self.val_subsample_fraction, above=0, most=1)


class RandomSplitter:
    """Split all cells at random, evenly over groups.

    Of ``n`` cells, ``floor(n * train_frac)`` train and ``floor(n * (train_frac + valid_frac))`` are
    train or validation.
    """

    def __init__(self, config: RandomSplitterConfig | None = None) -> None:
        self.config = config or RandomSplitterConfig()

    def split(self, source: HasGroups) -> SplitResult:
        """Split a source's cells. Cells with a missing label are in no split."""
        train, valid = _exact(self.config.train_frac), _exact(self.config.valid_frac)
        groups = _fair(source.groups, self.config.seed)
        return _assemble(groups, groups.ids >= 0, [train, train + valid, Fraction(1)], {}, self.config.seed)


class ZeroShotSplitter:
    """Hold out whole cell types."""

    def __init__(self, config: ZeroShotSplitterConfig) -> None:
        self.config = config

    def split(self, source: HasGroups) -> SplitResult:
        """Split a source's cells.

        Raises
        ------
        LabelNotFoundError
            When a held-out cell type does not occur.
        """
        groups = _fair(source.groups, self.config.seed)
        held = [groups.code_of("cell_type", name) for name in self.config.held_out_cell_types]
        test = np.isin(groups.codes["cell_type"], held) & (groups.ids >= 0)
        rest = ~test & (groups.ids >= 0)
        return _assemble(groups, rest, _proportion(self.config), {"test": test}, self.config.seed)


class FewShotSplitter:
    """Hold out perturbations in all cell types. Controls train: they are what every model may see."""

    def __init__(self, config: FewShotSplitterConfig) -> None:
        self.config = config

    def split(self, source: HasGroups) -> SplitResult:
        """Split a source's cells.

        Raises
        ------
        LabelNotFoundError
            When a held-out perturbation does not occur.
        ConfigError
            When the control label is held out.
        """
        groups = _fair(source.groups, self.config.seed)
        held = [groups.code_of("perturbation", name) for name in self.config.held_out_perturbations]
        if groups.control_code in held:
            raise ConfigError(
                f"held_out_perturbations: {groups.roles.control_pert!r} marks the controls, which every split "
                "is compared with. Leave it out of the list."
            )
        labelled = groups.ids >= 0
        test = np.isin(groups.codes["perturbation"], held) & labelled
        control = groups.is_control & labelled
        result = _assemble(
            groups,
            labelled & ~test & ~control,
            _proportion(self.config),
            {"test": test, "train": control},
            self.config.seed,
        )
        fraction = self.config.val_subsample_fraction
        if fraction is None:
            return result
        return SplitResult(result.train_indices, _thin(result.valid_indices, fraction), result.test_indices)


def split_by_run(groups: Groups, names: Sequence[str | None]) -> SplitResult:
    """Give every run, whole, to the split it is named for (None: to none)."""
    which = np.array([name or "" for name in names])
    return SplitResult(*(groups.rows(which == name) for name in SPLITS))


def _fair(groups: Groups, seed: int) -> Groups:
    return groups if groups.is_shuffled else groups.shuffled(seed)


def _exact(fraction: float) -> Fraction:
    """Return the fraction as written: 0.1 is one tenth, not the float nearest to it."""
    return Fraction(str(fraction))


def _proportion(config: _Fractions) -> list[Fraction]:
    train, valid = _exact(config.train_frac), _exact(config.valid_frac)
    return [train / (train + valid), Fraction(1), Fraction(1)]


def _assemble(
    groups: Groups,
    divided: NDArray[np.bool_],
    bounds: list[Fraction],
    whole: dict[str, NDArray[np.bool_]],
    seed: int,
) -> SplitResult:
    """Cut the `divided` runs at the cumulative `bounds`; give `whole` runs to their split."""
    sizes = np.where(divided, groups.sizes, 0)
    rng = generator(seed)
    # Groups take turns in random order, and their runs (batches) too, so that no two go together.
    _, group = np.unique(groups.ids, return_inverse=True)
    turn = np.lexsort((rng.random(len(sizes)), rng.permutation(len(sizes))[group]))
    cuts = np.zeros((len(bounds) + 1, len(sizes)), dtype=np.int64)
    within = sizes
    for k in reversed(range(len(bounds))):  # each part out of the larger one, so that they nest
        count = int(sizes.sum()) * bounds[k].numerator // bounds[k].denominator
        within = cuts[k + 1] = _apportion(within, count, turn, int(rng.integers(2**63)))
    offset = (rng.random(len(sizes)) * sizes).astype(np.int64)
    parts = []
    for k, name in enumerate(SPLITS):
        begin, length = offset + cuts[k], cuts[k + 1] - cuts[k]
        if name in whole:
            begin = np.where(whole[name], 0, begin)
            length = np.where(whole[name], groups.sizes, length)
        parts.append(_cyclic(groups, begin, length))
    return SplitResult(*parts)


def _apportion(sizes: NDArray[np.int64], count: int, turn: NDArray[np.int64], start: int) -> NDArray[np.int64]:
    """Give `count` places out to runs in proportion to their sizes.

    Systematic sampling: places lie evenly on a circle of all cells, which starts at a random cell.
    Every cell has the same chance, and neighbours in `turn` together get their share, rounded up
    or down.
    """
    total = int(sizes.sum())
    if total == 0:
        return np.zeros_like(sizes)
    ends = start % total + np.cumsum(np.concatenate([[0], sizes[turn]]))
    out = np.empty_like(sizes)
    out[turn] = np.diff(_share(ends, Fraction(count, total)))
    return out


def _share(totals: NDArray[np.int64], fraction: Fraction) -> NDArray[np.int64]:
    """``floor(totals * fraction)``: 64-bit products overflow for fractions such as 1/3, Python's do not."""
    shares: NDArray[np.object_] = totals.astype(object) * fraction.numerator // fraction.denominator
    return shares.astype(np.int64)


def _cyclic(groups: Groups, begin: NDArray[np.int64], length: NDArray[np.int64]) -> Rows:
    """Rows ``begin`` to ``begin + length`` of each run, counted round and round."""
    sizes = np.maximum(groups.sizes, 1)
    first = begin % sizes
    over = np.maximum(first + length - sizes, 0)
    starts = np.stack([groups.start, groups.start + first], axis=1).ravel()
    stops = np.stack([groups.start + over, groups.start + first + length - over], axis=1).ravel()
    return Rows(starts, stops, groups.row_order)


def _thin(rows: Rows, fraction: float) -> Rows:
    """Keep the first cells of every interval so that ``ceil(n * fraction)`` are kept in all."""
    upto = -_share(-np.cumsum(rows.stops - rows.starts), _exact(fraction))
    return Rows(rows.starts, rows.starts + np.diff(upto, prepend=0), rows.row_order)


def _require_labels(name: str, labels: object) -> None:
    texts = isinstance(labels, tuple | list) and all(isinstance(label, str) for label in labels)
    require(texts and bool(labels), name, labels, "a tuple of at least one label, such as ('A',)")


def _require_some(config: _Fractions) -> None:
    if config.train_frac + config.valid_frac <= 0:
        raise ConfigError("train_frac and valid_frac are both 0: the cells that are not held out have no split.")
