"""Fractions of labels are exact, and depend on the text of labels only."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert.errors import ConfigError
from lazypert.splits.config import RandomSplitterConfig
from lazypert.splits.label_choice import TEST, TRAIN, VALID, choose_fold, choose_labels
from lazypert.splits.label_keys import group_keys, rank_labels
from tests.support.screens import make_cells

GOLDEN_RANKS = [0, 2, 1, 3, 4]


def rule(seed=0):
    return RandomSplitterConfig(seed=seed)


@given(st.integers(2, 300), st.sampled_from([0.1, 0.29, 0.4, 1 / 3]), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_fractions_are_floored(n, fraction, seed):
    labels = [(f"L{i:03}",) for i in range(n)]
    expected = floor(n * Fraction(str(fraction)))
    if expected == 0:
        with pytest.raises(ConfigError, match="no whole label"):
            choose_labels(labels, fraction, None, rule(seed), "a label")
        return
    split = choose_labels(labels, fraction, fraction, rule(seed), "a label")
    assert np.bincount(split, minlength=3)[[VALID, TEST]].tolist() == [expected, expected]
    assert (split[split != TEST] != TEST).all()


def test_a_fraction_leaves_out_labels_that_are_named():
    labels = [(f"L{i}",) for i in range(10)]
    for seed in range(50):
        split = choose_labels(labels, ("L3", "L4"), 0.5, rule(seed), "a label")
        assert split[[3, 4]].tolist() == [TEST, TEST]
        assert (split == VALID).sum() == 5
        split = choose_labels(labels, 0.5, ("L3", "L4"), rule(seed), "a label")
        assert split[[3, 4]].tolist() == [VALID, VALID]
        assert (split == TEST).sum() == 5


def test_folds_follow_one_another():
    labels = [(f"L{i}",) for i in range(11)]
    folds = [choose_fold(labels, rule(), 4, fold, valid_fold=True) for fold in range(4)]
    for fold in range(4):
        assert ((folds[fold] == VALID) == (folds[(fold + 1) % 4] == TEST)).all()
    assert (np.stack(folds) == TEST).sum(axis=0).tolist() == [1] * 11
    assert sorted((split == TEST).sum() for split in folds) == [2, 3, 3, 3]
    assert (folds[0] == TRAIN).sum() == 11 - (folds[0] == TEST).sum() - (folds[1] == TEST).sum()


def test_ranks_depend_on_the_text_only():
    """Which labels are held out must never change for a given seed."""
    labels = [(label,) for label in "ABCDE"]
    assert rank_labels(labels, 42).tolist() == GOLDEN_RANKS
    more = [("A",), ("AB",), *labels[1:]]
    kept = [more[i] for i in rank_labels(more, 42) if more[i] != ("AB",)]
    assert kept == [labels[i] for i in GOLDEN_RANKS]
    assert rank_labels([("A", "B"), ("AB", "")], 0).tolist() != []


def test_keys_of_groups_do_not_depend_on_other_labels():
    few = make_cells(perturbation=["B", "C"], cell_type=["T", "T"], control=None).groups
    many = make_cells(perturbation=["A", "B", "C"], cell_type=["S", "T", "T"], control=None).groups
    assert group_keys(few).tolist() == group_keys(many).tolist()[1:]
    assert len(set(group_keys(many).tolist())) == 3
