from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazypert.design import experiment
from lazypert.design.experiment import (
    DatasetEntry,
    ExperimentConfig,
    FewshotEntry,
    ZeroshotEntry,
    assign_split,
    load_experiment_config,
)
from lazypert.errors import ConfigError, ExperimentFileNotFoundError, LazypertError

# The example of cell-load's README, word for word but for the paths.
CELL_LOAD = """
[datasets]
replogle = "replogle_dataset/"  # ADDS ALL h5 or h5ad files in this folder to training
jurkat = "/data/jurkat_dataset/"

[training]
replogle = "train"
jurkat = "train"

[zeroshot]
"replogle.jurkat" = "test"
"jurkat.rpe1" = "val"

[fewshot]

[fewshot."replogle.rpe1"]
val = ["AARS"]
test = ["AARS", "NUP107", "RPUSD4"]  # can overlap with val

[fewshot."jurkat.k562"]
val = ["GENE1", "GENE2"]
test = ["GENE3", "GENE4"]
"""


def load(tmp_path, text):
    file = tmp_path / "experiment.toml"
    file.write_text(text, encoding="utf-8")
    return load_experiment_config(file)


def config_of(*paths, **options):
    datasets = tuple(DatasetEntry(name=f"d{i}", path=str(path)) for i, path in enumerate(paths))
    return ExperimentConfig(datasets=datasets, **options)


# -- reading and writing ----------------------------------------------------------------------------


def test_cell_loads_own_example(tmp_path):
    config = load(tmp_path, CELL_LOAD)
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


def test_sections_may_be_missing_and_a_dataset_unused(tmp_path):
    config = load(tmp_path, '[datasets]\na = "a.h5ad"\nspare = "b.h5ad"\n[training]\na = "train"\n')
    assert config.get_all_datasets() == {"a"}
    assert config.zeroshot == config.fewshot == ()
    assert load(tmp_path, "") == ExperimentConfig()


def test_the_longest_declared_dataset_name_wins_over_the_first_dot(tmp_path):
    config = load(
        tmp_path,
        '[datasets]\na = "1"\n"a.b" = "2"\n[zeroshot]\n"a.b.T.reg" = "test"\n"a.CD4.v2" = "val"\n',
    )
    assert config.get_zeroshot_celltypes("a.b") == {"T.reg": "test"}
    assert config.get_zeroshot_celltypes("a") == {"CD4.v2": "val"}


def test_saving_what_a_key_cannot_say_is_refused(tmp_path):
    datasets = (DatasetEntry(name="a", path="1"), DatasetEntry(name="a.b", path="2"))
    clash = ZeroshotEntry(dataset="a", cell_type="b.c", split="test")
    config = ExperimentConfig(datasets=datasets, zeroshot=(clash,))
    with pytest.raises(ConfigError, match=r"would be read as \('a.b', 'c'\)"):
        config.save_config(tmp_path / "experiment.toml")
    assert not list(tmp_path.iterdir())


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@st.composite
def experiments(draw):
    # One declared name is never the start of another's key: that case is refused, and tested above.
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
    )


@given(config=experiments())
def test_saving_and_loading_gives_the_same(tmp_path_factory, config):
    file = tmp_path_factory.mktemp("round") / "experiment.toml"
    config.save_config(file)
    assert load_experiment_config(file) == config


