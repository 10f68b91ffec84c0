"""Splits are made of sources and of Datasets; anything else is refused with advice."""

import numpy as np
import pytest

import lazypert as lp
from lazypert import PerturbationPipeline, PerturbationPipelineConfig, RandomSplitter, SplitResult
from lazypert.errors import ConfigError
from tests.support.screens import make_screen, write_screen


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A screen whose columns have names of their own, besides one that has the default name."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("screen")
    adata = make_screen(
        {
            "guide": np.array(["ctrl", "g1", "g2"])[rng.integers(0, 3, 90)].tolist(),
            "line": np.array(["K", "R"])[rng.integers(0, 2, 90)].tolist(),
            "perturbation": np.array(["non-targeting", "G"])[rng.integers(0, 2, 90)].tolist(),
        }
    )
    path = write_screen(adata, folder / "s.h5ad")
    return lp.convert(path, folder / "s.zarr", pert_col="guide", cell_type_col="line", control_pert="ctrl")


def test_datasets_are_sources_of_cells(store, tmp_path):
    ds = lp.open(store)
    split = RandomSplitter().split(ds)
    assert split == ds.pert.split("random")
    split.save(tmp_path / "split.csv")
    assert SplitResult.load(tmp_path / "split.csv", ds) == split
    assert split.move_to(lp.open(store)) == split
    assert SplitResult.from_column(ds, "line", {"K": "train", "R": "test"}).n_in_no_split == 0


@pytest.mark.parametrize("source", ["s.zarr", None, 3])
def test_other_things_are_refused(source):
    with pytest.raises(ConfigError, match=r"source: got .*, expected a PerturbationSource or a Dataset"):
        RandomSplitter().split(source)


def test_a_pipeline_of_a_dataset_takes_the_roles_of_its_store(store):
    ds = lp.open(store)
    result = PerturbationPipeline(PerturbationPipelineConfig()).setup(ds)
    assert result.source.groups.labels["perturbation"].tolist() == ["ctrl", "g1", "g2"]
    assert result.splits == ds.pert.split("random")
    other = PerturbationPipelineConfig(pert_col="line", control_pert="K", cell_type_col="perturbation")
    changed = PerturbationPipeline(other).setup(ds)
    assert changed.source.groups.labels["perturbation"].tolist() == ["K", "R"]


def test_holding_out_every_cell_type_is_an_error(store):
    with pytest.raises(ConfigError, match=r"held_out_cell_types: got \('K', 'R'\), which are all cell types"):
        lp.open(store).pert.split("zeroshot", held_out_cell_types=("K", "R"))
