"""Keys of entries are divided into dataset and cell type, and texts are quoted for TOML."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazypert.design.experiment_entries import DatasetEntry, FewshotEntry, ZeroshotEntry, quote, split_key
from lazypert.errors import ConfigError


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a.K562", ("a", "K562")),
        ("a.b.T.reg", ("a.b", "T.reg")),
        ("a.CD4.v2", ("a", "CD4.v2")),
        ("new.K562", ("new", "K562")),
        ("a", None),
        ("a.", None),
        (".K562", None),
    ],
)
def test_the_longest_declared_dataset_wins(key, expected):
    assert split_key(key, ["a", "a.b"]) == expected


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_quoted_text_is_read_back(text):
    assert tomllib.loads(f"key = {quote(text)}") == {"key": text}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DatasetEntry(name="", path="x"), r"\[datasets\] name: got '', expected text"),
        (lambda: DatasetEntry(name="a", path=3), r"\[datasets\] 'a': got 3, expected text"),
        (lambda: ZeroshotEntry(dataset="a", cell_type="", split="val"), r"\[zeroshot\] cell_type: got ''"),
        (lambda: ZeroshotEntry(dataset="a", cell_type="b", split="valid"), r"'a\.b': got 'valid'.*Did you mean 'val'"),
        (lambda: FewshotEntry(dataset=None, cell_type="b"), r"\[fewshot\] dataset: got None"),
        (lambda: FewshotEntry(dataset="a", cell_type="b", val_perturbations=3), r'"a\.b"\] val: got 3'),
    ],
    ids=["no name", "path", "no cell type", "split", "no dataset", "list"],
)
def test_entries_are_checked_on_construction(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_values_of_roles():
    roles = {"control_pert": ["ctrl", "NT"], "covariates": [], "rename_perturbations": {"b": "B", "a": "A"}}
    entry = DatasetEntry(name="a", path="x", roles=roles)
    assert entry.roles == roles | {"control_pert": ("ctrl", "NT"), "covariates": ()}
    assert DatasetEntry(name="a", path="x", roles={"covariates": "dose"}).roles == {"covariates": "dose"}
    pairs = (("a", "A"), ("b", "B"))
    assert DatasetEntry(name="a", path="x", roles={**roles, "rename_perturbations": pairs}) == entry
    for roles in ({"pert_col": ["a"]}, {"control_pert": []}, {"covariates": [""]}):
        with pytest.raises(ConfigError, match=rf'^\[datasets."a"\] {next(iter(roles))}: got '):
            DatasetEntry(name="a", path="x", roles=roles)


def test_paths_may_be_path_objects(tmp_path):
    assert DatasetEntry(name="a", path=tmp_path).path == str(tmp_path)
