"""Tables of cell names become splits; what they leave open is refused."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert import SplitResult
from lazypert.errors import ColumnNotFoundError, ConfigError
from lazypert.splits.names import SPLITS
from lazypert.splits.split_table import rows_of_table
from tests.support.screens import CONTROL, make_cells, random_cells, source_of
from tests.support.splits import by_name, cells_of, screens


@given(screens(), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_cells_are_found_by_name(screen, seed):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {"barcode": screen["names"], "set": rng.choice(["train", "val", "test", ""], len(screen["names"]))}
    )
    usable = [a is not None and b is not None for a, b in zip(screen["cell_type"], screen["perturbation"], strict=True)]
    expected = {
        name: {"val": "valid"}.get(split, split)
        for (name, split), ok in zip(table.itertuples(index=False), usable, strict=True)
        if ok and split
    }
    table = table.sample(frac=1, random_state=seed)
    for order in (None, rng.permutation(len(table))):
        cells = cells_of(screen, order)
        assert by_name(cells, SplitResult.from_table(cells, table, split="set")) == expected


def test_names_that_datasets_share_need_the_dataset():
    names, dataset = ["a", "b", "a", "c"], ["d1", "d1", "d2", "d2"]
    cells = make_cells(perturbation=["A"] * 4, dataset=dataset, names=names, control=None)
    table = pd.DataFrame({"cell": names, "dataset": dataset, "split": ["train", "test", "valid", "test"]})
    split = SplitResult.from_table(cells, table, dataset="dataset")
    assert [sorted(split[name]) for name in SPLITS] == [[0], [2], [1, 3]]
    with pytest.raises(
        ConfigError, match=r"table: got 1 cells that are in several splits, such as 'a' in train and valid"
    ):
        SplitResult.from_table(cells, table)
    with pytest.raises(ConfigError, match=r"the cell 'a', which the screen has in several datasets.*dataset=\.\.\."):
        SplitResult.from_table(cells, table.iloc[:2])
    split = SplitResult.from_table(cells, table.iloc[[1, 3]])
    assert sorted(split.test_indices) == [1, 3]


def test_one_dataset_needs_no_name():
    cells = make_cells(perturbation=["A"] * 2, names=["a", "b"], control=None)
    table = pd.DataFrame({"cell": ["a", "b"], "dataset": ["d1", "d1"], "split": ["train", "test"]})
    assert sorted(SplitResult.from_table(cells, table, dataset="dataset").test_indices) == [1]


class TestErrors:
    table = pd.DataFrame({"cell": ["cell0", "cell1", "cellX"], "split": ["train", "test", "test"]})

    def test_cells_that_the_screen_lacks(self):
        cells = random_cells(5, 0, missing=0)
        with pytest.raises(
            ConfigError, match=r"got 1 of 3 cells that the screen lacks, such as 'cellX'.*such as 'cell"
        ):
            SplitResult.from_table(cells, self.table)
        split = SplitResult.from_table(cells, self.table, missing="ignore")
        assert by_name(cells, split) == {"cell0": "train", "cell1": "test"}
        with pytest.raises(ConfigError, match="got 1 of 1 cells"):
            SplitResult.from_table(cells, self.table.iloc[2:], missing="ignore")
        with pytest.raises(ConfigError, match="missing: got 'skip'"):
            SplitResult.from_table(cells, self.table, missing="skip")

    @pytest.mark.parametrize(
        ("change", "options", "error", "message"),
        [
            ({"split": "training"}, {}, ConfigError, "split: got 'training'.*names={'training': 'train'}"),
            (
                {"split": "a"},
                {"names": {"b": "train"}},
                ConfigError,
                "names: got 'b', expected a value of column 'split'",
            ),
            ({"split": "a"}, {"names": {"a": "learn"}}, ConfigError, "split: got 'learn'"),
            ({"cell": ""}, {}, ConfigError, "3 rows without a cell name"),
            ({}, {"split": "fold"}, ColumnNotFoundError, "split: got 'fold', expected a column of the table"),
            ({}, {"cell": "split"}, ConfigError, "cell: got 'split', which is the column of the splits"),
            ({}, {"dataset": "study"}, ColumnNotFoundError, "dataset: got 'study'"),
        ],
        ids=str,
    )
    def test_tables_that_are_not_splits(self, change, options, error, message):
        with pytest.raises(error, match=message):
            SplitResult.from_table(random_cells(5, 0), self.table.assign(**change), **options)

    def test_an_empty_frame(self):
        with pytest.raises(ConfigError, match="one without columns"):
            SplitResult.from_table(random_cells(5, 0), pd.DataFrame())


def test_values_can_stand_for_splits():
    cells = make_cells(perturbation=["A"] * 4, control=None)
    table = pd.DataFrame({"split": ["training", "ood", "unused", np.nan]}, index=[f"cell{i}" for i in range(4)])
    split = SplitResult.from_table(cells, table, names={"training": "train", "ood": "test", "unused": None})
    assert by_name(cells, split) == {"cell0": "train", "cell1": "test"}


def test_rows_that_repeat_count_once():
    cells = make_cells(perturbation=["A"] * 2, control=None)
    table = pd.DataFrame({"cell": ["cell0"] * 3, "split": ["test"] * 3})
    assert by_name(cells, SplitResult.from_table(cells, table)) == {"cell0": "test"}


def test_cells_are_found_chunk_by_chunk(monkeypatch):
    cells = random_cells(200, 3, n_datasets=2)
    table = pd.DataFrame({"cell": [f"cell{i}" for i in range(200)], "split": np.arange(200) % 3})
    names = {str(i): name for i, name in enumerate(SPLITS)}
    expected = by_name(cells, SplitResult.from_table(cells, table, names=names))
    monkeypatch.setattr("lazypert.splits.split_table._CELLS_AT_ONCE", 7)
    assert by_name(cells, SplitResult.from_table(cells, table, names=names)) == expected
    assert rows_of_table.__doc__


class TestColumn:
    def test_an_obs_column_holds_the_split(self):
        values = ["train", "val", None, "test", "", "train"]
        cells = make_cells(perturbation=["A", "A", "A", CONTROL, "A", None], obs={"part": values})
        split = SplitResult.from_column(cells, "part")
        assert by_name(cells, split) == {"cell0": "train", "cell1": "valid", "cell3": "test"}

    def test_numbers_can_stand_for_splits(self):
        cells = make_cells(perturbation=["A"] * 3, control=None, obs={"fold": [0.0, 1.0, np.nan]})
        split = SplitResult.from_column(cells, "fold", names={0: "test", 1: "train"})
        assert by_name(cells, split) == {"cell0": "test", "cell1": "train"}

    def test_of_a_store(self, tmp_path, reference):
        adata = reference.adata.copy()
        adata.obs["part"] = pd.Categorical(np.array(["train", "valid", "test"])[np.arange(900) % 3])
        source = source_of(adata, tmp_path)
        split = SplitResult.from_column(source, "part")
        for name in SPLITS:
            assert set(source.obs_names(split[name])) == set(adata.obs_names[adata.obs["part"] == name])
        with pytest.raises(ConfigError, match="cell_type: got 'Astrocyte', expected one of 'train', 'valid', 'test'"):
            SplitResult.from_column(source, "cell_type")
        with pytest.raises(ColumnNotFoundError, match="Did you mean 'part'"):
            SplitResult.from_column(source, "parts")
