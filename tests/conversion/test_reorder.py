"""Values in the order of the store equal a plain gather, however small the pieces."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazypert.conversion import reorder
from lazypert.conversion.reorder import ReorderedValues, obs_column_reader
from lazypert.screen.labels import join_columns
from tests.support.stores import every_column


@given(n=st.integers(0, 60), step=st.integers(1, 70), seed=st.integers(0, 99))
def test_any_step_gives_the_same(n, step, seed):
    source_row = np.random.default_rng(seed).permutation(n)
    values = np.random.default_rng(seed + 1).normal(size=(n, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reorder, "READ_STEP", 1 + seed % 23)
        check(n, step, source_row, values)


def check(n, step, source_row, values):
    pieces = list(ReorderedValues(lambda a, b: values[a:b], np.argsort(source_row), step))
    assert [len(piece) for piece in pieces[:-1]] == [step] * (len(pieces) - 1)
    np.testing.assert_array_equal(np.concatenate(pieces), values[source_row])


def reader(frame):
    """What `obs_column_reader` asks of a reader, on a DataFrame."""
    return SimpleNamespace(
        n_obs=len(frame),
        obs_columns=tuple(frame.columns),
        obs_names=lambda start, stop: frame.index.to_numpy(dtype=object)[start:stop],
        obs_column=lambda name, start, stop: frame[name].array[start:stop],
    )


@pytest.mark.parametrize("left", every_column(1).columns)
def test_columns_of_two_files_come_in_pieces_of_one_kind(left):
    frames = [every_column(9, 0), every_column(7, 1)]
    for right in every_column(1).columns:
        parts = [frames[0][[left]].set_axis(["v"], axis=1), frames[1][[right]].set_axis(["v"], axis=1)]
        whole = join_columns([part["v"].array for part in parts], [9, 7])
        read = obs_column_reader([reader(part) for part in parts], "v")
        for step in (3, 8, 20):
            pieces = [read(start, min(16, start + step)) for start in range(0, 16, step)]
            assert len({str(piece.dtype) for piece in pieces}) == 1
            assert pieces[0].dtype == whole.dtype
            found = np.concatenate([np.asarray(piece, dtype=object) for piece in pieces])
            for ours, theirs in zip(found, np.asarray(whole, dtype=object), strict=True):
                assert (pd.isna(ours) and pd.isna(theirs)) or ours == theirs


def test_a_file_without_the_column_has_missing_values():
    frames = [every_column(4, 0)[["i8"]], every_column(3, 1)[["flag"]]]
    read = obs_column_reader([reader(frame) for frame in frames], "i8")
    values = read(0, 7)
    assert values[:4].tolist() == frames[0]["i8"].tolist()
    assert pd.isna(values[4:]).all()
    pieces = ReorderedValues(read, np.arange(7), 2)
    assert pieces.has_missing()
    assert not ReorderedValues(obs_column_reader([reader(frames[0])], "i8"), np.arange(4), 2).has_missing()


def test_names_of_several_files_follow_one_another():
    read = obs_column_reader([reader(every_column(4, 0)), reader(every_column(3, 1))], None)
    assert read(2, 6).tolist() == ["cell0_2", "cell0_3", "cell1_0", "cell1_1"]


def test_a_file_without_cells():
    read = obs_column_reader([reader(every_column(0)), reader(every_column(3, 1))], "batch")
    assert len(read(0, 3)) == 3
    assert len(obs_column_reader([reader(every_column(0))], "batch")(0, 0)) == 0


@pytest.mark.parametrize("left", KINDS)
def test_columns_of_any_two_kinds_join(left):
    a, b = every_column(8, 0), every_column(9, 1)
    for right in KINDS:
        assert_joined(join_columns([a[left].array, b[right].array], [8, 9]), [a[left], b[right]], [8, 9])


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_a_file_lacks_is_missing_there(kind):
    values = every_column(8)[kind]
    for parts, lengths in (([None, values.array], [3, 8]), ([values.array, None], [8, 3])):
        found = join_columns(parts, lengths)
        assert_joined(found, parts, lengths)
    if isinstance(values.dtype, pd.CategoricalDtype):
        assert found.dtype == values.dtype


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(
        st.tuples(st.permutations("abcd"), st.integers(1, 4), st.lists(st.integers(-1, 3), max_size=6)),
        min_size=2,
        max_size=3,
    )
)
def test_categories_in_any_order_keep_their_cells(parts):
    columns = [
        pd.Categorical.from_codes([min(code, n - 1) for code in codes], categories=list(order[:n]))
        for order, n, codes in parts
    ]
    found = join_columns(columns, [len(column) for column in columns])
    expected = [None if pd.isna(value) else value for column in columns for value in column]
    assert [None if pd.isna(value) else value for value in found] == expected
