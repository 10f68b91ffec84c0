"""Datasets in one pipeline may have columns, control labels and combinations of their own."""

from __future__ import annotations

import numpy as np
import pytest

import lazypert as lp
from lazypert.errors import ConfigError
from lazypert.pipeline import PerturbationPipeline, PerturbationPipelineConfig
from tests.support.screens import make_screen, write_screen

N = 6


def screen(folder, name, labels, pert_col="perturbation", cell_type_col="cell_type"):
    columns = {pert_col: np.repeat(labels, N).tolist(), cell_type_col: ["T"] * (N * len(labels))}
    counts = np.random.default_rng(len(name)).poisson(3.0, (N * len(labels), 4))
    adata = make_screen(columns, counts, genes=["A", "B", "C", "D"])
    adata.obs_names = [f"{name}-{cell}" for cell in adata.obs_names]
    return write_screen(adata, folder / f"{name}.h5ad")


REPLOGLE = {"pert_col": "gene", "cell_type_col": "cell_line", "control_pert": "NT"}
EXPECTED = {
    ("adamson", "A"): N,
    ("adamson", "ctrl"): N,
    ("replogle", "A"): N,
    ("replogle", "B"): N,
    ("replogle", "NT"): N,
}


@pytest.fixture
def files(tmp_path):
    adamson = screen(tmp_path, "adamson", ["ctrl", "A"])
    return adamson, screen(tmp_path, "replogle", ["NT", "A", "B"], "gene", "cell_line")


@pytest.fixture
def toml(files, tmp_path):
    path = tmp_path / "e.toml"
    path.write_text(
        '[datasets]\nadamson = "adamson.h5ad"\n'
        '[datasets.replogle]\npath = "replogle.h5ad"\npert_col = "gene"\ncell_type_col = "cell_line"\n'
        'control_pert = "NT"\n[training]\nadamson = "train"\nreplogle = "train"\n'
    )
    return path


def config(**options):
    return PerturbationPipelineConfig(**{"control_pert": "ctrl", "batch_col": None, "sentence_size": 3, **options})


def cells_of(source):
    """Number of cells of each (dataset, perturbation)."""
    groups, found = source.groups, {}
    for run, size in enumerate(groups.sizes):
        key = tuple(str(groups.labels[axis][groups.codes[axis][run]]) for axis in ("dataset", "perturbation"))
        found[key] = found.get(key, 0) + int(size)
    return found


def check(result):
    source = result.source
    assert cells_of(source) == EXPECTED
    names = source.get_pert_categories()
    assert names[source.groups.is_control_code].tolist() == ["NT", "ctrl"]
    assert source.get_control_mask().sum() == 2 * N
    dataset = source.groups.expand(source.groups.codes["dataset"])
    for batch in result.loader("train", to="numpy", threads=1):
        assert (dataset[batch.control_row] == dataset[batch.row][:, None]).all()
        assert source.get_control_mask()[batch.control_row].all()


def test_in_an_experiment_file(toml):
    check(PerturbationPipeline(config()).setup_experiment(toml))


def test_an_experiment_file_is_saved_with_its_roles(toml, tmp_path):
    experiment = lp.load_experiment_config(toml)
    assert experiment.dataset_roles("replogle") == REPLOGLE
    assert experiment.dataset_roles("adamson") == {}
    experiment.save_config(tmp_path / "copy.toml")
    assert lp.load_experiment_config(tmp_path / "copy.toml") == experiment


def test_as_sources(files):
    sources = [
        lp.PerturbationAnnDataSource(config().source_config(files[0])),
        lp.PerturbationAnnDataSource(lp.PerturbationSourceConfig(file_path=files[1], batch_col=None, **REPLOGLE)),
    ]
    check(PerturbationPipeline(config()).setup(sources))
    alone = PerturbationPipeline(config()).setup(sources[1])
    assert alone.source is sources[1]


def test_as_stores_that_know_their_roles(files, tmp_path):
    stores = [
        lp.convert(
            files[0], tmp_path / "adamson.zarr", pert_col="perturbation", cell_type_col="cell_type", control_pert="ctrl"
        ),
        lp.convert(files[1], tmp_path / "replogle.zarr", **REPLOGLE),
    ]
    check(PerturbationPipeline(config(control_pert="non-targeting")).setup(stores))


def test_a_run_of_them_is_reproduced(toml, tmp_path):
    result = PerturbationPipeline(config()).setup_experiment(toml)
    loader = result.loader("train", to="numpy", threads=1)
    batches = [batch.counts for batch in loader]
    lp.save_run(tmp_path / "run.json", result, loader)
    run = lp.load_run(tmp_path / "run.json")
    again = [batch.counts for batch in run.loaders[0]]
    assert len(again) == len(batches)
    assert all(np.array_equal(a, b) for a, b in zip(again, batches, strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[datasets.a]\nfile = "a.h5ad"', r"datasets\.\"a\"\]: got no path"),
        ('[datasets.a]\npath = "a.h5ad"\npert_column = "x"', r"got the key 'pert_column'.*Did you mean 'pert_col'"),
        ('[datasets.a]\npath = "a.h5ad"\ncontrol_pert = []', r"control_pert: got \[\]"),
        ('[datasets.a]\npath = "a.h5ad"\npert_col = 1', r"pert_col: got 1, expected text"),
    ],
)
def test_roles_that_make_no_sense_are_refused(tmp_path, text, message):
    path = tmp_path / "e.toml"
    path.write_text(f'{text}\n[training]\na = "train"\n')
    with pytest.raises(ConfigError, match=message):
        lp.load_experiment_config(path)


def test_a_control_of_one_dataset_cannot_be_a_perturbation_of_another(files, tmp_path):
    other = screen(tmp_path, "other", ["A", "B"])
    sources = [
        lp.PerturbationAnnDataSource(config(control_pert=label).source_config(path))
        for path, label in ((files[0], "ctrl"), (other, "A"))
    ]
    with pytest.raises(ConfigError, match="'A' for one screen, but it is a perturbation in another"):
        PerturbationPipeline(config()).setup(sources)
