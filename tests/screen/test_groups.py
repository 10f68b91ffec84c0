"""The run table equals a plain grouping of the cells, whatever holds the codes."""

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
from tests.support.screens import CONTROL, make_cells, random_cells

ROLES = Roles(pert_col="p", cell_type_col="c", batch_col="b", control_pert="p0")


@st.composite
def coded(draw):
    """Codes of up to 40 cells on each axis (-1 missing; None for an absent column), and their labels."""
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
        turn = np.lexsort(keys[::-1])
        codes = [None if c is None else c[turn] for c in codes]
    return codes, labels, n


def by_hand(codes, n, rows=None):
    """Sorted list of (key, rows): a missing label sorts last."""
    frame = pd.DataFrame({axis: np.zeros(n, int) if c is None else c for axis, c in zip(AXES, codes, strict=True)})
    frame["row"] = np.arange(n) if rows is None else rows
    found = [(tuple(int(k) for k in key), part["row"].tolist()) for key, part in frame.groupby(list(AXES))]
    return sorted(found, key=lambda item: [99 if k < 0 else k for k in item[0]])


def listed(groups):
    """The same list, from a run table."""
    keys = zip(*(groups.codes[axis].tolist() for axis in AXES), strict=True)
    return [(key, groups.rows(np.array([run]))[:].tolist()) for run, key in enumerate(keys)]


