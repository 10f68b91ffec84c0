"""The run table equals a plain groupby of the cells, for NumPy and Dask codes alike."""

from itertools import pairwise

import dask.array as da
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert.errors import LabelNotFoundError
from lazypert.screen.groups import Groups
from lazypert.screen.roles import AXES, Roles
from tests.support.screens import CONTROL, design_cells, make_cells, random_cells

ROLES = Roles(pert_col="p", cell_type_col="c", batch_col="b", control_pert="p0")


@st.composite
def coded(draw):
    """Codes of up to 40 cells on each axis (-1 for missing, None for an absent column), and their labels."""
    n = draw(st.integers(0, 40))
    codes, labels = [], []
    for axis in AXES:
        size = draw(st.integers(1, 3))
        present = axis == "perturbation" or draw(st.booleans())
        code = draw(st.lists(st.integers(-1, size - 1), min_size=n, max_size=n)) if present else None
        codes.append(None if code is None else np.array(code, dtype=draw(st.sampled_from(["i1", "i4", "i8"]))))
        labels.append(np.array([f"{axis[0]}{i}" for i in range(size)]))
    if draw(st.booleans()):  # sorted by key: the order of a grouped store
        keys = [np.zeros(n) if c is None else np.where(c < 0, 99, c) for c in codes]
        by_key = np.lexsort(keys[::-1])
        codes = [None if c is None else c[by_key] for c in codes]
    return codes, labels, n


def by_hand(codes, n, rows=None):
    """Sorted list of (key, rows) from pandas; a missing label sorts last."""
    frame = pd.DataFrame({axis: np.zeros(n, int) if c is None else c for axis, c in zip(AXES, codes, strict=True)})
    frame["row"] = np.arange(n) if rows is None else rows
    groups = [(tuple(int(k) for k in key), cells["row"].tolist()) for key, cells in frame.groupby(list(AXES))]
    return sorted(groups, key=lambda item: [99 if k < 0 else k for k in item[0]])


def listed(groups):
    """The same list from a run table."""
    keys = zip(*(groups.codes[axis].tolist() for axis in AXES), strict=True)
    return [(key, groups.rows(np.array([run]))[:].tolist()) for run, key in enumerate(keys)]


