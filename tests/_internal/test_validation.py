import inspect
from typing import Literal

import numpy as np
import pandas as pd
import pytest

from lazypert._internal.validation import (
    literal_choices,
    named_options,
    require_choice,
    require_flag,
    require_integer,
    require_names,
    require_number,
)
from lazypert.errors import ConfigError


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_require_integer_returns_an_int(value):
    assert type(require_integer("n", value, 3)) is int


@pytest.mark.parametrize("value", [2, -3, 3.0, np.float32(3), "3", None, True, np.True_, [3]])
def test_require_integer_refuses_other_values(value):
    with pytest.raises(ConfigError, match=r"^n: got .*, expected an integer, 3 or more\.$"):
        require_integer("n", value, 3)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int8(1)])
def test_require_number_returns_a_float(value):
    number = require_number("f", value, above=0, most=1)
    assert type(number) is float
    assert number == value


@pytest.mark.parametrize("value", [0, 1.5, float("nan"), float("inf"), "0.5", None, True, [0.5]])
def test_require_number_refuses_other_values(value):
    with pytest.raises(ConfigError, match=r"^f: got .*, expected a number above 0 and at most 1\.$"):
        require_number("f", value, above=0, most=1)


def test_require_number_states_the_bounds():
    assert require_number("f", 0, least=0) == 0
    assert require_number("f", -1e9) == -1e9
    with pytest.raises(ConfigError, match=r"expected a number at least 0\.$"):
        require_number("f", -0.1, least=0)
    with pytest.raises(ConfigError, match=r"expected a number\.$"):
        require_number("f", "1")


def test_require_flag_accepts_booleans_only():
    require_flag("f", value=False)
    require_flag("f", value=np.True_)
    for value in (0, 1, "yes", None):
        with pytest.raises(ConfigError, match="expected True or False"):
            require_flag("f", value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("fractoin", r"got 'fractoin', expected 'fraction' or 'depth'\. Did you mean 'fraction'\?$"),
        ("other", r"got 'other', expected 'fraction' or 'depth'\.$"),
        (3, r"got 3, expected 'fraction' or 'depth'\.$"),
        (["fraction"], r"got \['fraction'\], expected"),
        (None, "got None"),
    ],
)
def test_require_choice_suggests_the_nearest_choice(value, expected):
    require_choice("mode", "depth", ("fraction", "depth"))
    with pytest.raises(ConfigError, match=expected):
        require_choice("mode", value, ("fraction", "depth"))


Mode = Literal["fraction", "depth"]


@pytest.mark.parametrize(
    ("literal", "choices"),
    [
        (Mode, ("fraction", "depth")),
        (Mode | None, ("fraction", "depth", None)),
        (Literal["gzip", None], ("gzip", None)),
        (Literal["a"], ("a",)),
    ],
    ids=str,
)
def test_literal_choices_are_those_of_the_type(literal, choices):
    assert literal_choices(literal) == choices


def test_require_choice_reads_the_choices_of_a_literal():
    require_choice("mode", "depth", Mode)
    require_choice("mode", None, Mode | None)
    with pytest.raises(ConfigError, match=r"^mode: got None, expected 'fraction' or 'depth'\.$"):
        require_choice("mode", None, Mode)
    with pytest.raises(ConfigError, match=r"expected one of 'fraction', 'depth', None\. Did you mean 'depth'\?$"):
        require_choice("mode", "depht", Mode | None)


@pytest.mark.parametrize(
    "names", [["a", "b"], ("a", "b"), np.array(["a", "b"]), pd.Index(["a", "b"]), pd.Series(["a", "b"])]
)
def test_require_names_returns_a_list_of_texts(names):
    listed = require_names("genes", names)
    assert listed == ["a", "b"]
    assert {type(name) for name in listed} == {str}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"TP53"}, "expected a list of names"),
        (iter(["TP53"]), "expected a list of names"),
        ({"TP53": 1}, "expected a list of names"),
        (5, "expected a list of names"),
        (np.array([["TP53"]]), "expected a list of names"),
        (["TP53", 5], "genes: got 5, expected names only"),
    ],
)
def test_require_names_refuses_other_values(names, expected):
    with pytest.raises(ConfigError, match=expected):
        require_names("genes", names)


def test_a_single_name_is_a_list_of_one():
    assert require_names("genes", "TP53") == ["TP53"]
    assert require_names("genes", ("TP53", "MYC")) == ["TP53", "MYC"]


def test_unknown_keywords_are_refused_with_near_matches():
    @named_options
    def convert(source, *, pert_col=None):
        """Convert."""
        return source, pert_col

    assert convert("a", pert_col="p") == ("a", "p")
    assert (convert.__name__, convert.__doc__) == ("convert", "Convert.")
    assert list(inspect.signature(convert).parameters) == ["source", "pert_col"]
    with pytest.raises(ConfigError, match=r"^pertcol: unknown option\. Did you mean 'pert_col'"):
        convert("a", pertcol="p")
    with pytest.raises(TypeError, match="source"):
        convert(pert_col="p")