@given(coded(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_from_codes_is_a_groupby(case, subset):
    codes, labels, n = case
    rows = np.random.default_rng(n).permutation(n + 10)[:n] if subset else None
    groups = Groups.from_codes(codes, labels, ROLES, n, rows=rows)
    expected = by_hand(codes, n, rows)
    assert listed(groups) == expected
    assert groups.n_obs == n
    flat = [row for _, members in expected for row in members]
    if rows is None:
        assert (groups.row_order is None) == (flat == list(range(n)))
    # Runs tile the positions.
    assert groups.start.tolist() == [0, *groups.stop.tolist()][: len(groups.start)]
    assert [len(members) for _, members in expected] == groups.sizes.tolist()


@given(coded(), st.data())
@settings(max_examples=25, deadline=None)
def test_dask_codes_of_any_chunks_give_the_same(case, data):
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
    whole = cells.groups
    codes = [whole.expand(whole.codes[axis]) for axis in AXES]
    lazy = [da.from_array(c, chunks=size) for c, size in zip(codes, (7, 100, 33, 50), strict=True)]
    again = Groups.from_codes(lazy, [whole.labels[axis] for axis in AXES], whole.roles, 100)
    assert listed(again) == listed(whole)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8"])
def test_narrow_codes_of_many_labels(dtype):
    codes = np.arange(128, dtype=dtype)
    groups = Groups.from_codes([None, codes, None, None], [[], codes.astype(str), [], []], ROLES, 128)
    assert groups.codes["perturbation"].tolist() == list(range(128))
    assert groups.row_order is None


@given(coded())
@settings(max_examples=30, deadline=None)
def test_ids_and_batch_ids_number_groups(case):
    codes, labels, n = case
    groups = Groups.from_codes(codes, labels, ROLES, n)
    keys = [key for key, _ in listed(groups)]
    n_perts = len(labels[1])
    assert groups.ids.tolist() == [-1 if c < 0 or p < 0 else c * n_perts + p for c, p, _, _ in keys]
    labelled = [(key, number) for key, number in zip(keys, groups.batch_ids.tolist(), strict=True) if min(key[:2]) >= 0]
    assert len({number for _, number in labelled}) == len(labelled)
    assert all(number >= 0 for _, number in labelled)
    assert (groups.batch_ids[groups.ids < 0] == -1).all()
    assert len(groups) == len({key[:2] for key, _ in labelled})
    assert groups.n_unlabelled == sum(len(rows) for key, rows in listed(groups) if min(key[:2]) < 0)


@given(coded())
@settings(max_examples=30, deadline=None)
def test_expand_and_run_of_go_back_to_the_cells(case):
    codes, labels, n = case
    groups = Groups.from_codes(codes, labels, ROLES, n)
    for axis, code in zip(AXES, codes, strict=True):
        assert groups.expand(groups.codes[axis]).tolist() == (np.zeros(n, int) if code is None else code).tolist()
    position_run = groups.run_of(np.arange(n))
    assert [position_run[a:b].tolist() for a, b in zip(groups.start, groups.stop, strict=True)] == [
        [run] * int(size) for run, size in enumerate(groups.sizes)
    ]


def test_expand_fills_rows_outside_a_selection():
    rows = np.array([5, 2, 3])
    groups = Groups.from_codes([None, np.array([1, 0, 1]), None, None], [[], ["a", "b"], [], []], ROLES, 3, rows=rows)
    assert groups.expand(groups.codes["perturbation"], 7).tolist() == [-1, -1, 0, 1, -1, 1, -1]
    assert groups.expand(groups.codes["perturbation"] == 1, 7).tolist() == [0, 0, 0, 1, 0, 1, 0]


def test_table_is_what_pandas_counts():
    cells = random_cells(300, 1, missing=0.05)
    frame = cells.frame.dropna(subset=["cell_type", "perturbation"])
    grouped = frame.groupby(["cell_type", "perturbation"])
    table = cells.groups.table().set_index(["cell_type", "perturbation"])
    assert table.index.tolist() == grouped.size().index.tolist()
    assert table["n_cells"].tolist() == grouped.size().tolist()
    assert table["n_batches"].tolist() == grouped["batch"].nunique(dropna=False).tolist()
    assert table["is_control"].tolist() == [pert == CONTROL for _, pert in table.index]


class TestConcat:
    def parts(self):
        first = make_cells(perturbation=["B", CONTROL, "A", "B"], cell_type=["T", "T", "U", None])
        second = make_cells(perturbation=["C", "C", CONTROL], cell_type=["S", "T", "T"])  # in order already
        third = random_cells(40, 3, missing=0.1)
        return [first, second, third]

    def test_labels_are_united_and_rows_follow(self):
        parts = self.parts()
        united = Groups.concat([p.groups for p in parts], [4, 3, 40])
        frame = pd.concat([p.frame for p in parts], ignore_index=True)
        assert united.n_obs == 47
        for axis in AXES:
            labels = united.labels[axis]
            assert labels.tolist() == sorted({label for label in frame[axis] if label is not None})
            codes = united.expand(united.codes[axis])
            assert [None if c < 0 else labels[c] for c in codes] == frame[axis].tolist()
        seen = np.concatenate([united.rows(np.array([run]))[:] for run in range(len(united.start))])
        assert sorted(seen.tolist()) == list(range(47))

    def test_runs_are_sorted_by_label(self):
        united = Groups.concat([p.groups for p in self.parts()], [4, 3, 40])
        keys = [[99 if k < 0 else k for k in key] for key, _ in listed(united)]
        assert keys == sorted(keys)
        positions = np.arange(47)
        run = united.run_of(positions)
        assert ((united.start[run] <= positions) & (positions < united.stop[run])).all()

    def test_a_part_may_cover_only_some_of_its_rows(self):
        roles, labels = ROLES, [[], ["p0", "p1"], [], []]
        some = Groups.from_codes([None, np.array([1, 0])] + [None] * 2, labels, roles, 2, rows=np.array([3, 1]))
        whole = Groups.from_codes([None, np.array([0, 1, 1])] + [None] * 2, labels, roles, 3)
        united = Groups.concat([some, whole], [5, 3])
        found = {}
        for (_, pert, _, _), rows in listed(united):
            found[pert] = sorted(found.get(pert, []) + rows)
        assert found == {0: [1, 5], 1: [3, 6, 7]}

    def test_shuffled_only_when_all_parts_are(self):
        one, other = (p.groups for p in self.parts()[:2])
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

    def test_the_seed_decides(self):
        groups = random_cells(200, 2).groups
        assert listed(groups.shuffled(1)) == listed(groups.shuffled(1))
        assert listed(groups.shuffled(1)) != listed(groups.shuffled(2))

    def test_a_cell_may_go_anywhere_in_its_run(self):
        groups = make_cells(perturbation=["A"] * 5, control="A").groups
        places = np.array([np.argsort(groups.shuffled(seed).row_order) for seed in range(2000)])
        counts = np.array([np.bincount(column, minlength=5) for column in places.T])
        assert (np.abs(counts - 400) < 5 * np.sqrt(400 * 0.8)).all()


class TestLabels:
    def test_unknown_labels_list_near_matches(self):
        groups = random_cells(50, 0).groups
        with pytest.raises(
            LabelNotFoundError,
            match=r"'non_targeting' is not a perturbation.*'perturbation'.*Did you mean 'non-targeting'",
        ):
            groups.code_of("perturbation", "non_targeting")

    def test_an_unknown_control_label_is_an_error(self):
        with pytest.raises(LabelNotFoundError, match="'nope'"):
            _ = make_cells(perturbation=["A"], control="nope").groups.is_control

    def test_without_a_control_label_no_cell_is_one(self):
        groups = make_cells(perturbation=["A", "B"], control=None).groups
        assert groups.control_code == -1
        assert not groups.is_control.any()