@given(coded(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_from_codes_equals_a_groupby(case, subset):
    codes, labels, n = case
    rows = np.random.default_rng(n).permutation(n + 10)[:n] if subset else None
    groups = Groups.from_codes(codes, labels, ROLES, n, rows=rows)
    expected = by_hand(codes, n, rows)
    assert listed(groups) == expected
    assert groups.n_obs == n
    flat = [row for _, members in expected for row in members]
    if rows is None:
        assert (groups.row_order is None) == (flat == list(range(n)))
    # Runs cover all positions without overlap.
    assert groups.start.tolist() == [0, *groups.stop.tolist()][: len(groups.start)]
    assert [len(members) for _, members in expected] == groups.sizes.tolist()


@given(coded(), st.data())
@settings(max_examples=25, deadline=None)
def test_chunks_of_dask_codes_do_not_matter(case, data):
    codes, labels, n = case
    if not n:
        return
    cuts = sorted(data.draw(st.sets(st.integers(1, n), max_size=4)) | {0, n})
    chunks = tuple(b - a for a, b in pairwise(cuts))
    lazy = [None if c is None else da.from_array(c, chunks=(chunks,)) for c in codes]
    groups = Groups.from_codes(lazy, labels, ROLES, n)
    expected = Groups.from_codes(codes, labels, ROLES, n)
    assert listed(groups) == listed(expected)
    assert (groups.row_order is None) == (expected.row_order is None)


def test_differently_chunked_columns_are_aligned():
    cells = random_cells(100, 0, missing=0.1)
    expected = cells.groups
    codes = [expected.expand(expected.codes[axis]) for axis in AXES]
    lazy = [da.from_array(c, chunks=size) for c, size in zip(codes, (7, 100, 33, 50), strict=True)]
    groups = Groups.from_codes(lazy, [expected.labels[axis] for axis in AXES], expected.roles, 100)
    assert listed(groups) == listed(expected)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8"])
def test_codes_of_narrow_dtype_may_have_many_labels(dtype):
    codes = np.arange(128, dtype=dtype)
    groups = Groups.from_codes([None, codes, None, None], [[], codes.astype(str), [], []], ROLES, 128)
    assert groups.codes["perturbation"].tolist() == list(range(128))
    assert groups.row_order is None


@given(coded())
@settings(max_examples=30, deadline=None)
def test_ids_and_batch_ids_identify_groups(case):
    codes, labels, n = case
    groups = Groups.from_codes(codes, labels, ROLES, n)
    keys = [key for key, _ in listed(groups)]
    n_perts = len(labels[1])
    assert groups.ids.tolist() == [-1 if c < 0 or p < 0 else c * n_perts + p for c, p, _, _ in keys]
    labelled = [(key, id_) for key, id_ in zip(keys, groups.batch_ids.tolist(), strict=True) if min(key[:2]) >= 0]
    assert len({id_ for _, id_ in labelled}) == len(labelled)
    assert all(id_ >= 0 for _, id_ in labelled)
    assert (groups.batch_ids[groups.ids < 0] == -1).all()
    assert len(groups) == len({key[:2] for key, _ in labelled})
    assert groups.n_unlabelled == sum(len(rows) for key, rows in listed(groups) if min(key[:2]) < 0)


@given(coded())
@settings(max_examples=30, deadline=None)
def test_expand_and_run_of_restore_the_cells(case):
    codes, labels, n = case
    groups = Groups.from_codes(codes, labels, ROLES, n)
    for axis, code in zip(AXES, codes, strict=True):
        assert groups.expand(groups.codes[axis]).tolist() == (np.zeros(n, int) if code is None else code).tolist()
    position_run = groups.run_of(np.arange(n))
    assert [position_run[a:b].tolist() for a, b in zip(groups.start, groups.stop, strict=True)] == [
        [run] * int(size) for run, size in enumerate(groups.sizes)
    ]


def test_expand_fills_rows_outside_the_groups():
    rows = np.array([5, 2, 3])
    groups = Groups.from_codes([None, np.array([1, 0, 1]), None, None], [[], ["a", "b"], [], []], ROLES, 3, rows=rows)
    assert groups.expand(groups.codes["perturbation"], 7).tolist() == [-1, -1, 0, 1, -1, 1, -1]
    assert groups.expand(groups.codes["perturbation"] == 1, 7).tolist() == [0, 0, 0, 1, 0, 1, 0]


def test_table_equals_a_pandas_groupby():
    cells = random_cells(300, 1, missing=0.05)
    frame = cells.frame.dropna(subset=["cell_type", "perturbation"])
    grouped = frame.groupby(["cell_type", "perturbation"])
    table = cells.groups.table().set_index(["cell_type", "perturbation"])
    assert table.index.tolist() == grouped.size().index.tolist()
    assert table["n_cells"].tolist() == grouped.size().tolist()
    assert table["n_batches"].tolist() == grouped["batch"].nunique(dropna=False).tolist()
    assert table["is_control"].tolist() == [pert == CONTROL for _, pert in table.index]


class TestConcat:
    def screens(self):
        first = make_cells(perturbation=["B", CONTROL, "A", "B"], cell_type=["T", "T", "U", None])
        second = make_cells(perturbation=["C", "C", CONTROL], cell_type=["S", "T", "T"])  # already sorted
        third = random_cells(40, 3, missing=0.1)
        return [first, second, third]

    def test_labels_are_united_and_rows_are_consecutive(self):
        screens = self.screens()
        united = Groups.concat([s.groups for s in screens], [4, 3, 40])
        frame = pd.concat([s.frame for s in screens], ignore_index=True)
        assert united.n_obs == 47
        for axis in AXES:
            labels = united.labels[axis]
            assert labels.tolist() == sorted({label for label in frame[axis] if label is not None})
            codes = united.expand(united.codes[axis])
            assert [None if c < 0 else labels[c] for c in codes] == frame[axis].tolist()
        seen = np.concatenate([united.rows(np.array([run]))[:] for run in range(len(united.start))])
        assert sorted(seen.tolist()) == list(range(47))

    def test_runs_are_sorted_by_label(self):
        united = Groups.concat([s.groups for s in self.screens()], [4, 3, 40])
        keys = [[99 if k < 0 else k for k in key] for key, _ in listed(united)]
        assert keys == sorted(keys)
        positions = np.arange(47)
        run = united.run_of(positions)
        assert ((united.start[run] <= positions) & (positions < united.stop[run])).all()

    def test_a_screen_may_cover_only_some_rows_of_its_store(self):
        roles, labels = ROLES, [[], ["p0", "p1"], [], []]
        partial = Groups.from_codes([None, np.array([1, 0])] + [None] * 2, labels, roles, 2, rows=np.array([3, 1]))
        complete = Groups.from_codes([None, np.array([0, 1, 1])] + [None] * 2, labels, roles, 3)
        united = Groups.concat([partial, complete], [5, 3])
        rows_of = {}
        for (_, pert, _, _), rows in listed(united):
            rows_of[pert] = sorted(rows_of.get(pert, []) + rows)
        assert rows_of == {0: [1, 5], 1: [3, 6, 7]}

    def test_is_shuffled_only_if_all_screens_are(self):
        one, other = (s.groups for s in self.screens()[:2])
        assert not Groups.concat([one.shuffled(0), other], [4, 3]).is_shuffled
        assert Groups.concat([one.shuffled(0), other.shuffled(0)], [4, 3]).is_shuffled


class TestShuffled:
    def test_permutes_inside_runs(self):
        groups = random_cells(500, 2).groups
        shuffled = groups.shuffled(1)
        assert shuffled.is_shuffled
        assert not groups.is_shuffled
        before, after = listed(groups), listed(shuffled)
        assert [key for key, _ in before] == [key for key, _ in after]
        assert [sorted(rows) for _, rows in after] == [rows for _, rows in before]
        assert sum(a != b for a, b in zip(before, after, strict=True)) > len(before) // 2

    def test_depends_on_the_seed(self):
        groups = random_cells(200, 2).groups
        assert listed(groups.shuffled(1)) == listed(groups.shuffled(1))
        assert listed(groups.shuffled(1)) != listed(groups.shuffled(2))

    def test_every_position_in_the_run_is_equally_likely(self):
        groups = make_cells(perturbation=["A"] * 5, control="A").groups
        positions = np.array([np.argsort(groups.shuffled(seed).row_order) for seed in range(2000)])
        counts = np.array([np.bincount(column, minlength=5) for column in positions.T])
        assert (np.abs(counts - 400) < 5 * np.sqrt(400 * 0.8)).all()


class TestLabels:
    def test_unknown_labels_list_near_matches(self):
        groups = random_cells(50, 0).groups
        with pytest.raises(
            LabelNotFoundError,
            match=r"perturbation: got 'non_targeting', expected a label.*'perturbation'.*Did you mean 'non-targeting'",
        ):
            groups.code_of("perturbation", "non_targeting")

    def test_an_unknown_control_label_is_an_error(self):
        with pytest.raises(LabelNotFoundError, match="'nope'"):
            _ = make_cells(perturbation=["A"], control="nope").groups.is_control

    def test_without_a_control_label_no_cell_is_a_control(self):
        groups = make_cells(perturbation=["A", "B"], control=None).groups
        assert groups.control_code == -1
        assert not groups.is_control.any()


def test_repr_is_one_line():
    expected = "Groups(900 cells in 18 groups and 36 runs: 3 cell types, 6 perturbations, 1 dataset, 2 batches)"
    assert repr(design_cells().groups) == expected
