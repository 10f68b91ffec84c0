"""Whole labels are held out: perturbations, cell types, batches, donors, or several columns together."""

from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert import HeldOutSplitter, HeldOutSplitterConfig
from lazypert.errors import ColumnNotFoundError, ConfigError, LabelNotFoundError
from lazypert.splits.names import SPLITS
from tests.support.screens import CONTROL, design_cells, make_cells, source_of
from tests.support.splits import assert_same_for_all_openings, by_name, cells_of, screens

BY = [
    "perturbation",
    "cell_type",
    "batch",
    "donor",
    ("cell_type", "perturbation"),
    ("donor", "perturbation"),
    ("batch",),
]


def heldout(by, test=None, valid=None, **options):
    return HeldOutSplitter(HeldOutSplitterConfig(by=by, test=test, valid=valid, **options))


def labels_of(screen, by):
    """Label of each cell: a text or a tuple; None where one is missing, or the cell is in no group."""
    columns = [by] if isinstance(by, str) else by
    values = list(zip(*(screen[column] for column in columns), strict=True))
    usable = [a is not None and b is not None for a, b in zip(screen["cell_type"], screen["perturbation"], strict=True)]
    return [v if ok and None not in v else None for v, ok in zip(values, usable, strict=True)]


def reference(screen, by, test, valid):
    """The rule in a few lines: each cell goes where its label goes, and controls train if labels have perturbations."""
    has_perturbation = "perturbation" in by
    expected = {}
    for row, label in enumerate(labels_of(screen, by)):
        is_usable = screen["cell_type"][row] is not None and screen["perturbation"][row] is not None
        if is_usable and has_perturbation and screen["perturbation"][row] == CONTROL:
            expected[screen["names"][row]] = "train"
        elif label is not None:
            expected[screen["names"][row]] = "test" if label in test else "valid" if label in valid else "train"
    return expected


def choosable(screen, by):
    found = {label for label in labels_of(screen, by) if label is not None}
    return sorted(label for label in found if "perturbation" not in by or CONTROL not in label)


def as_given(labels, by):
    return tuple(label[0] if isinstance(by, str) else label for label in labels)


