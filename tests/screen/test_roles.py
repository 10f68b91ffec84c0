"""Each axis is filled by the column of one role."""

from dataclasses import fields

from lazypert.screen.roles import AXES, OPTIONAL_ROLES, ROLE_OF_AXIS, Roles

ROLES = Roles(pert_col="guide", cell_type_col="type", control_pert="NT")


def test_every_role_but_the_control_label_fills_an_axis():
    assert {field.name for field in fields(Roles)} == {*ROLE_OF_AXIS.values(), "control_pert"}
    assert set(OPTIONAL_ROLES) <= set(ROLE_OF_AXIS.values())


def test_columns_are_listed_by_axis():
    assert ROLES.columns() == {"cell_type": "type", "perturbation": "guide", "dataset": None, "batch": None}
    assert tuple(ROLES.columns()) == AXES


def test_a_control_label_is_not_a_column():
    assert ROLES.has_columns
    assert not Roles(control_pert="NT").has_columns


def test_json_round_trip():
    assert Roles.from_json(ROLES.to_json()) == ROLES
