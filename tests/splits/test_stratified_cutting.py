"""Groups are divided evenly within batches and other columns, too."""

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert import FewShotSplitter, FewShotSplitterConfig, RandomSplitter, RandomSplitterConfig
from lazypert.errors import ConfigError
from lazypert.splits.names import SPLITS
from tests.support.screens import CONTROL, design_cells, make_cells, source_of
from tests.support.splits import assert_same_for_all_openings, screens

FRACTIONS = [(0.8, 0.1), (0.5, 0.25), (1 / 3, 1 / 3)]


def stratified(*columns, **options):
    return RandomSplitter(RandomSplitterConfig(stratify_by=columns, **options))


@given(
    screens(),
    st.sampled_from([("batch",), ("donor",), ("batch", "donor")]),
    st.sampled_from(FRACTIONS),
    st.integers(0, 9),
)
@settings(max_examples=80, deadline=None)
def test_every_stratum_and_group_gets_its_share(screen, columns, fractions, seed):
    train, valid = fractions
    splitter = stratified(*columns, train_frac=train, valid_frac=valid, seed=seed)
    found = assert_same_for_all_openings(screen, splitter)
    frame = pd.DataFrame(screen).fillna(dict.fromkeys(columns, "missing"))
    frame = frame.dropna(subset=["cell_type", "perturbation"])
    assert sorted(found) == sorted(frame["names"])
    frame["split"] = frame["names"].map(found)
    n, before = len(frame), 0
    totals = [floor(n * Fraction(str(train))), floor(n * (Fraction(str(train)) + Fraction(str(valid)))), n]
    for name, total in zip(SPLITS, totals, strict=True):
        assert (frame["split"] == name).sum() == total - before
        before = total
    for keys in (["cell_type", "perturbation"], ["cell_type", "perturbation", *columns]):
        for _, cells in frame.groupby(keys):
            share = Fraction(totals[0] * len(cells), n)
            # Two cuts are rounded: within the cells before the second one, and of these the first.
            assert floor(share) - 1 <= (cells["split"] == "train").sum() <= ceil(share) + 1


def test_batches_of_each_group_are_divided_exactly():
    split = stratified("batch").split(design_cells())
    cells = design_cells()
    frame = cells.frame.assign(split=None)
    for name in SPLITS:
        frame.loc[np.asarray(split[name]), "split"] = name
    counts = frame.groupby(["cell_type", "perturbation", "batch"])
    n_valid = counts["split"].apply(lambda s: (s == "valid").sum()) / counts.size()
    assert (len(split.train_indices), len(split.valid_indices)) == (720, 90)
    assert ((n_valid * counts.size() - counts.size() * 0.1).abs() <= 1).all()
    plain = RandomSplitter().split(cells)
    assert plain != split


def test_controls_and_held_out_perturbations_stay_whole():
    config = FewShotSplitterConfig(held_out_perturbations=("BRCA1", "TP53"), stratify_by=("batch",))
    cells = design_cells()
    split = FewShotSplitter(config).split(cells)
    assert [len(split[name]) for name in SPLITS] == [550, 50, 300]
    assert set(cells.labels("perturbation", split.test_indices)) == {"BRCA1", "TP53"}
    assert list(cells.labels("perturbation", split.train_indices)).count(CONTROL) == 150


def test_every_cell_is_equally_likely_to_validate():
    cells = make_cells(perturbation=["A"] * 30, control=None, batch=["b1"] * 7 + ["b2"] * 23)
    hits = np.zeros(30)
    for seed in range(800):
        hits[np.asarray(stratified("batch", seed=seed).split(cells).valid_indices)] += 1
    assert hits.sum() == 2400
    assert (np.abs(hits - 80) < 6 * np.sqrt(80 * 0.9)).all()


def test_a_screen_without_batches_cannot_be_stratified_by_them(tmp_path, reference):
    source = source_of(reference.adata.copy(), tmp_path, batch_col=None)
    with pytest.raises(ConfigError, match="stratify_by: got 'batch'"):
        stratified("batch").split(source)
