"""Parts of combinations have no order, and the control is not one of them."""

import pytest

from lazypert.errors import ConfigError
from lazypert.splits.combination_parts import parts_of


@pytest.mark.parametrize(
    ("label", "parts"),
    [("A", ("A",)), ("B+A", ("A", "B")), ("A+A", ("A",)), ("A+ctrl", ("A",)), ("ctrl", ()), ("C+A+B", ("A", "B", "C"))],
)
def test_parts(label, parts):
    assert parts_of(label, "+", "ctrl") == parts


@pytest.mark.parametrize("label", ["A+", "+", "A++B", ""])
def test_empty_parts_are_refused(label):
    with pytest.raises(ConfigError, match=r"separator: got '[+]', which leaves an empty part"):
        parts_of(label, "+", None)