@given(screens(), st.sampled_from(BY), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_named_labels_are_held_out(screen, by, random):
    known = choosable(screen, by)
    if len(known) < 3:
        return
    chosen = random.sample(known, 2)
    splitter = heldout(by, as_given(chosen[:1], by), as_given(chosen[1:], by))
    assert assert_same_for_all_openings(screen, splitter) == reference(screen, by, chosen[:1], chosen[1:])


@given(screens(), st.sampled_from(BY), st.sampled_from([(0.3, None), (0.5, 0.25), (0.34, 0.34)]), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_fractions_are_exact_numbers_of_labels(screen, by, fractions, seed):
    known = choosable(screen, by)
    numbers = [floor(len(known) * (f or 0)) for f in fractions]
    splitter = heldout(by, *fractions, seed=seed)
    if not numbers[0] or (fractions[1] and not numbers[1]) or sum(numbers) >= len(known):
        with pytest.raises(ConfigError):
            splitter.split(cells_of(screen))
        return
    found = assert_same_for_all_openings(screen, splitter)
    labels = dict(zip(screen["names"], labels_of(screen, by), strict=True))
    chosen = {
        name: {labels[cell] for cell, split in found.items() if split == name and labels[cell] in known}
        for name in SPLITS
    }
    assert [len(chosen["test"]), len(chosen["valid"])] == numbers
    assert found == reference(screen, by, chosen["test"], chosen["valid"])


@given(screens(), st.sampled_from(BY), st.integers(2, 4), st.booleans(), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_folds_test_every_label_once(screen, by, n_folds, valid_fold, seed):
    known = choosable(screen, by)
    if len(known) < n_folds or (valid_fold and n_folds < 3):
        return
    labels = dict(zip(screen["names"], labels_of(screen, by), strict=True))
    tested, validated = [], []
    for fold in range(n_folds):
        splitter = heldout(by, n_folds=n_folds, fold=fold, valid_fold=valid_fold, seed=seed)
        found = assert_same_for_all_openings(screen, splitter)
        of_split = {name: {labels[cell] for cell, split in found.items() if split == name} for name in SPLITS}
        assert found == reference(screen, by, of_split["test"], of_split["valid"])
        tested.append(of_split["test"])
        validated.append(of_split["valid"])
    assert sorted(label for fold in tested for label in fold) == known
    assert {len(fold) for fold in tested} <= {len(known) // n_folds, -(-len(known) // n_folds)}
    assert validated == ([*tested[1:], tested[0]] if valid_fold else [set()] * n_folds)


def test_another_label_hardly_moves_the_others():
    names = [f"P{i}" for i in range(200)]
    chosen = []
    for labels in (names, [*names, "AAA"], names[:150]):
        cells = make_cells(perturbation=[CONTROL, *labels])
        chosen.append(set(cells.labels("perturbation", heldout("perturbation", 0.2).split(cells).test_indices)))
    assert len(chosen[0]) == len(chosen[1]) == 40
    assert len(chosen[0] & chosen[1]) >= 39
    assert chosen[0] & set(names[:150]) >= chosen[2] or len(chosen[2] - chosen[0]) <= 8


def test_every_label_is_equally_likely_to_be_held_out():
    cells = make_cells(perturbation=[CONTROL, *(f"P{i}" for i in range(10))])
    hits = np.zeros(11)
    for seed in range(1000):
        hits[np.asarray(heldout("perturbation", 0.2, seed=seed).split(cells).test_indices)] += 1
    assert hits.sum() == 2000
    assert hits[0] == 0
    assert (np.abs(hits[1:] - 200) < 70).all()


def test_controls_of_a_donor_go_with_the_donor():
    cells = make_cells(perturbation=["A", CONTROL] * 4, obs={"donor": list("xxyyzzzz")})
    split = heldout("donor", ("x",), ("y",)).split(cells)
    assert [sorted(split[name]) for name in SPLITS] == [[4, 5, 6, 7], [2, 3], [0, 1]]


def test_the_column_of_an_axis_stands_for_the_axis(tmp_path, reference):
    source = reference.source
    assert heldout("perturbation", ("MYC",)).split(source) == heldout("perturbation", ("MYC",)).split(reference.source)
    renamed = reference.adata.copy()
    renamed.obs = renamed.obs.rename(columns={"perturbation": "gene"})
    other = source_of(renamed, tmp_path, pert_col="gene")
    for by in ("gene", "perturbation"):
        split = heldout(by, ("MYC",)).split(other)
        assert split == heldout("perturbation", ("MYC",)).split(source)
        assert len(split.test_indices) == 150
        assert len(split.train_indices) == 750


def test_numbers_are_labels_however_they_are_stored():
    for plates in ([1, 2, 3, 1], [1.0, 2.0, 3.0, 1.0], ["1", "2", "3", "1"]):
        cells = make_cells(perturbation=["A"] * 4, control=None, obs={"plate": plates})
        assert sorted(heldout("plate", (1,)).split(cells).test_indices) == [0, 3]
    cells = make_cells(perturbation=["A"] * 4, control=None, obs={"plate": [1.0, np.nan, 2.5, 1.0]})
    split = heldout("plate", (2.5,)).split(cells)
    assert by_name(cells, split) == {"cell0": "train", "cell2": "test", "cell3": "train"}


class TestErrors:
    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: heldout("perturbation", ("BRCA",)), LabelNotFoundError, "test: got 'BRCA'.*Did you mean 'BRCA1'"),
            (lambda: heldout("perturbation", ("BRCA",), missing="ignore"), ConfigError, "nothing would be held out"),
            (lambda: heldout("perturbation", ("MYC",), ("BRCA",)), LabelNotFoundError, "valid: got 'BRCA'"),
            (lambda: heldout("perturbation", (CONTROL,)), ConfigError, "marks the controls"),
            (lambda: heldout("cell_type", 0.3), ConfigError, "test: got 0.3, which is no whole label of 3"),
            (lambda: heldout("cell_type", 0.5, 0.3), ConfigError, "valid: got 0.3, which is no whole label"),
            (lambda: heldout("cell_type", ("Neuron",), 0.7), ConfigError, "hold out all of 3 labels"),
            (lambda: heldout("dataset", 0.5), ConfigError, "this screen has no dataset labels"),
            (
                lambda: heldout(("cell_type", "perturbation"), (("neuron", "MYC"),)),
                LabelNotFoundError,
                r"got \"\('neuron', 'MYC'\)\".*\('Neuron', 'MYC'\)",
            ),
            (lambda: heldout("cell_type", n_folds=4, fold=0), ConfigError, "n_folds: got 4, expected at most 3"),
        ],
    )
    def test_a_rule_that_cannot_be_applied_is_refused(self, make, error, message):
        with pytest.raises(error, match=message):
            make().split(design_cells())

    def test_an_unknown_column_is_refused(self, reference):
        with pytest.raises(ColumnNotFoundError, match="donor"):
            heldout("donor", 0.5).split(reference.source)

    def test_a_column_without_values_is_refused(self):
        cells = make_cells(perturbation=["A", "B"], control=None, obs={"donor": [None, None]})
        with pytest.raises(ConfigError, match="no cell has a label there"):
            heldout("donor", 0.5).split(cells)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"by": "donor"}, "test: got None"),
            ({"by": (), "test": 0.1}, "by: got"),
            ({"by": None, "test": 0.1}, "by: got None"),
            ({"by": ("a", "a"), "test": 0.1}, "each column once"),
            ({"by": "donor", "test": {"x"}}, "test: got {'x'}, expected labels, such as"),
            ({"by": "donor", "test": ()}, r"test: got \(\)"),
            ({"by": "donor", "test": 0}, "test: got 0"),
            ({"by": ("a", "b"), "test": ("x", "y")}, r"expected labels, such as \(\('T cell', 'A'\),\)"),
            ({"by": "donor", "test": ("x",), "valid": ("x", "y")}, "not in test, unlike"),
            ({"by": "donor", "test": 0.6, "valid": 0.6}, r"test \+ valid"),
            ({"by": "donor", "n_folds": 3, "fold": 0, "test": 0.5}, "test: got 0.5, expected None with n_folds"),
            ({"by": "donor", "n_folds": 3}, "fold: got None"),
            ({"by": "donor", "n_folds": 3, "fold": 3}, "fold: got 3"),
            ({"by": "donor", "n_folds": 2, "fold": 0}, "n_folds: got 2"),
            ({"by": "donor", "fold": 0, "test": 0.5}, "fold: got 0, expected None without n_folds"),
            ({"by": "donor", "test": 0.5, "missing": "warn"}, "missing: got 'warn'"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_options_are_checked_on_construction(self, options, message):
        with pytest.raises(ConfigError, match=message):
            HeldOutSplitterConfig(**options)
