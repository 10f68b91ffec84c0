"""Columns become codes and sorted labels; several files share one vocabulary."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert.screen.labels import factorise, unite

# NumPy's fixed-width text drops trailing NULs; no label has one.
text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4)
columns = st.lists(st.none() | text, max_size=30)


def decoded(codes, labels):
    return [None if code < 0 else str(labels[code]) for code in codes]


@given(columns)
@settings(max_examples=50, deadline=None)
def test_codes_stand_for_the_labels_that_occur(column):
    codes, labels = factorise(np.array(column, dtype=object))
    assert decoded(codes, labels) == column
    assert labels.tolist() == sorted({label for label in column if label is not None})
    assert codes.dtype == np.int32


@given(st.lists(columns, min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_unite_is_factorising_all_at_once(parts):
    codes, labels = unite([factorise(np.array(part, dtype=object)) for part in parts])
    assert decoded(codes, labels) == [label for part in parts for label in part]
    assert labels.tolist() == sorted({label for part in parts for label in part if label is not None})
    assert codes.dtype == np.int32


@pytest.mark.parametrize(
    ("column", "labels", "codes"),
    [
        (pd.Categorical(["b", None, "a"], categories=["never", "b", "a"]), ["a", "b"], [1, -1, 0]),
        (pd.Categorical([3, 1, 3]), ["1", "3"], [1, 0, 1]),
        (np.array([2, 10, 2]), ["10", "2"], [1, 0, 1]),
        (np.array([1.5, np.nan]), ["1.5"], [0, -1]),
        (np.array([True, False]), ["False", "True"], [1, 0]),
        (pd.array([1, None], dtype="Int64"), ["1"], [0, -1]),
        (np.array([1, "1", "2"], dtype=object), ["1", "2"], [0, 0, 1]),
        (np.array([None, None], dtype=object), [], [-1, -1]),
        (np.array([], dtype=object), [], []),
    ],
    ids=[
        "unused category",
        "numeric categories",
        "integers",
        "floats",
        "booleans",
        "nullable",
        "print alike",
        "all missing",
        "empty",
    ],
)
def test_columns_of_any_kind(column, labels, codes):
    found_codes, found_labels = factorise(column)
    assert (found_labels.tolist(), found_codes.tolist()) == (labels, codes)
