"""Combinations of covariates, against pandas."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert.errors import ConfigError, LabelNotFoundError
from lazypert.screen import run_keys
from lazypert.screen.conditions import Conditions
from lazypert.screen.labels import factorise

VALUES = st.sampled_from([None, "", "a", "b", "10", "9", "\u00e9"])


def encode(frame):
    return Conditions.encode({name: factorise(frame[name].to_numpy(dtype=object)) for name in frame})


@pytest.mark.parametrize("largest_table", [1 << 22, 0], ids=["counted", "sorted"])
@settings(deadline=None)
@given(rows=st.lists(st.tuples(VALUES, VALUES, VALUES), max_size=30))
def test_conditions_are_the_sorted_distinct_texts(largest_table, rows):
    frame = pd.DataFrame(rows, columns=["dose", "time", "donor"], dtype=object)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_keys, "MAX_TABLE", largest_table)
        number, conditions = encode(frame)
    texts = [tuple("" if value is None else value for value in row) for row in rows]
    expected = sorted(set(texts))
    assert [tuple(row) for row in conditions.table().to_numpy()] == expected
    assert number.tolist() == [expected.index(text) for text in texts]
    assert number.dtype == np.int32


@settings(deadline=None)
@given(parts=st.lists(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=6), min_size=1, max_size=4))
def test_union_renumbers_the_conditions_of_each_screen(parts):
    frames = [pd.DataFrame(rows, columns=["dose", "time"], dtype=object) for rows in parts]
    encoded = [encode(frame) for frame in frames]
    united, numbers = Conditions.unite([conditions for _, conditions in encoded])
    together, expected = encode(pd.concat(frames))
    assert united.table().equals(expected.table())
    np.testing.assert_array_equal(
        np.concatenate([new[old] for new, (old, _) in zip(numbers, encoded, strict=True)]), together
    )


def test_without_covariates_there_is_one_condition():
    assert len(Conditions()) == 1
    assert Conditions().rank().tolist() == [0]
    united, numbers = Conditions.unite([Conditions(), Conditions()])
    assert len(united) == 1
    assert [part.tolist() for part in numbers] == [[0], [0]]


def test_levels_and_codes_leave_out_missing_labels():
    _, conditions = encode(pd.DataFrame({"dose": [1.0, np.nan, 10.0], "time": ["a", "a", "b"]}))
    assert {name: levels.tolist() for name, levels in conditions.levels.items()} == {
        "dose": ["1", "10"],
        "time": ["a", "b"],
    }
    assert conditions.table()["dose"].tolist() == ["", "1", "10"]
    assert conditions.codes_of("dose").tolist() == [-1, 0, 1]
    assert repr(conditions) == "Conditions(3 of dose (2) x time (2))"


def test_rank_sorts_numbers_by_value_and_text_by_letters():
    _, conditions = encode(pd.DataFrame({"dose": [10, 9, 0.5, np.nan, 100], "unit": list("bbbba")}))
    in_order = conditions.table().iloc[np.argsort(conditions.rank())]
    assert in_order["dose"].tolist() == ["", "0.5", "9", "10", "100"]
    _, words = encode(pd.DataFrame({"donor": ["d2", "d10", None, "7"]}))
    assert words.table().iloc[np.argsort(words.rank())]["donor"].tolist() == ["", "d10", "d2", "7"]


class TestWhere:
    conditions = encode(pd.DataFrame({"dose": [1.0, 1.0, 2.5, np.nan], "time": [6, 24, 24, 24]}))[1]

    @pytest.mark.parametrize(
        ("wanted", "rows"),
        [
            ({"dose": 1}, [("1", "24"), ("1", "6")]),
            ({"dose": "1"}, [("1", "24"), ("1", "6")]),
            ({"dose": np.float32(2.5)}, [("2.5", "24")]),
            ({"dose": (1.0, None), "time": ("24",)}, [("", "24"), ("1", "24")]),
            ({"dose": np.array([1, 2.5]), "time": 6}, [("1", "6")]),
            ({"dose": []}, []),
            ({}, [("", "24"), ("1", "24"), ("1", "6"), ("2.5", "24")]),
        ],
    )
    def test_selects_labels_given_as_text_or_numbers(self, wanted, rows):
        chosen = self.conditions.where(wanted)
        assert [tuple(row) for row in self.conditions.table()[chosen].to_numpy()] == rows

    def test_unknown_covariate(self):
        with pytest.raises(ConfigError, match=r"^covariates: got 'donor', expected a covariate of this screen"):
            self.conditions.where({"donor": "1"})

    @pytest.mark.parametrize("wanted", ["dose", ("dose", 1)])
    def test_what_is_no_mapping_is_refused(self, wanted):
        with pytest.raises(ConfigError, match=r"^covariates: got .*, expected a dictionary of labels"):
            self.conditions.where(wanted)

    def test_no_cell_without_a_label(self):
        with pytest.raises(LabelNotFoundError, match=r"^covariates\['time'\]: got None, expected a label"):
            self.conditions.where({"time": None})

    def test_unknown_label(self):
        with pytest.raises(LabelNotFoundError, match=r"^covariates\['dose'\]: got '3', expected a label in obs column"):
            self.conditions.where({"dose": 3})
