import numpy as np
import pandas as pd
import pytest

from lazypert._internal.validation import require_choice, require_flag, require_integer, require_names, require_number
from lazypert.errors import ConfigError


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers_become_pythons(value):
    assert type(require_integer("n", value, 3)) is int


@pytest.mark.parametrize("value", [2, -3, 3.0, np.float32(3), "3", None, True, np.True_, [3]])
def test_no_integers(value):
    with pytest.raises(ConfigError, match=r"^n: got .*, expected an integer, 3 or more\.$"):
        require_integer("n", value, 3)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int8(1)])
def test_numbers_become_pythons(value):
    found = require_number("f", value, above=0, most=1)
    assert type(found) is float
    assert found == value


@pytest.mark.parametrize("value", [0, 1.5, float("nan"), float("inf"), "0.5", None, True, [0.5]])
def test_no_numbers(value):
    with pytest.raises(ConfigError, match=r"^f: got .*, expected a number above 0 and at most 1\.$"):
        require_number("f", value, above=0, most=1)


def test_bounds_of_numbers():
    assert require_number("f", 0, least=0) == 0
    assert require_number("f", -1e9) == -1e9
    with pytest.raises(ConfigError, match=r"expected a number at least 0\.$"):
        require_number("f", -0.1, least=0)
    with pytest.raises(ConfigError, match=r"expected a number\.$"):
        require_number("f", "1")


def test_flags():
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
def test_words(value, expected):
    require_choice("mode", "depth", ("fraction", "depth"))
    with pytest.raises(ConfigError, match=expected):
        require_choice("mode", value, ("fraction", "depth"))


@pytest.mark.parametrize(
    "names", [["a", "b"], ("a", "b"), np.array(["a", "b"]), pd.Index(["a", "b"]), pd.Series(["a", "b"])]
)
def test_names_in_order(names):
    found = require_names("genes", names)
    assert found == ["a", "b"]
    assert {type(name) for name in found} == {str}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("TP53", r"got 'TP53', expected a list of names, such as \['TP53'\]"),
        ({"TP53"}, "expected a list of names"),
        (iter(["TP53"]), "expected a list of names"),
        ({"TP53": 1}, "expected a list of names"),
        (5, "expected a list of names"),
        (np.array([["TP53"]]), "expected a list of names"),
        (["TP53", 5], "genes: got 5, expected names only"),
    ],
)
def test_no_names(names, expected):
    with pytest.raises(ConfigError, match=expected):
        require_names("genes", names)
