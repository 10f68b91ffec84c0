"""Grouping by any obs columns equals that of pandas."""

import pandas as pd
import pytest

from lazypert.errors import ColumnNotFoundError
from lazypert.screen.roles import Roles
from lazypert.store.group_by_columns import group_cells
from lazypert.store.store import Store
from tests.support.stores import converted, read_store, small_grids


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        small_grids(patch)
        return Store(converted(tmp_path_factory.mktemp("grouping"))[1])


@pytest.mark.parametrize(
    ("pert_col", "cell_type_col"),
    [("perturbation", "cell_type"), ("text", "cell_type"), ("holey_category", "ordered"), ("all_missing", "batch")],
)
def test_numbers_of_cells_equal_those_of_pandas(store, pert_col, cell_type_col):
    groups = group_cells(store, Roles(pert_col=pert_col, cell_type_col=cell_type_col))
    table = groups.table().set_index(["cell_type", "perturbation"])["n_cells"]
    obs = read_store(store.path).obs[[cell_type_col, pert_col]].dropna().astype(str)
    expected = pd.Series(dict(obs.value_counts()), dtype="int64")
    assert table.to_dict() == expected.to_dict()


def test_categories_without_cells_are_not_labels(store):
    groups = group_cells(store, Roles(pert_col="ordered"))
    assert groups.labels["perturbation"].tolist() == ["high", "low"]


def test_the_stores_own_columns_use_its_run_table(store):
    groups = group_cells(store, store.roles)
    assert groups.start is store.groups.start


def test_an_unknown_column_raises(store):
    with pytest.raises(ColumnNotFoundError, match="batch_col: got 'Batch', expected an obs column"):
        group_cells(store, Roles(pert_col="perturbation", batch_col="Batch"))
