"""Choosing which labels are held out: those that are named, a fraction of them, or a fold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lazypert.errors import ConfigError
from lazypert.splits.filters import holds_nothing_out, require_labels
from lazypert.splits.fractions import share
from lazypert.splits.label_keys import rank_labels
from lazypert.splits.names import SPLITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.splits.config import HeldOut, SplitRule

TRAIN, VALID, TEST = range(len(SPLITS))


def choose_labels(
    labels: Sequence[tuple[str, ...]],
    test: HeldOut | None,
    valid: HeldOut | None,
    rule: SplitRule,
    expected: str,
) -> NDArray[np.int8]:
    """(n_labels,) number of the split of each label.

    Of ``n`` labels, a fraction ``f`` is ``floor(n * f)`` labels. Test takes the first in the order of a hash of label
    and seed, and validation the next ones, leaving out those that are named for the other split.

    Parameters
    ----------
    labels
        Sorted labels.
    test, valid
        Labels, a fraction, or None.
    expected
        What a label is, for errors: ``"a label of obs column 'donor'"``.

    Raises
    ------
    LabelNotFoundError
        If a named label does not occur, unless ``rule.missing`` is ``"ignore"``.
    ConfigError
        If nothing would be held out, or no label were left to train on.
    """
    split = np.full(len(labels), TRAIN, dtype=np.int8)
    given = {"test": (test, TEST), "valid": (valid, VALID)}
    for option, (value, number) in given.items():
        if isinstance(value, tuple):
            split[_find(labels, value, option, rule, expected)] = number
    order = rank_labels(labels, rule.seed)
    for option, (value, number) in given.items():
        if isinstance(value, float):
            n_chosen = share(len(labels), value)
            if not n_chosen:
                raise holds_nothing_out(option, value, f"which is no whole label of {len(labels)}")
            free = order[split[order] == TRAIN]
            split[free[:n_chosen]] = number
    if not (split == TRAIN).any():
        raise ConfigError(
            f"test, valid: got {test!r} and {valid!r}, which hold out all of {len(labels)} labels; expected some to "
            "be left for training."
        )
    return split


def choose_fold(
    labels: Sequence[tuple[str, ...]], rule: SplitRule, n_folds: int, fold: int, *, valid_fold: bool
) -> NDArray[np.int8]:
    """(n_labels,) number of the split of each label, where a fold is tested.

    In the order of a hash of label and seed, fold ``k`` of ``n`` labels has those from ``floor(n * k / n_folds)`` to
    ``floor(n * (k + 1) / n_folds)``.

    Raises
    ------
    ConfigError
        If there are fewer labels than folds.
    """
    n = len(labels)
    if n < n_folds:
        raise ConfigError(f"n_folds: got {n_folds}, expected at most {n}, the number of labels to divide among folds.")
    split = np.full(n, TRAIN, dtype=np.int8)
    order = rank_labels(labels, rule.seed)
    for number, chosen in ((VALID, (fold + 1) % n_folds if valid_fold else None), (TEST, fold)):
        if chosen is not None:
            split[order[n * chosen // n_folds : n * (chosen + 1) // n_folds]] = number
    return split


def _find(
    labels: Sequence[tuple[str, ...]],
    wanted: Sequence[str | tuple[str, ...]],
    option: str,
    rule: SplitRule,
    expected: str,
) -> list[int]:
    """Numbers of the labels that are named."""
    number_of = {_name(label): number for number, label in enumerate(labels)}
    names = [_name((label,) if isinstance(label, str) else label) for label in wanted]
    found = require_labels(names, number_of, option, expected, rule)
    if not found:
        raise holds_nothing_out(option, wanted, "none of which occurs")
    return [number_of[name] for name in found]


def _name(label: tuple[str, ...]) -> str:
    return label[0] if len(label) == 1 else repr(label)
