"""Parts of combinations have no order, and the control is not one of them."""

import pytest

from lazypert.errors import ConfigError
from lazypert.screen.combinations import combined_label, controls_in, parts_of
from lazypert.screen.roles import Roles


@pytest.mark.parametrize(
    ("label", "parts"),
    [("A", ("A",)), ("B+A", ("A", "B")), ("A+A", ("A",)), ("A+ctrl", ("A",)), ("ctrl", ()), ("C+A+B", ("A", "B", "C"))],
)
def test_parts(label, parts):
    assert parts_of(label, "+", Roles(control_pert="ctrl")) == parts


@pytest.mark.parametrize("label", ["A+", "+", "A++B", ""])
def test_empty_parts_are_refused(label):
    with pytest.raises(ConfigError, match=r"separator: got '[+]', which leaves an empty part"):
        parts_of(label, "+", Roles())


@pytest.mark.parametrize(
    ("label", "combined"),
    [
        ("A", "A"),
        ("B+A", "A+B"),
        ("A+B+A", "A+B"),
        ("ctrl+A", "A"),
        ("ctrl", "ctrl"),
        ("NT-2+ctrl", "NT-2"),
        ("A_B", "A_B"),
    ],
)
def test_combinations_with_the_same_parts_have_one_label(label, combined):
    roles = Roles(control_pert=("ctrl", "NT*"), separator="+")
    assert combined_label(label, roles) == combined
    assert combined_label(combined, roles) == combined


def test_without_a_separator_labels_are_taken_as_they_are():
    assert combined_label("B+A", Roles(control_pert="ctrl")) == "B+A"


def test_controls_that_are_parts():
    roles = Roles(control_pert=("ctrl", "NT*"), separator="+")
    assert controls_in(["A+ctrl", "ctrl", "NT-1+B", "A+B"], roles) == ("NT-1", "ctrl")
    assert controls_in(["ctrl", "A"], roles) == ()
    assert controls_in(["A+ctrl"], Roles(control_pert="ctrl")) == ()
