"""Roles survive JSON."""

from lazypert.screen.roles import Roles


def test_roles_survive_json_and_keep_their_sort_order():
    roles = Roles(pert_col="p", cell_type_col="c", batch_col="b", dataset_col="d", control_pert="x")
    assert Roles.from_json(roles.to_json()) == roles
    assert roles.columns() == {"cell_type": "c", "perturbation": "p", "dataset": "d", "batch": "b"}
