"""A segment has recorded cell statistics only where they describe exactly its cells and groups."""

import numpy as np
import pytest

from lazypert.sources.matrix_segment import store_segment
from lazypert.store.group_by_columns import group_cells
from tests.support.screens import holey_screen, source_of


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return source_of(holey_screen(), tmp_path_factory.mktemp("segment")).store


def test_a_complete_store_has_cell_statistics(store):
    segment = store_segment(store, None, store.groups)
    assert segment.cell_stats is store.cell_stats is not None
    assert segment.labels.tolist() == store.groups.labels["perturbation"].tolist()
    assert segment.column_of.tolist() == list(range(store.n_vars))
    assert (segment.first_row, segment.matrix.name) == (0, "X")


def test_the_same_roles_have_cell_statistics(store):
    assert store_segment(store, None, group_cells(store, store.roles)).cell_stats is not None


def test_a_layer_has_none(store):
    segment = store_segment(store, "twice", store.groups)
    assert (segment.cell_stats, segment.labels, segment.matrix.name) == (None, None, "layers/twice")


@pytest.mark.parametrize("role", [{"cell_type_col": "donor"}, {"control_pert": "A"}], ids=["columns", "control"])
def test_other_roles_have_none(store, role):
    from dataclasses import replace

    assert store_segment(store, None, group_cells(store, replace(store.roles, **role))).cell_stats is None


def test_a_selection_of_equally_many_cells_has_none(store):
    groups = store.groups
    rows = np.arange(groups.n_obs)
    codes = {axis: groups.expand(code) for axis, code in groups.codes.items()} | {"batch": groups.batch_of(rows)}
    selected = type(groups).from_codes(codes, groups.labels, groups.roles, groups.cells.hashes(rows))
    assert store_segment(store, None, selected).cell_stats is None