def test_saving_elsewhere_keeps_the_files(tmp_path):
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
        ("[zero_shot]\n", "no section .zero_shot.*Did you mean 'zeroshot'"),
        ("training = 3\n", "training is 3; expected a section"),
        ("[datasets]\na = 3\n", "path of dataset 'a' is 3"),
        ('[datasets]\na = "x"\n[training]\na = "test"\n', "expected 'train'. Hold cell types out"),
        ('[training]\nreplogl = "train"\n[datasets]\nreplogle = "x"\n', "Did you mean 'replogle'"),
        ('[datasets]\na = "x"\n[zeroshot]\n"a.c" = "valid"\n', "'valid'.*Did you mean 'val'"),
        ('[datasets]\na = "x"\n[zeroshot]\na.c = "val"\n', r'Write "a\.c"'),
        ('[datasets]\na = "x"\n[zeroshot]\n"a.c" = ["val"]\n', "expected one of 'train', 'val', 'test'"),
        ('[datasets]\na = "x"\n[zeroshot]\n"a." = "val"\n', 'expected "dataset.cell_type"'),
        ('[datasets]\na = "x"\n[zeroshot]\n"b.c" = "val"\n', r"'b' is used in \[zeroshot\]"),
        ('[datasets]\na = "x"\n[fewshot.a.c]\nval = ["P"]\n', r'Write "a\.c"'),
        ('[datasets]\na = "x"\n[fewshot."a.c"]\nval = "P"\n', r"val is 'P'; expected a list"),
        ('[datasets]\na = "x"\n[fewshot."a.c"]\ntest = ["P", 3]\n', r"test is \['P', 3\]"),
        ('[datasets]\na = "x"\n[fewshot."a.c"]\ntests = ["P"]\n', "Did you mean 'test'"),
        ('[datasets]\na = "x"\n[fewshot]\n"a.c" = "test"\n', "whole cell type use"),
        ('[datasets]\na = "x"\n[zeroshot]\n"a.c" = "val"\n[fewshot."a.c"]\n', "both .zeroshot. .*'val'"),
        ('[datasets]\na = "x"\nb = y\n', r"not valid TOML.*line 3"),
        ('[datasets]\na = "x"\na = "y"\n', r"not valid TOML.*line 3"),
    ],
)
def test_mistakes_are_explained_and_the_file_named(tmp_path, toml, message):
    with pytest.raises(ConfigError, match=rf"(?s)experiment\.toml.*{message}") as caught:
        load(tmp_path, toml)
    assert isinstance(caught.value, ValueError)


def test_a_file_that_is_not_utf8_names_the_line(tmp_path):
    file = tmp_path / "experiment.toml"
    file.write_bytes(b'[datasets]\na = "caf\xe9"\n')
    with pytest.raises(ConfigError, match=r"experiment\.toml.*line 2 is not UTF-8"):
        load_experiment_config(file)


def test_a_missing_file_is_a_file_not_found_error(tmp_path):
    with pytest.raises(ExperimentFileNotFoundError, match=r"nowhere\.toml.*looked in") as caught:
        load_experiment_config(tmp_path / "nowhere.toml")
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, LazypertError)


def test_entries_are_validated_when_made():
    zero = ZeroshotEntry(dataset="d0", cell_type="c", split="val")
    for options, message in [
        ({"training_datasets": ("d0", "d0")}, "'d0' twice"),
        ({"zeroshot": (zero, zero)}, r"\[zeroshot\] has 'd0.c' twice"),
        ({"training_datasets": "d0"}, "expected a tuple of str"),
        ({"fewshot": (zero,)}, "expected a tuple of FewshotEntry"),
    ]:
        with pytest.raises(ConfigError, match=message):
            config_of("x", **options)
    with pytest.raises(ConfigError, match="not empty"):
        DatasetEntry(name="", path="x")
    with pytest.raises(ConfigError, match=r"no dataset 'd2' in \[datasets\]\. There are 1: 'd0'"):
        config_of("x").dataset_files("d2")


# -- files ------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    names = ["k562.h5ad", "rpe1.h5ad", "hepg2.h5", "notes.txt", "[x].h5ad"]
    for name in [*names, "sub1/a.h5", "sub1/a.h5ad", "sub2/b.h5ad", "sub2/deep/c.h5ad"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "store.zarr").mkdir()
    (tmp_path / "store.zarr" / "zarr.json").touch()
    return tmp_path


