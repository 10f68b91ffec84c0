"""Splits are saved by cell name and loaded for another opening of the same cells."""

import json
import sys

import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert import SplitResult
from lazypert.errors import ConfigError
from lazypert.splits.options import SplitOptions
from lazypert.splits.splitters import make_splitter
from tests.support.screens import design_cells, make_cells, random_cells, source_of
from tests.support.splits import empty_split

TABLES = [".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet"]

RULES = {
    "random": {},
    "stratified": {"stratify_by": ("batch",), "seed": 3, "train_frac": 0.5},
    "folds": {"n_folds": 5, "fold": 4, "valid_fold": False},
    "zeroshot": {"split_mode": "zeroshot", "held_out_cell_types": ("Neuron",)},
    "fewshot": {"split_mode": "fewshot", "held_out_perturbations": ("MYC", "TP53"), "min_cells_per_group": 3},
    "pairs": {"split_mode": "heldout", "by": ("cell_type", "perturbation"), "test": (("Neuron", "MYC"),), "valid": 0.2},
    "combinations": {"split_mode": "combinations", "separator": "+", "test": 0.5, "n_seen": (0,)},
}


def needs(suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")


@pytest.mark.parametrize("suffix", TABLES)
@pytest.mark.parametrize("n_datasets", [1, 2])
def test_tables_come_back(tmp_path, suffix, n_datasets):
    needs(suffix)
    cells = random_cells(300, 0, n_datasets=n_datasets, missing=0.1)
    split = make_splitter(SplitOptions()).split(cells)
    path = tmp_path / f"split{suffix}"
    split.save(path)
    assert SplitResult.load(path, cells) == split
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    columns = {1: ["cell", "split"], 2: ["cell", "dataset", "split"]}[n_datasets]
    separator = "\t" if ".tsv" in suffix else ","
    frame = pd.read_parquet(path) if suffix == ".parquet" else pd.read_csv(path, sep=separator)
    assert list(frame) == columns
    assert frame["split"].value_counts().to_dict() == {n: len(split[n]) for n in ("train", "valid", "test")}


@pytest.mark.parametrize("suffix", TABLES)
def test_names_of_any_kind_come_back(tmp_path, suffix):
    needs(suffix)
    names = ["NA", "nan", "1", "01", "1.0", 'a"b', "a,b", "a\tb", "a\nb", " a ", "é漢", "None", "#x", "True", "a\rb"]
    cells = make_cells(perturbation=["A"] * len(names), names=names, control=None)
    split = make_splitter(SplitOptions(train_frac=0.4, valid_frac=0.3)).split(cells)
    split.save(tmp_path / f"split{suffix}")
    assert SplitResult.load(tmp_path / f"split{suffix}", cells) == split


@pytest.mark.parametrize("suffix", TABLES)
def test_an_empty_split_is_saved(tmp_path, suffix):
    needs(suffix)
    split = empty_split(design_cells().groups)
    split.save(tmp_path / f"split{suffix}")
    assert SplitResult.load(tmp_path / f"split{suffix}", design_cells()) == split


@pytest.mark.parametrize("rule", sorted(RULES))
def test_rules_come_back(tmp_path, rule):
    splitter = make_splitter(SplitOptions(**RULES[rule]))
    cells = design_cells()
    split = splitter.split(cells)
    split.save(tmp_path / "rule.json")
    loaded = SplitResult.load(tmp_path / "rule.json", design_cells())
    assert loaded == split
    assert loaded.rule.config == splitter.config


def test_another_opening_of_the_same_cells(tmp_path, reference):
    split = make_splitter(SplitOptions()).split(reference.source)
    shuffled = reference.adata[np.random.default_rng(0).permutation(900)].copy()
    other = source_of(shuffled, tmp_path, order="source")
    for name in ("split.csv.gz", "rule.json"):
        split.save(tmp_path / name)
        loaded = SplitResult.load(tmp_path / name, other)
        assert loaded == split
        assert set(other.obs_names(loaded.test_indices)) == set(reference.source.obs_names(split.test_indices))
    assert split.move_to(other) == split
    assert split.move_to(reference.source) is split
    accessor = lp.open(reference.store).pert
    assert SplitResult.load(tmp_path / "split.csv.gz", accessor) == split


def test_equal_splits_are_equal_files(tmp_path):
    for name in ("a", "b"):
        make_splitter(SplitOptions()).split(design_cells()).save(tmp_path / f"{name}.csv.gz")
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()


class TestErrors:
    def test_a_rule_applied_to_other_cells(self, tmp_path):
        make_splitter(SplitOptions()).split(design_cells()).save(tmp_path / "rule.json")
        with pytest.raises(ConfigError, match=r"digest .* for these cells"):
            SplitResult.load(tmp_path / "rule.json", random_cells(100, 0))

    def test_a_split_without_a_rule(self, tmp_path):
        split = make_splitter(SplitOptions()).split(design_cells())
        with pytest.raises(ConfigError, match="no rule to save"):
            split.keep(np.ones(900, dtype=bool)).save(tmp_path / "rule.json")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format": "x"}, "expected a file in which SplitResult.save"),
            ({"version": 2}, "got version 2"),
            ({"splitter": "RandomSpliter"}, "got the splitter 'RandomSpliter'.*Did you mean 'RandomSplitter'"),
            ({"config": {"sead": 1}}, "sead: unknown option"),
            ({"config": {"seed": -1}}, "seed: got -1"),
            ({"config": {"seed": 1}}, "digest"),
        ],
        ids=str,
    )
    def test_rules_that_were_changed(self, tmp_path, change, message):
        path = tmp_path / "rule.json"
        make_splitter(SplitOptions()).split(design_cells()).save(path)
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(ConfigError, match=message):
            SplitResult.load(path, design_cells())

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.txt", "", "expected a name that ends in .csv"),
            ("a.json", "{", "which is not JSON"),
            ("a.csv", "", "cannot be read as a .csv table"),
            ("a.csv.gz", "not gzip", "cannot be read as a .csv.gz table"),
            ("a.csv", "barcode,split\n", "with the columns .*use SplitResult.from_table"),
        ],
        ids=str,
    )
    def test_files_of_other_kinds(self, tmp_path, name, content, message):
        (tmp_path / name).write_text(content)
        with pytest.raises(ConfigError, match=message):
            SplitResult.load(tmp_path / name, design_cells())

    @pytest.mark.parametrize("name", ["a.csv", "a.json", "a.parquet"])
    def test_no_file(self, tmp_path, name):
        with pytest.raises(ConfigError, match="There is none of this name"):
            SplitResult.load(tmp_path / name, design_cells())

    def test_a_table_without_pyarrow(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(ConfigError, match="need pyarrow, which is not installed"):
            make_splitter(SplitOptions()).split(design_cells()).save(tmp_path / "split.parquet")
        assert not list(tmp_path.iterdir())

    def test_a_parquet_table_that_was_changed(self, tmp_path):
        parquet = pytest.importorskip("pyarrow.parquet")
        path = tmp_path / "split.parquet"
        make_splitter(SplitOptions()).split(design_cells()).save(path)
        parquet.write_table(parquet.read_table(path).slice(0, 800), path)
        with pytest.raises(ConfigError, match="digest"):
            SplitResult.load(path, design_cells())


def test_tables_of_others(tmp_path):
    cells = make_cells(perturbation=["A"] * 3, control=None)
    (tmp_path / "published.tsv").write_text("\tsplit\ncell0\ttraining\ncell2\ttesting\n")
    split = SplitResult.from_table(cells, tmp_path / "published.tsv", names={"training": "train", "testing": "test"})
    assert [sorted(split[name]) for name in ("train", "valid", "test")] == [[0], [], [2]]
    assert split.n_in_no_split == 1


@pytest.mark.parametrize("suffix", [".csv", ".tsv.gz"])
def test_a_table_that_would_be_ambiguous_is_not_written(tmp_path, suffix):
    cells = make_cells(names=["same", "same", *(f"c{i}" for i in range(8))], perturbation=["A"] * 10, control=None)
    rows = cells.groups.rows(cells.groups.ids >= 0)
    index = [cells.names.tolist().index(name) for name in ("same", "c0")]
    is_train = np.arange(10) != np.asarray(rows).tolist().index(index[0])
    split = SplitResult(rows.where(is_train), rows.where(~is_train), rows.where(np.zeros(10, bool)), cells.groups)
    with pytest.raises(ConfigError, match=r"1 names are those of several cells .* Save the rule as \.json"):
        split.save(tmp_path / f"split{suffix}")
    assert list(tmp_path.iterdir()) == []
