"""The groups in a store are those of its obs columns; older stores get theirs from the columns, in a fair order."""

import logging
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lazypert.screen.cell_order import name_hashes
from lazypert.store.group_by_columns import group_by_columns
from lazypert.store.store import Store
from lazypert.store.stored_groups import StoredCells
from tests.support.stores import converted, screen

GOLDEN = Path(__file__).parents[1] / "data"


def cells_of(groups):
    return [groups.rows(np.array([run]))[:].tolist() for run in range(len(groups.start))]


@pytest.mark.parametrize("order", ["grouped", "source"])
def test_they_equal_those_of_the_columns(tmp_path, order):
    store = Store(converted(tmp_path, screen(lean=True), order=order)[1])
    stored, expected = store.groups, group_by_columns(store, store.roles)
    assert cells_of(stored) == cells_of(expected)
    for axis, codes in expected.codes.items():
        assert stored.codes[axis].tolist() == codes.tolist()
    for name in ("run", "batch", "n_cells"):
        assert getattr(stored.batch_counts, name).tolist() == getattr(expected.batch_counts, name).tolist()
    rows = np.array([5, 3, 88, 3])
    assert stored.batch_of(rows).tolist() == expected.batch_of(rows).tolist()
    assert stored.cells.hashes(rows).tolist() == name_hashes(store.read_strings("obs/_index")[rows]).tolist()


def test_without_a_batch_column_all_cells_are_of_one_batch(tmp_path):
    groups = Store(converted(tmp_path, screen(lean=True), batch_col=None)[1]).groups
    assert groups.cells.batch_codes() is None
    assert groups.batch_of(np.arange(3)).tolist() == [0, 0, 0]
    assert groups.batch_counts.n_cells.tolist() == groups.sizes.tolist()


def test_cells_can_be_sent_to_another_process(tmp_path):
    store = Store(converted(tmp_path, screen(lean=True))[1])
    cells = pickle.loads(pickle.dumps(StoredCells(store)))
    assert cells.batch_codes().tolist() == store.groups.cells.batch_codes().tolist()
    assert len(cells.hashes(np.empty(0, np.int64))) == 0


@pytest.mark.parametrize("version", [1, 2])
def test_older_stores_get_a_fair_order_and_a_warning(tmp_path, caplog, version):
    newest, older = tmp_path / "newest", tmp_path / "older"
    for folder, number in ((newest, 3), (older, version)):
        with zipfile.ZipFile(GOLDEN / f"golden_v{number}.zip") as archive:
            archive.extractall(folder)
    with caplog.at_level(logging.WARNING, "lazypert"):
        groups = Store(older / "golden.zarr").groups
    assert f"format version {version}, whose cells are sorted by batch" in caplog.text
    names = [Store(folder / "golden.zarr").read_strings("obs/_index") for folder in (older, newest)]
    found = [[names[0][row] for row in rows] for rows in cells_of(groups)]
    expected = [[names[1][row] for row in rows] for rows in cells_of(Store(newest / "golden.zarr").groups)]
    assert found == expected
