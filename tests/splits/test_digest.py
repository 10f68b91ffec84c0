"""The digest of a split depends on which cells are in which split, and on nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert import RandomSplitter, RandomSplitterConfig
from lazypert.screen.concat_groups import concat_groups
from lazypert.screen.rows import Rows
from lazypert.splits.digest import digest_of, iterate_cells
from lazypert.splits.names import SPLITS
from lazypert.splits.split_result import SplitResult
from tests.support.screens import CONTROL, design_cells, make_cells, random_cells

GOLDEN_DIGEST = "cbef355786e17ccc65a86d308174dec6b4317166785e91bc3bcab5096bf33db3"


def split_of(cells, names):
    """A split of cells by row: one of "train", "valid", "test" or None for each."""
    groups = cells.groups
    everything = groups.rows(groups.ids >= -1)
    rows = [everything.keep(np.array([name == wanted for name in names])) for wanted in SPLITS]
    return SplitResult(*rows, groups)


def random_names(n, seed):
    return np.random.default_rng(seed).choice(np.array([*SPLITS, None], dtype=object), n)


@given(st.integers(1, 60), st.integers(0, 1000), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_row_order_batches_and_groups_do_not_matter(n, seed, n_datasets):
    cells = random_cells(n, seed, n_datasets=n_datasets, missing=0.2)
    names = random_names(n, seed)
    order = np.random.default_rng(seed).permutation(n)
    dataset = cells.frame["dataset"].to_numpy()
    other = make_cells(perturbation=[CONTROL] * n, dataset=dataset[order], names=[f"cell{i}" for i in order])
    assert split_of(cells, names) == split_of(other, names[order])


@given(st.integers(2, 40), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_moving_one_cell_changes_it(n, seed):
    cells, names = random_cells(n, seed), random_names(n, seed)
    moved = names.copy()
    moved[seed % n] = next(name for name in (*SPLITS, None) if name != names[seed % n])
    assert split_of(cells, names) != split_of(cells, moved)


def test_swapping_two_cells_changes_it():
    cells = make_cells(perturbation=["A"] * 4, control=None)
    splits = {split_of(cells, names).digest for names in (["train", "test"] * 2, ["test", "train"] * 2)}
    assert len(splits) == 2


def test_datasets_matter_only_where_there_are_several():
    names, splits = ["a", "b", "a", "b"], ["train", "test", "test", "train"]

    def digest(dataset):
        return split_of(make_cells(perturbation=["A"] * 4, dataset=dataset, names=names), splits).digest

    assert digest(["d1"] * 4) == digest(["d2"] * 4)
    assert len({digest(d) for d in (["d1"] * 4, ["d1", "d1", "d2", "d2"], ["d1", "d1", "d3", "d3"])}) == 3


def test_concatenated_screens_have_the_digest_of_one_screen():
    n, half = 200, 80
    dataset = ["d1"] * half + ["d2"] * (n - half)
    whole = make_cells(perturbation=["A"] * n, dataset=dataset, control=None)
    parts = [
        make_cells(perturbation=["A"] * len(r), dataset=[d] * len(r), names=[f"cell{i}" for i in r], control=None)
        for d, r in (("d1", range(half)), ("d2", range(half, n)))
    ]
    united = concat_groups([part.groups for part in parts], [half, n - half])
    rule = RandomSplitter(RandomSplitterConfig(seed=3))
    united_source = type("Source", (), {"groups": united})()
    assert rule.split(whole).digest == rule.split(united_source).digest


def test_chunks_do_not_matter(monkeypatch):
    split = split_of(random_cells(500, 0, n_datasets=2), random_names(500, 0))
    expected = split.digest
    monkeypatch.setattr("lazypert.splits.digest._CELLS_AT_ONCE", 7)
    assert digest_of(split.groups, [split[name] for name in SPLITS]) == expected


def test_iteration_yields_each_cell_with_its_split_and_run():
    cells = random_cells(300, 1, n_datasets=2, missing=0.1)
    names = random_names(300, 1)
    split = split_of(cells, names)
    seen = {}
    for part in iterate_cells(split.groups, [split[name] for name in SPLITS]):
        for number, row, run in zip(*part, strict=True):
            assert cells.groups.rows(np.array([run])).contains(np.flatnonzero(_order(cells) == row)).all()
            seen[int(row)] = SPLITS[number]
    assert seen == {row: name for row, name in enumerate(names) if name is not None}


def _order(cells):
    return np.arange(cells.groups.n_obs) if cells.groups.row_order is None else cells.groups.row_order


def test_an_empty_split_has_a_digest():
    groups = make_cells(perturbation=[], control=None).groups
    assert len(SplitResult(Rows([], []), Rows([], []), Rows([], []), groups).digest) == 64


def test_golden_digest():
    """Saved splits carry their digest, so it must never change."""
    split = RandomSplitter().split(design_cells())
    assert [len(split[name]) for name in SPLITS] == [720, 90, 90]
    assert split.digest == GOLDEN_DIGEST
    assert hash(split) == hash(RandomSplitter().split(design_cells()))


def test_a_split_does_not_equal_other_things():
    assert RandomSplitter().split(design_cells()) != "train"
    with pytest.raises(AttributeError):
        RandomSplitter().split(design_cells()).groups = None
