"""Experiments survive a round trip through TOML, and mistakes in a file raise errors that explain them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazypert.design.experiment import (
    DatasetEntry,
    ExperimentConfig,
    FewshotEntry,
    ZeroshotEntry,
    load_experiment_config,
)
from lazypert.errors import ConfigError, ExperimentFileNotFoundError, LazypertError
from tests.support.experiments import CELL_LOAD, load_experiment


def test_reads_the_example_of_cell_load(tmp_path):
    config = load_experiment(tmp_path, CELL_LOAD)
    assert config.datasets == (
        DatasetEntry(name="replogle", path="replogle_dataset/"),
        DatasetEntry(name="jurkat", path="/data/jurkat_dataset/"),
    )
    assert config.training_datasets == ("replogle", "jurkat")
    assert config.get_all_datasets() == {"replogle", "jurkat"}
    assert config.get_zeroshot_celltypes("replogle") == {"jurkat": "test"}
    assert config.get_zeroshot_celltypes("jurkat") == {"rpe1": "val"}
    assert list(config.get_fewshot_celltypes("replogle")) == ["rpe1"]
    entry = config.get_fewshot_celltypes("replogle")["rpe1"]
    assert entry.val_perturbations == ("AARS",)
    assert entry.test_perturbations == ("AARS", "NUP107", "RPUSD4")
    assert config.base_dir == tmp_path


def test_sections_may_be_missing_and_datasets_unused(tmp_path):
    config = load_experiment(tmp_path, '[datasets]\na = "a.h5ad"\nspare = "b.h5ad"\n[training]\na = "train"\n')
    assert config.get_all_datasets() == {"a"}
    assert config.zeroshot == config.fewshot == ()
    assert load_experiment(tmp_path, "") == ExperimentConfig()


def test_the_longest_declared_dataset_name_wins_over_the_first_dot(tmp_path):
    config = load_experiment(
        tmp_path,
        '[datasets]\na = "1"\n"a.b" = "2"\n[zeroshot]\n"a.b.T.reg" = "test"\n"a.CD4.v2" = "val"\n',
    )
    assert config.get_zeroshot_celltypes("a.b") == {"T.reg": "test"}
    assert config.get_zeroshot_celltypes("a") == {"CD4.v2": "val"}


def test_entries_that_a_key_cannot_express_are_not_saved(tmp_path):
    datasets = (DatasetEntry(name="a", path="1"), DatasetEntry(name="a.b", path="2"))
    clash = ZeroshotEntry(dataset="a", cell_type="b.c", split="test")
    config = ExperimentConfig(datasets=datasets, zeroshot=(clash,))
    with pytest.raises(ConfigError, match=r"would be read as \('a.b', 'c'\)"):
        config.save_config(tmp_path / "experiment.toml")
    assert not list(tmp_path.iterdir())


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@st.composite
def experiments(draw):
    # No declared name is a prefix of another key: that case is refused, and tested above.
    names = draw(st.lists(text.filter(lambda name: "." not in name), min_size=1, max_size=4, unique=True))
    cells = draw(st.lists(st.tuples(st.sampled_from(names), text), max_size=6, unique=True))
    cut = draw(st.integers(0, len(cells)))
    perturbations = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=3).map(tuple)
    return ExperimentConfig(
        datasets=tuple(DatasetEntry(name=name, path=draw(text)) for name in names),
        training_datasets=tuple(draw(st.lists(st.sampled_from(names), unique=True))),
        zeroshot=tuple(
            ZeroshotEntry(dataset=name, cell_type=cell, split=draw(st.sampled_from(["train", "val", "test"])))
            for name, cell in cells[:cut]
        ),
        fewshot=tuple(
            FewshotEntry(
                dataset=name,
                cell_type=cell,
                val_perturbations=draw(perturbations),
                test_perturbations=draw(perturbations),
            )
            for name, cell in cells[cut:]
        ),
        **draw(st.sampled_from([{}, {"match": ("donor", 'a "plate"')}, {"match": (), "fallback": "error"}])),
    )


@given(config=experiments())
def test_saving_and_loading_is_a_round_trip(tmp_path_factory, config):
    file = tmp_path_factory.mktemp("experiment") / "experiment.toml"
    config.save_config(file)
    assert load_experiment_config(file) == config


def test_saving_into_another_folder_keeps_the_files(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    (tmp_path / "here" / "a.h5ad").touch()
    (tmp_path / "here" / "in.toml").write_text('[datasets]\nd0 = "*.h5ad"\n')
    config = load_experiment_config(tmp_path / "here" / "in.toml")
    config.save_config(tmp_path / "here" / "again.toml")
    assert load_experiment_config(tmp_path / "here" / "again.toml") == config
    config.save_config(tmp_path / "there" / "out.toml")
    moved = load_experiment_config(tmp_path / "there" / "out.toml")
    assert moved.dataset_files("d0") == config.dataset_files("d0") == [tmp_path / "here" / "a.h5ad"]


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[zero_shot]\n", r"section: got \[zero_shot\].*Did you mean 'zeroshot'"),
        ("training = 3\n", "training: got 3, expected a section"),
        ("[datasets]\na = 3\n", r"\[datasets\] 'a': got 3"),
        ('[datasets]\na = "x"\n[training]\na = "test"\n', "expected 'train'. Hold out cell types"),
        ('[training]\nreplogl = "train"\n[datasets]\nreplogle = "x"\n', "Did you mean 'replogle'"),
        ('[datasets]\na = "x"\n[zeroshot]\n"a.c" = "valid"\n', "'valid'.*Did you mean 'val'"),
        ('[datasets]\na = "x"\n[zeroshot]\na.c = "val"\n', r'Write "a\.c"'),
        ('[datasets]\na = "x"\n[zeroshot]\n"a.c" = ["val"]\n', "expected one of 'train', 'val', 'test'"),
        ('[datasets]\na = "x"\n[zeroshot]\n"a." = "val"\n', 'expected "dataset.cell_type"'),
        ('[datasets]\na = "x"\n[zeroshot]\n"b.c" = "val"\n', r"'b' is used in \[zeroshot\]"),
        ('[datasets]\na = "x"\n[fewshot.a.c]\nval = ["P"]\n', r'Write "a\.c"'),
        ('[datasets]\na = "x"\n[fewshot."a.c"]\nval = 3\n', r"val: got 3, expected a list"),
        ('[datasets]\na = "x"\n[fewshot."a.c"]\ntest = ["P", 3]\n', r"test: got \['P', 3\]"),
        ('[datasets]\na = "x"\n[fewshot."a.c"]\ntests = ["P"]\n', "Did you mean 'test'"),
        ('[datasets]\na = "x"\n[fewshot]\n"a.c" = "test"\n', "whole cell type, use"),
        ('[datasets]\na = "x"\n[zeroshot]\n"a.c" = "val"\n[fewshot."a.c"]\n', "both .zeroshot. .*'val'"),
        ('[controls]\nmatches = ["donor"]\n', r"\[controls\]: got the key 'matches'.*Did you mean 'match'"),
        ('[controls]\nmatch = ["donor", "donor"]\n', "match: got .* expected each key once"),
        ("[controls]\nmatch = 3\n", "match: got 3, expected a list of names"),
        ('[controls]\nmatch = ["donor"]\nfallback = "drop"\n', "fallback: got 'drop', expected 'drop_last' or 'er"),
        ('[controls]\nfallback = "error"\n', "fallback: got 'error' without match"),
        ('[datasets]\na = "x"\nb = y\n', r"not valid TOML.*line 3"),
        ('[datasets]\na = "x"\na = "y"\n', r"not valid TOML.*line 3"),
    ],
)
def test_mistakes_raise_an_error_that_names_the_file(tmp_path, toml, message):
    with pytest.raises(ConfigError, match=rf"(?s)experiment\.toml.*{message}") as caught:
        load_experiment(tmp_path, toml)
    assert isinstance(caught.value, ValueError)


def test_a_single_name_is_a_list_of_one(tmp_path):
    experiment = load_experiment(tmp_path, '[datasets]\na = "x"\n[fewshot."a.c"]\nval = "P"\n')
    assert experiment.fewshot[0].val_perturbations == ("P",)


def test_controls_are_matched_by_the_keys_of_the_file(tmp_path):
    experiment = load_experiment(tmp_path, '[controls]\nmatch = ["donor", "plate"]\nfallback = "error"\n')
    assert (experiment.match, experiment.fallback) == (("cell_type", "donor", "plate"), "error")
    assert load_experiment(tmp_path, '[controls]\nmatch = "donor"\n').match == ("cell_type", "donor")
    assert load_experiment(tmp_path, "[controls]\n").match is None


def test_a_file_that_is_not_utf8_raises_an_error_that_names_the_line(tmp_path):
    file = tmp_path / "experiment.toml"
    file.write_bytes(b'[datasets]\na = "caf\xe9"\n')
    with pytest.raises(ConfigError, match=r"experiment\.toml.*line 2 is not UTF-8"):
        load_experiment_config(file)


def test_a_missing_file_raises_a_file_not_found_error(tmp_path):
    with pytest.raises(ExperimentFileNotFoundError, match=r"nowhere\.toml.*looked in") as caught:
        load_experiment_config(tmp_path / "nowhere.toml")
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, LazypertError)
