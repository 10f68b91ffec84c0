"""Experiments are checked when they are made, and find the files of their datasets."""

import subprocess
import sys
from pathlib import Path

import pytest

from lazypert.design import experiment
from lazypert.design.experiment import DatasetEntry, ZeroshotEntry
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