@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("k562.h5ad", "k562.h5ad"),
        ("sub1", "sub1/a.h5 sub1/a.h5ad"),
        ("sub2/", "sub2/b.h5ad"),
        ("store.zarr", "store.zarr"),
        ("*.zarr", "store.zarr"),
        ("*.h5ad", "[x].h5ad k562.h5ad rpe1.h5ad"),
        ("{rpe1,k562}.h5ad", "rpe1.h5ad k562.h5ad"),
        ("{rpe1, k562 , absent}.h5ad", "rpe1.h5ad k562.h5ad"),
        ("{sub1,sub2}/{a,b}.{h5,h5ad}", "sub1/a.h5 sub1/a.h5ad sub2/b.h5ad"),
        ("{k562,*}.h5ad", "k562.h5ad [x].h5ad rpe1.h5ad"),
        ("sub?", "sub1/a.h5 sub1/a.h5ad sub2/b.h5ad"),
        ("sub[2]/", "sub2/b.h5ad"),
        ("sub*/**/*.h5ad", "sub1/a.h5ad sub2/b.h5ad sub2/deep/c.h5ad"),
        ("[x].h5ad", "[x].h5ad"),
    ],
)
def test_dataset_files(tree, path, expected, absolute):
    # tmp_path itself has square brackets when the test has parameters in some versions of pytest.
    assert not set("*?[]{}") & set(str(tree))
    config = config_of(tree / path if absolute else path, base_dir=tree)
    assert config.dataset_files("d0") == [tree / name for name in expected.split()]


@pytest.mark.parametrize("path", ["absent.h5ad", "*.loom", "sub3", "{x,y}.h5"])
def test_no_files_is_an_error(tree, path):
    with pytest.raises(ExperimentFileNotFoundError, match="'d0' has no files"):
        config_of(path, base_dir=tree).dataset_files("d0")


def test_without_a_toml_paths_start_from_the_working_directory(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert config_of("k562.h5ad").dataset_files("d0") == [Path("k562.h5ad")]


# -- splits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "cell_type", "perturbation", "expected"),
    [
        ("replogle", "k562", "AARS", "train"),
        ("replogle", "k562", "control", "train"),
        ("replogle", "jurkat", "AARS", "test"),
        ("replogle", "jurkat", "control", "test"),
        ("jurkat", "rpe1", "AARS", "valid"),
        ("jurkat", "rpe1", "control", "valid"),
        ("replogle", "rpe1", "AARS", "test"),
        ("replogle", "rpe1", "NUP107", "test"),
        ("replogle", "rpe1", "OTHER", "train"),
        ("replogle", "rpe1", "control", "train"),
        ("jurkat", "k562", "GENE2", "valid"),
        ("jurkat", "k562", "AARS", "train"),
    ],
)
def test_assign_split_in_cell_loads_example(tmp_path, dataset, cell_type, perturbation, expected):
    config = load(tmp_path, CELL_LOAD)
    is_control = perturbation == "control"
    assert assign_split(config, dataset, cell_type, perturbation, is_control=is_control) == expected


def test_a_dataset_that_does_not_train_gives_only_what_is_held_out(tmp_path):
    config = load(
        tmp_path,
        '[datasets]\na = "x"\n[zeroshot]\n"a.z" = "test"\n"a.t" = "train"\n[fewshot."a.f"]\nval = ["P"]\n',
    )

    def split(cell_type, perturbation, *, is_control=False):
        return assign_split(config, "a", cell_type, perturbation, is_control=is_control)

    assert split("other", "P") is None
    assert split("other", "ctrl", is_control=True) is None
    assert (split("z", "P"), split("t", "P")) == ("test", "train")
    assert (split("f", "P"), split("f", "Q"), split("f", "ctrl", is_control=True)) == (
        "valid",
        "train",
        "train",
    )


def test_a_control_listed_in_fewshot_stays_a_control():
    entry = FewshotEntry(dataset="d0", cell_type="c", test_perturbations=("ctrl",))
    config = config_of("x", fewshot=(entry,))
    assert assign_split(config, "d0", "c", "ctrl", is_control=True) == "train"


def test_an_undeclared_dataset_is_refused_by_assign_split():
    with pytest.raises(ConfigError, match="Did you mean 'd0'"):
        assign_split(config_of("x"), "d_0", "c", "P", is_control=False)


def test_importing_experiment_loads_nothing_heavy():
    # The package's own __init__ re-exports all of lazypert; this is about the module alone.
    code = (
        "import sys, types; package = types.ModuleType('lazypert'); "
        f"package.__path__ = [{str(Path(experiment.__file__).parents[1])!r}]; sys.modules['lazypert'] = package; "
        "before = set(sys.modules); import lazypert.design.experiment; "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "lazypert" in loaded
    assert loaded <= {"lazypert", *sys.stdlib_module_names}
