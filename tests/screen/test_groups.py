"""The run table equals a plain groupby of the cells, and the cells of a run are in the order of their hashes."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert.errors import LabelNotFoundError
from lazypert.screen.cell_order import name_hashes
from lazypert.screen.concat_groups import concat_groups
from lazypert.screen.groups import Groups
from lazypert.screen.roles import AXES, RUN_AXES, Roles
from tests.support.screens import CONTROL, design_cells, make_cells, random_cells

ROLES = Roles(pert_col="p", cell_type_col="c", batch_col="b", control_pert="p0")


def hashes(n):
    return name_hashes([f"cell{i}" for i in range(n)])


def only_perturbations(codes, labels, **options):
    """Groups of cells that have perturbations only."""
    by_axis = dict.fromkeys(AXES) | {"perturbation": np.asarray(codes)}
    return Groups.from_codes(by_axis, {axis: [] for axis in AXES} | {"perturbation": labels}, ROLES, **options)


@st.composite
def coded(draw):
    """Codes of up to 40 cells on each axis (-1 for missing, None for an absent column), and their labels."""
    n = draw(st.integers(0, 40))
    codes, labels = {}, {}
    for axis in AXES:
        size = draw(st.integers(1, 3))
        present = axis == "perturbation" or draw(st.booleans())
        code = draw(st.lists(st.integers(-1, size - 1), min_size=n, max_size=n)) if present else None
        codes[axis] = None if code is None else np.array(code, dtype=draw(st.sampled_from(["i1", "i4", "i8"])))
        labels[axis] = np.array([f"{axis[0]}{i}" for i in range(size)])
    return codes, labels, n


def by_hand(codes, n, rows=None):
    """Sorted list of (key, rows) from pandas; a missing label sorts last, and cells are sorted by hash."""
    frame = pd.DataFrame({axis: np.zeros(n, int) if codes[axis] is None else codes[axis] for axis in RUN_AXES})
    frame["row"], frame["hash"] = np.arange(n) if rows is None else rows, hashes(n)
    grouped = frame.sort_values("hash").groupby(list(RUN_AXES))
    groups = [(tuple(int(k) for k in key), cells["row"].tolist()) for key, cells in grouped]
    return sorted(groups, key=lambda item: [99 if k < 0 else k for k in item[0]])


def listed(groups):
    """The same list from a run table."""
    keys = zip(*(groups.codes[axis].tolist() for axis in RUN_AXES), strict=True)
    return [(key, groups.rows(np.array([run]))[:].tolist()) for run, key in enumerate(keys)]


@given(coded(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_from_codes_equals_a_groupby(case, subset):
    codes, labels, n = case
    rows = np.random.default_rng(n).permutation(n + 10)[:n] if subset else None
    cells = random_cells(n + 10, 0).groups.cells if subset else None
    groups = Groups.from_codes(codes, labels, ROLES, hashes(n), rows=rows, cells=cells)
    expected = by_hand(codes, n, rows)
    assert listed(groups) == expected
    assert groups.n_obs == n
    flat = [row for _, members in expected for row in members]
    assert (groups.row_order is None) == (flat == list(range(n)))
    # Runs cover all positions without overlap.
    assert groups.start.tolist() == [0, *groups.stop.tolist()][: len(groups.start)]
    assert [len(members) for _, members in expected] == groups.sizes.tolist()


@given(coded())
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_file_does_not_matter(case):
    codes, labels, n = case
    order = np.random.default_rng(n).permutation(n)
    shuffled = {axis: None if code is None else code[order] for axis, code in codes.items()}
    first = Groups.from_codes(codes, labels, ROLES, hashes(n))
    second = Groups.from_codes(shuffled, labels, ROLES, hashes(n)[order])
    assert [(key, [order[row] for row in rows]) for key, rows in listed(second)] == listed(first)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8"])
def test_codes_of_narrow_dtype_may_have_many_labels(dtype):
    codes = np.arange(128, dtype=dtype)
    groups = only_perturbations(codes, codes.astype(str), hashes=hashes(128))
    assert groups.codes["perturbation"].tolist() == list(range(128))
    assert groups.row_order is None


@given(coded())
@settings(max_examples=30, deadline=None)
def test_ids_identify_groups(case):
    codes, labels, n = case
    groups = Groups.from_codes(codes, labels, ROLES, hashes(n))
    keys = [key for key, _ in listed(groups)]
    n_perts = len(labels["perturbation"])
    assert groups.ids.tolist() == [-1 if c < 0 or p < 0 else c * n_perts + p for c, p, _ in keys]
    assert len(groups) == len({key[:2] for key in keys if min(key[:2]) >= 0})
    assert groups.n_unlabelled == sum(len(rows) for key, rows in listed(groups) if min(key[:2]) < 0)


@given(coded())
@settings(max_examples=30, deadline=None)
def test_batches_are_counted_by_run(case):
    codes, labels, n = case
    groups = Groups.from_codes(codes, labels, ROLES, hashes(n))
    batch = np.zeros(n, int) if codes["batch"] is None else codes["batch"]
    assert groups.batch_of(np.arange(n)).tolist() == batch.tolist()
    run = groups.expand(np.arange(len(groups.start)))
    expected = sorted(pd.Series(zip(run, batch, strict=True)).value_counts().items())
    counts = groups.batch_counts
    listed_counts = zip(counts.run.tolist(), counts.batch.tolist(), strict=True)
    assert list(zip(listed_counts, counts.n_cells.tolist(), strict=True)) == expected
    subgroup = groups.subgroup_of(run, np.arange(n))
    assert counts.run[subgroup].tolist() == run.tolist()
    assert counts.batch[subgroup].tolist() == batch.tolist()


@given(coded())
@settings(max_examples=30, deadline=None)
def test_expand_and_run_of_restore_the_cells(case):
    codes, labels, n = case
    groups = Groups.from_codes(codes, labels, ROLES, hashes(n))
    for axis in RUN_AXES:
        expected = np.zeros(n, int) if codes[axis] is None else codes[axis]
        assert groups.expand(groups.codes[axis]).tolist() == expected.tolist()
    position_run = groups.run_of(np.arange(n))
    assert [position_run[a:b].tolist() for a, b in zip(groups.start, groups.stop, strict=True)] == [
        [run] * int(size) for run, size in enumerate(groups.sizes)
    ]


def test_expand_fills_rows_outside_the_groups():
    cells = make_cells(perturbation=["a"] * 7).groups.cells
    groups = only_perturbations([1, 0, 1], ["a", "b"], hashes=hashes(3), rows=np.array([5, 2, 3]), cells=cells)
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
        united = concat_groups([s.groups for s in screens], [4, 3, 40])
        frame = pd.concat([s.frame for s in screens], ignore_index=True)
        assert united.n_obs == 47
        for axis in AXES:
            labels = united.labels[axis]
            assert labels.tolist() == sorted({label for label in frame[axis] if label is not None})
            codes = united.batch_of(np.arange(47)) if axis == "batch" else united.expand(united.codes[axis])
            assert [None if c < 0 else labels[c] for c in codes] == frame[axis].tolist()
        seen = np.concatenate([united.rows(np.array([run]))[:] for run in range(len(united.start))])
        assert sorted(seen.tolist()) == list(range(47))

    def test_runs_are_sorted_by_label(self):
        united = concat_groups([s.groups for s in self.screens()], [4, 3, 40])
        keys = [[99 if k < 0 else k for k in key] for key, _ in listed(united)]
        assert keys == sorted(keys)
        positions = np.arange(47)
        run = united.run_of(positions)
        assert ((united.start[run] <= positions) & (positions < united.stop[run])).all()

    def test_a_screen_may_cover_only_some_rows_of_its_store(self):
        cells = make_cells(perturbation=["a"] * 5).groups.cells
        partial = only_perturbations([1, 0], ["p0", "p1"], hashes=hashes(2), rows=np.array([3, 1]), cells=cells)
        complete = only_perturbations([0, 1, 1], ["p0", "p1"], hashes=hashes(3))
        united = concat_groups([partial, complete], [5, 3])
        rows_of = {}
        for (_, pert, _), rows in listed(united):
            rows_of[pert] = sorted(rows_of.get(pert, []) + rows)
        assert rows_of == {0: [1, 5], 1: [3, 6, 7]}


class TestLabels:
    def test_unknown_labels_list_near_matches(self):
        groups = random_cells(50, 0).groups
        with pytest.raises(
            LabelNotFoundError,
            match=r"perturbation: got 'non_targeting', expected a label.*'perturbation'.*Did you mean 'non-targeting'",
        ):
            groups.code_of("perturbation", "non_targeting")

    def test_an_unknown_control_label_is_an_error(self):
        groups = make_cells(perturbation=["A", "B"], control=("A", "nope")).groups
        with pytest.raises(LabelNotFoundError, match="control_pert: got 'nope', expected a label"):
            groups.require_controls()
        groups.require_controls(all_labels=False)
        with pytest.raises(LabelNotFoundError, match=r"got 'n\*', expected a pattern that matches a label"):
            make_cells(perturbation=["A"], control="n*").groups.require_controls(all_labels=False)

    def test_without_a_control_label_no_cell_is_a_control(self):
        groups = make_cells(perturbation=["A", "B"], control=None).groups
        groups.require_controls()
        assert not groups.is_control_code.any()
        assert not groups.is_control.any()

    def test_several_labels_mark_controls(self):
        groups = make_cells(perturbation=["A", "NT-1", "B", "NT-2", None], control=("B", "NT*")).groups
        assert groups.labels["perturbation"][groups.is_control_code].tolist() == ["B", "NT-1", "NT-2"]
        assert groups.is_control.sum() == 3
        assert groups.table().set_index("perturbation")["is_control"].to_dict() == {
            "A": False,
            "B": True,
            "NT-1": True,
            "NT-2": True,
        }


def test_repr_is_one_line():
    expected = "Groups(900 cells in 18 groups and 18 runs: 3 cell types, 6 perturbations, 1 dataset, 2 batches)"
    assert repr(design_cells().groups) == expected


@pytest.mark.parametrize("seed", range(5))
def test_a_selection_has_the_groups_of_its_cells(seed):
    cells = random_cells(80, seed, n_datasets=1, missing=0.1)
    rows = np.random.default_rng(seed).permutation(80)[:50]
    selected = cells.groups.select(rows)
    assert selected.n_obs == 50
    run = np.repeat(np.arange(len(selected.start)), selected.sizes)
    in_order = selected.rows(np.arange(len(selected.start)))[:]
    assert sorted(in_order) == sorted(rows)
    for axis in ("cell_type", "perturbation"):
        names = np.append(selected.labels[axis].astype(object), None)[selected.codes[axis][run]]
        assert names.tolist() == cells.labels(axis, in_order).tolist()
    assert selected.cells.names(in_order).tolist() == cells.names[in_order].tolist()


@pytest.mark.parametrize("seed", range(8))
def test_a_selection_in_the_order_of_its_store_equals_one_that_is_sorted(seed, monkeypatch):
    cells = random_cells(90, seed, missing=0.1)
    random = np.random.default_rng(seed)
    picks = {
        "ascending": np.sort(random.permutation(90)[:40]),
        "any order": random.permutation(90)[:40],
        "a range": np.arange(20, 60),
        "a prefix": np.arange(30),
        "all": np.arange(90),
        "none": np.empty(0, np.int64),
        "repeats": random.integers(0, 90, 60),
    }
    for name, rows in picks.items():
        found = cells.groups.select(rows)
        with monkeypatch.context() as patch:
            patch.setattr("lazypert.screen.groups.select_in_order", lambda *_: None)
            expected = cells.groups.select(rows)
        assert found.n_obs == expected.n_obs, name
        assert (found.row_order is None) == (expected.row_order is None), name
        for array in ("start", "stop", "condition"):
            assert getattr(found, array).tolist() == getattr(expected, array).tolist(), name
        assert {axis: codes.tolist() for axis, codes in found.codes.items()} == {
            axis: codes.tolist() for axis, codes in expected.codes.items()
        }
        every = np.arange(len(found.start))
        assert found.rows(every)[:].tolist() == expected.rows(every)[:].tolist(), name
        assert found.batch_counts.n_cells.tolist() == expected.batch_counts.n_cells.tolist(), name


@pytest.mark.parametrize("rows", [None, np.arange(30), np.arange(12, 70), [3, 80, 41, 7]], ids=str)
def test_runs_are_found_by_row(rows):
    groups = random_cells(90, 1, missing=0.1).groups
    groups = groups if rows is None else groups.select(np.asarray(rows))
    expected = np.full(90, -1)
    for run in range(len(groups.start)):
        expected[groups.rows(np.array([run]))[:]] = run
    assert groups.run_of_rows(np.arange(90)).tolist() == expected.tolist()
    for start, stop in ((0, 90), (5, 6), (30, 30), (11, 73), (85, 90)):
        assert groups.runs_between(start, stop).tolist() == expected[start:stop].tolist()
