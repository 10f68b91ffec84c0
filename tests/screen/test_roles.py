"""Each axis is filled by the column of one role, and any number of labels mark the controls."""

from dataclasses import fields

import numpy as np
import pandas as pd
import pytest

from lazypert.errors import ConfigError, LabelNotFoundError
from lazypert.screen.roles import AXES, OPTIONAL_ROLES, ROLE_OF_AXIS, Roles, joint_roles

ROLES = Roles(pert_col="guide", cell_type_col="type", control_pert="NT")


def test_every_role_but_those_of_labels_and_covariates_fills_an_axis():
    others = {"control_pert", "separator", "covariates", "rename_perturbations"}
    assert {field.name for field in fields(Roles)} == {*ROLE_OF_AXIS.values(), *others}
    assert set(OPTIONAL_ROLES) <= set(ROLE_OF_AXIS.values())


def test_columns_are_listed_by_axis():
    assert ROLES.columns() == {"cell_type": "type", "perturbation": "guide", "dataset": None, "batch": None}
    assert tuple(ROLES.columns()) == AXES


def test_a_control_label_is_not_a_column():
    assert ROLES.has_columns
    assert not Roles(control_pert="NT").has_columns


def test_json_round_trip():
    several = Roles(pert_col="guide", control_pert=("NT", "safe*"), separator="+")
    for roles in (ROLES, several):
        assert Roles.from_json(roles.to_json()) == roles
    assert several.to_json()["control_pert"] == ["NT", "safe*"]


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ("NT", ("NT",)),
        (["NT", "safe"], ("NT", "safe")),
        (0, ("0",)),
        ((1.0, True), ("1", "True")),
        (None, ()),
        (np.array(["NT", "safe"]), ("NT", "safe")),
        (pd.Series([1.0, 2.0]), ("1", "2")),
        (pd.Index(["NT"]), ("NT",)),
    ],
    ids=repr,
)
def test_labels_of_controls_are_text(given, labels):
    assert Roles(control_pert=given).controls == labels


@pytest.mark.parametrize("given", ["", (), ("NT", ""), ("NT", "NT"), (1, 1.0), {"NT"}])
def test_labels_that_cannot_mark_controls_are_refused(given):
    with pytest.raises(ConfigError, match=r"^control_pert: got"):
        Roles(control_pert=given)


def test_a_pattern_marks_the_labels_that_match_it():
    roles = Roles(control_pert=("NT", "safe-?", "INTERGENIC*"))
    marked = ["NT", "safe-1", "INTERGENIC", "INTERGENIC_2"]
    assert [name for name in [*marked, "NTC", "safe-10", "intergenic", "A"] if roles.is_control_label(name)] == marked


def test_screens_together_have_the_controls_of_each():
    one, other = Roles(pert_col="p", control_pert="ctrl"), Roles(pert_col="gene", control_pert=("NT*", "safe"))
    joint = joint_roles([(one, ["A", "ctrl"]), (other, ["A", "B", "NT-1", "NT-2", "safe"])])
    assert joint == Roles(pert_col="p", control_pert=("NT-1", "NT-2", "ctrl", "safe"))


def test_a_label_cannot_be_a_control_of_one_screen_and_a_perturbation_of_another():
    with pytest.raises(ConfigError, match=r"'safe' for one screen, but it is a perturbation in another"):
        joint_roles([(Roles(control_pert="safe"), ["A", "safe"]), (Roles(control_pert="NT"), ["NT", "safe"])])


def test_a_control_of_one_screen_cannot_be_a_part_of_a_combination_in_another():
    one, other = (Roles(control_pert=label, separator="+") for label in ("ctrl", "NT"))
    with pytest.raises(ConfigError, match=r"'ctrl' for one screen, but it is a perturbation in another"):
        joint_roles([(one, ["A", "ctrl"]), (other, ["A", "A+ctrl", "NT"])])
    assert joint_roles([(one, ["A", "ctrl"]), (other, ["A", "A+B", "NT"])]).controls == ("NT", "ctrl")


def test_a_control_label_must_occur_in_one_of_the_screens():
    both = Roles(control_pert=("NT", "ctrl"))
    assert joint_roles([(both, ["A", "ctrl"]), (both, ["A", "NT"])]).controls == ("NT", "ctrl")
    with pytest.raises(LabelNotFoundError, match=r"control_pert: got 'NT'.*Did you mean 'NTC'"):
        joint_roles([(both, ["A", "ctrl"]), (both, ["NTC", "ctrl"])])


def test_screens_must_be_divided_by_one_separator():
    with pytest.raises(ConfigError, match=r"^separator: got .*, expected the same for all screens"):
        joint_roles([(Roles(separator="+"), ["A"]), (Roles(), ["A"])])
