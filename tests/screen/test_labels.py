"""Columns are encoded as codes and sorted labels; several files share the union of their labels."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert.screen.labels import factorise, join_columns, label_text, rename, renumber, unite

# NumPy's fixed-width text drops trailing NULs, so no label has one.
text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4)
columns = st.lists(st.none() | text, max_size=30)


def decoded(codes, labels):
    return [None if code < 0 else str(labels[code]) for code in codes]


@given(columns)
@settings(max_examples=50, deadline=None)
def test_codes_index_the_sorted_labels_that_occur(column):
    codes, labels = factorise(np.array(column, dtype=object))
    assert decoded(codes, labels) == column
    assert labels.tolist() == sorted({label for label in column if label is not None})
    assert codes.dtype == np.int32


@given(st.lists(columns, min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_unite_equals_factorising_all_files_at_once(files):
    codes, labels = unite([factorise(np.array(column, dtype=object)) for column in files])
    assert decoded(codes, labels) == [label for column in files for label in column]
    assert labels.tolist() == sorted({label for column in files for label in column if label is not None})
    assert codes.dtype == np.int32


@pytest.mark.parametrize(
    ("column", "labels", "codes"),
    [
        (pd.Categorical(["b", None, "a"], categories=["never", "b", "a"]), ["a", "b"], [1, -1, 0]),
        (pd.Categorical([3, 1, 3]), ["1", "3"], [1, 0, 1]),
        (np.array([2, 10, 2]), ["10", "2"], [1, 0, 1]),
        (np.array([1.5, np.nan]), ["1.5"], [0, -1]),
        (np.array([0.1, 2, 0.1], dtype="f4"), ["0.1", "2"], [0, 1, 0]),
        (pd.Categorical(np.array([0.1, 2], dtype="f4")), ["0.1", "2"], [0, 1]),
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
        "float32",
        "categories of float32",
        "booleans",
        "nullable",
        "same text",
        "all missing",
        "empty",
    ],
)
def test_columns_of_every_dtype_are_encoded(column, labels, codes):
    found_codes, found_labels = factorise(column)
    assert (found_labels.tolist(), found_codes.tolist()) == (labels, codes)


DOSES = [0.1, 0.3, 1 / 3, 1e-7, 2.5e-3, 10 / 2**12, 10.0, 1e30, np.inf]


@pytest.mark.parametrize("kind", [np.asarray, pd.Categorical, pd.array, lambda values: np.asarray(values, object)])
def test_a_number_has_one_label_in_any_precision(kind):
    texts = [label_text(np.float32(dose)) for dose in DOSES]
    assert texts == [
        "0.1",
        "0.3",
        "0.33333334",
        "1e-07",
        "0.0025",
        "0.00244140625",
        "10",
        str(int(np.float32(1e30))),
        "inf",
    ]
    for dtype in (np.float32, np.float64):
        single = np.array(DOSES, np.float32).astype(dtype)  # files of both are joined in double precision
        codes, labels = factorise(kind(single))
        assert [str(labels[code]) for code in codes] == texts


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_label_of_a_number_is_that_number(number):
    assert float(label_text(number)) == pytest.approx(number, rel=6e-8, abs=1e-44)
    decimal = float(f"{number:.12g}")
    assert float(label_text(decimal)) == decimal


@pytest.mark.parametrize("kind", [np.asarray, pd.Categorical, pd.array])
def test_joined_columns_have_the_labels_of_each_file(kind):
    numbers, texts = np.array([0.1, 1.0, np.nan], "f4"), np.array(["0.1", "1", None, "b"], dtype=object)
    for other in (pd.Categorical(texts), texts):
        joined = join_columns([kind(numbers), other], [3, 4])
        expected = unite([factorise(kind(numbers)), factorise(other)])
        assert decoded(*factorise(joined)) == decoded(*expected) == ["0.1", "1", None, "0.1", "1", None, "b"]


def test_renumbering_keeps_labels_and_missing_values():
    codes = renumber(np.array([0, -1, 1, 0], np.int32), np.array(["b", "d"]), np.array(["a", "b", "c", "d"]))
    assert codes.tolist() == [1, -1, 3, 1]


def test_long_labels_cost_what_they_hold():
    names = [f"{number:04}" for number in range(5000)] + ["x" * 1_000_000]  # 20 GB if all were as long as the longest
    column = np.array(names[::-1], dtype=object)
    tracemalloc.start()
    codes, labels = factorise(column)
    united, all_labels = unite([(codes, labels), (codes[:10], labels)])
    renamed, new_labels = rename(codes, [f"{label}!" for label in labels])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert labels.tolist() == all_labels.tolist() == names
    assert codes.tolist() == renamed.tolist() == list(range(5000, -1, -1))
    assert united[-10:].tolist() == codes[:10].tolist()
    assert new_labels[-1] == f"{names[-1]}!"
    assert peak < 40e6
