"""Labels of cells by axes, obs columns, or several of them."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from lazypert.splits.cell_labels import axis_of, read_cell_labels, read_column
from tests.support.screens import holey_screen, make_cells, source_of
from tests.support.splits import cells_of, screens

COLUMNS = [("cell_type",), ("batch",), ("donor",), ("perturbation", "cell_type"), ("donor", "batch", "cell_type")]


@pytest.mark.parametrize("columns", COLUMNS, ids="-".join)
@given(screen=screens())
@settings(max_examples=25, deadline=None)
def test_equals_reading_cells_one_by_one(columns, screen):
    cells = cells_of(screen)
    runs = cells.groups.ids >= 0
    found = read_cell_labels(cells, columns, runs, "by")
    codes = np.repeat(found.codes, cells.groups.sizes[runs]) if found.of_runs else found.codes
    rows = cells.groups.rows(runs)[:]
    expected = list(zip(*(screen[column][rows] for column in columns), strict=True))
    texts = [None if code < 0 else found.labels[code] for code in codes]
    assert texts == [None if None in label else label for label in expected]
    assert found.labels == sorted({label for label in expected if None not in label})
    assert found.of_runs == (not {"batch", "donor"} & set(columns))


def test_numbers_have_the_labels_of_factorise():
    doses = np.array([0.1, 1.0, 0.1, np.nan], "f4")
    cells = make_cells(perturbation=["A"] * 4, obs={"dose": doses})
    for column in (doses, doses.astype("f8"), pd.Categorical(doses)):
        cells.frame["dose"] = column
        codes, labels = read_column(cells, "dose", np.arange(4))
        assert (codes.tolist(), labels.tolist()) == ([0, 1, 0, -1], ["0.1", "1"])


def test_columns_are_read_chunk_by_chunk(monkeypatch):
    cells = make_cells(perturbation=["A"] * 50, control=None, obs={"donor": [f"d{i * 7 % 11}" for i in range(50)]})
    rows = cells.groups.rows(cells.groups.ids >= 0)
    expected = read_column(cells, "donor", rows)
    monkeypatch.setattr("lazypert.splits.cell_labels._CELLS_AT_ONCE", 3)
    found = read_column(cells, "donor", rows)
    assert found[0].tolist() == expected[0].tolist()
    assert found[1].tolist() == expected[1].tolist() == sorted({f"d{i}" for i in range(11)})


def test_both_names_stand_for_an_axis(tmp_path):
    adata = holey_screen()
    adata.obs = adata.obs.rename(columns={"perturbation": "gene"})
    groups = source_of(adata, tmp_path, pert_col="gene").groups
    assert [axis_of(groups, name) for name in ("gene", "perturbation", "batch", "donor")] == [
        "perturbation", "perturbation", "batch", None,
    ]  # fmt: skip
