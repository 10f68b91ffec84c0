"""The names that ``import lazypert`` offers."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import lazypert as lp

EXPORTED = {
    "BatchControlMapping",
    "ControlMappingConfig",
    "DownsamplingConfig",
    "ExperimentConfig",
    "FewShotSplitter",
    "FewShotSplitterConfig",
    "KnockdownFilterConfig",
    "KnockdownResult",
    "LazypertError",
    "Loader",
    "LoaderConfig",
    "OnTargetKnockdownFilter",
    "PerturbationAnnDataSource",
    "PerturbationBatch",
    "PerturbationBatchSampler",
    "PerturbationConcatSource",
    "PerturbationPipeline",
    "PerturbationPipelineConfig",
    "PerturbationPipelineResult",
    "PerturbationSamplerConfig",
    "PerturbationSourceConfig",
    "Progress",
    "RandomControlMapping",
    "CombinationSplitter",
    "CombinationSplitterConfig",
    "HeldOutSplitter",
    "HeldOutSplitterConfig",
    "RandomSplitter",
    "RandomSplitterConfig",
    "ReadDownsampler",
    "Run",
    "SparseRows",
    "SplitResult",
    "ZeroShotSplitter",
    "ZeroShotSplitterConfig",
    "add_layer",
    "add_obs",
    "add_obsm",
    "append",
    "convert",
    "is_on_target_knockdown",
    "load_experiment_config",
    "load_run",
    "save_run",
    "verify",
}
NOT_STARRED = {"__version__", "errors", "open", "plots", "simulate"}


def test_exactly_these_names_are_exported():
    assert len(lp.__all__) == len(EXPORTED)
    assert set(lp.__all__) == EXPORTED
    assert set(dir(lp)) == EXPORTED | NOT_STARRED


@pytest.mark.parametrize("name", sorted(EXPORTED | NOT_STARRED))
def test_every_listed_name_can_be_used(name):
    assert getattr(lp, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'lazypert' has no attribute 'convrt'"):
        lp.convrt  # noqa: B018


def test_a_star_import_keeps_the_builtin_open():
    names = {}
    exec("from lazypert import *", names)
    assert "open" not in names
    assert set(names) >= EXPORTED


def test_submodules_and_version_are_found_without_importing_them():
    code = "import lazypert as lp; print(lp.simulate.reference_screen.__name__, lp.plots.__name__, lp.__version__)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["reference_screen", "lazypert.plots", metadata.version("lazypert")]


def test_the_citation_file_states_the_version():
    lines = (Path(lp.__file__).parents[1] / "CITATION.cff").read_text().splitlines()
    assert "cff-version: 1.2.0" in lines
    assert f"version: {lp.__version__}" in lines
