"""Every cell of an experiment has the split that cell-load's rules give it."""

import subprocess
import sys
from pathlib import Path

import pytest

from lazypert.design import experiment
from lazypert.design.experiment import DatasetEntry, FewshotEntry, ZeroshotEntry, assign_split
from lazypert.errors import ConfigError
from tests.support.experiments import CELL_LOAD, config_of, load_experiment


def test_entries_are_checked_on_construction():
    zero = ZeroshotEntry(dataset="d0", cell_type="c", split="val")
    for options, message in [
        ({"training_datasets": ("d0", "d0")}, r"\[training\]: got 'd0' twice"),
        ({"zeroshot": (zero, zero)}, r"\[zeroshot\]: got 'd0.c' twice"),
        ({"training_datasets": "d0"}, "expected a tuple of str"),
        ({"fewshot": (zero,)}, "expected a tuple of FewshotEntry"),
    ]:
        with pytest.raises(ConfigError, match=message):
            config_of("x", **options)
    with pytest.raises(ConfigError, match="not empty"):
        DatasetEntry(name="", path="x")
    with pytest.raises(ConfigError, match=r"dataset: got 'd2', expected a name in \[datasets\]\. There are 1: 'd0'"):
        config_of("x").dataset_files("d2")


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
def test_assign_split_in_the_example_of_cell_load(tmp_path, dataset, cell_type, perturbation, expected):
    config = load_experiment(tmp_path, CELL_LOAD)
    is_control = perturbation == "control"
    assert assign_split(config, dataset, cell_type, perturbation, is_control=is_control) == expected


def test_of_a_dataset_that_does_not_train_only_held_out_cells_are_used(tmp_path):
    config = load_experiment(
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


def test_a_control_listed_in_fewshot_remains_a_control():
    entry = FewshotEntry(dataset="d0", cell_type="c", test_perturbations=("ctrl",))
    config = config_of("x", fewshot=(entry,))
    assert assign_split(config, "d0", "c", "ctrl", is_control=True) == "train"


def test_undeclared_datasets_are_refused():
    with pytest.raises(ConfigError, match="Did you mean 'd0'"):
        assign_split(config_of("x"), "d_0", "c", "P", is_control=False)


def test_importing_the_module_loads_only_the_standard_library():
    # A stand-in for the package, because lazypert/__init__.py imports everything.
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


def test_repr_counts_the_entries(tmp_path):
    expected = "2 datasets, 2 of them for training; 2 zero-shot and 2 few-shot cell types"
    assert repr(load_experiment(tmp_path, CELL_LOAD)) == f"ExperimentConfig({expected})"
