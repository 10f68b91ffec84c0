"""Several files read as if they were one, whatever the kinds of their columns."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert.conversion.joined_files import embedding_reader, obs_column_reader
from lazypert.screen.labels import join_columns
from tests.support.stores import assert_joined, every_column

KINDS = tuple(every_column(1).columns)


def reader(frame):
    """A reader of a DataFrame, with all that `obs_column_reader` needs."""
    return SimpleNamespace(
        n_obs=len(frame),
        obs_columns=tuple(frame.columns),
        obs_names=lambda start, stop: frame.index.to_numpy(dtype=object)[start:stop],
        obs_column=lambda name, start, stop: frame[name].array[start:stop],
    )


@pytest.mark.parametrize("left", KINDS)
def test_all_slices_of_a_joined_column_have_one_dtype(left):
    frames = [every_column(9, 0), every_column(7, 1)]
    for right in KINDS:
        columns = [frames[0][[left]].set_axis(["v"], axis=1), frames[1][[right]].set_axis(["v"], axis=1)]
        expected = join_columns([column["v"].array for column in columns], [9, 7])
        read = obs_column_reader([reader(column) for column in columns], "v")
        for step in (3, 8, 20):
            slices = [read(start, min(16, start + step)) for start in range(0, 16, step)]
            assert len({str(values.dtype) for values in slices}) == 1
            assert slices[0].dtype == expected.dtype
            result = np.concatenate([np.asarray(values, dtype=object) for values in slices])
            for value, original in zip(result, np.asarray(expected, dtype=object), strict=True):
                assert (pd.isna(value) and pd.isna(original)) or value == original


def test_a_file_without_the_column_has_missing_values():
    frames = [every_column(4, 0)[["i8"]], every_column(3, 1)[["flag"]]]
    read = obs_column_reader([reader(frame) for frame in frames], "i8")
    values = read(0, 7)
    assert values[:4].tolist() == frames[0]["i8"].tolist()
    assert pd.isna(values[4:]).all()


def test_cell_names_of_several_files_are_concatenated():
    read = obs_column_reader([reader(every_column(4, 0)), reader(every_column(3, 1))], None)
    assert read(2, 6).tolist() == ["cell0_2", "cell0_3", "cell1_0", "cell1_1"]


def test_a_file_without_cells_adds_nothing():
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
    for columns, lengths in (([None, values.array], [3, 8]), ([values.array, None], [8, 3])):
        result = join_columns(columns, lengths)
        assert_joined(result, columns, lengths)
    if isinstance(values.dtype, pd.CategoricalDtype):
        assert result.dtype == values.dtype


@settings(max_examples=60, deadline=None)
@given(
    columns=st.lists(
        st.tuples(st.permutations("abcd"), st.integers(1, 4), st.lists(st.integers(-1, 3), max_size=6)),
        min_size=2,
        max_size=3,
    )
)
def test_categories_in_any_order_keep_their_cells(columns):
    columns = [
        pd.Categorical.from_codes([min(code, n - 1) for code in codes], categories=list(labels[:n]))
        for labels, n, codes in columns
    ]
    result = join_columns(columns, [len(column) for column in columns])
    expected = [None if pd.isna(value) else value for column in columns for value in column]
    assert [None if pd.isna(value) else value for value in result] == expected


def test_embeddings_of_several_files_are_concatenated():
    tables = [np.arange(8.0).reshape(4, 2), np.empty((0, 2)), np.arange(6).reshape(3, 2)]
    readers = [SimpleNamespace(n_obs=len(t), read_obsm=lambda name, a, b, t=t: t[a:b]) for t in tables]
    read = embedding_reader(readers, "X_pca", np.dtype("f8"))
    for start in range(8):
        for stop in range(start, 8):
            np.testing.assert_array_equal(read(start, stop), np.concatenate(tables)[start:stop])
