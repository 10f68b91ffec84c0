"""Covariates of sources, their elements, and experiment files."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import lazypert as lp
from lazypert import (
    PerturbationAnnDataSource,
    PerturbationConcatSource,
    PerturbationPipeline,
    PerturbationPipelineConfig,
    PerturbationSourceConfig,
)
from lazypert.errors import ConfigError
from tests.support.drug_screen import (
    COVARIATES,
    ROLES,
    convert,
    drug_screen,
    groups_of,
    labels_of,
    named_groups,
    pipeline,
)


class TestSources:
    def test_the_store_says_what_its_covariates_are(self, store, plain_store):
        def covariates(path, **options):
            source = PerturbationAnnDataSource(PerturbationSourceConfig(file_path=path, **(ROLES | options)))
            return source.groups.roles.covariates

        assert covariates(store) == COVARIATES
        assert covariates(store, covariates=()) == ()
        assert covariates(store, covariates="time") == ("time",)
        assert covariates(plain_store) == ()
        assert covariates(plain_store, covariates=["dose", "time"]) == COVARIATES
        assert covariates(store, pert_col="plate", batch_col=None, control_pert="p1") == COVARIATES

    def test_doors_agree(self, screen, store, plain_store, tmp_path):
        screen.write_h5ad(tmp_path / "screen.h5ad")
        expected = lp.open(store).pert.table()
        config = PerturbationSourceConfig(file_path=tmp_path / "screen.h5ad", covariates=COVARIATES, **ROLES)
        for source in (
            PerturbationAnnDataSource(config),  # converts the file
            PerturbationAnnDataSource(config),  # opens what the first has converted
            PerturbationAnnDataSource(replace(config, file_path=plain_store)),
            lp.open(plain_store).pert.source(covariates=COVARIATES),
            lp.open(store).pert.source(),
            pipeline(plain_store, covariates=COVARIATES).source,
            pipeline(lp.open(plain_store), covariates=COVARIATES).source,
            pipeline(lp.open(store)).source,
        ):
            pd.testing.assert_frame_equal(source.groups.table(), expected)
        entry = xr.open_dataset(store, engine="lazypert")
        pd.testing.assert_frame_equal(entry.pert.table(), expected)
        assert entry.attrs["covariates"] == [*COVARIATES]
        assert PerturbationAnnDataSource(replace(config, covariates=None)).groups.roles.covariates == ()

    def test_elements_say_their_condition(self, store, obs):
        source = lp.open(store).pert.source()
        batch = source.batch(np.arange(len(obs)))
        labels = labels_of(obs, COVARIATES)
        assert [tuple(row) for row in batch["condition_name"]] == labels
        assert [tuple(row) for row in source.conditions.to_numpy()[batch["condition_code"]]] == labels
        assert tuple(source.element(7)["condition_name"]) == labels[7]
        assert source.get_condition_codes().tolist() == batch["condition_code"].tolist()
        assert source.get_var_dims()["n_conditions"] == len(set(labels))
        ids = source.get_group_codes()
        assert len(set(ids[ids >= 0])) == len(source.groups)

    def test_without_covariates_elements_are_as_before(self, plain_store):
        source = lp.open(plain_store).pert.source()
        assert not [name for name in source.element(0) if "condition" in name]
        assert "n_conditions" not in source.get_var_dims()
        assert pipeline(plain_store).loader("train", sentence_size=4).source is not None
        batch = next(iter(pipeline(plain_store).loader("train", sentence_size=4)))
        assert batch.condition_code is None

    def test_screens_with_the_same_covariates_are_concatenated(self, tmp_path):
        parts = [drug_screen(200, seed, prefix=f"s{seed}_") for seed in (1, 2)]
        parts[1].obs["dose"] *= 3
        paths = [convert(part, tmp_path / f"{name}.zarr") for part, name in zip(parts, "ab", strict=True)]
        sources = [lp.open(path).pert.source() for path in paths]
        source = PerturbationConcatSource(sources)
        names = source.obs_names(np.arange(source.n_rows))
        together = pd.concat([part.obs for part in parts])
        assert named_groups(source.groups, names) == groups_of(together)
        batch = source.batch(np.arange(source.n_rows))
        assert [tuple(row) for row in batch["condition_name"]] == labels_of(together.loc[names], COVARIATES)
        other = lp.open(paths[1]).pert.source(covariates="dose")
        with pytest.raises(ConfigError, match=r"^covariates: got .*, expected the same"):
            PerturbationConcatSource([sources[0], other])

    def test_experiment_files_name_covariates(self, tmp_path):
        for name, seed in (("a", 1), ("b", 2)):
            drug_screen(200, seed).write_h5ad(tmp_path / f"{name}.h5ad")
        lines = ["[datasets]", *(f'{n} = {{ path = "{n}.h5ad", covariates = ["dose", "time"] }}' for n in "ab")]
        (tmp_path / "e.toml").write_text("\n".join([*lines, "[training]", 'a = "train"', 'b = "train"', ""]))
        experiment = lp.load_experiment_config(tmp_path / "e.toml")
        assert experiment.dataset_roles("a") == {"covariates": COVARIATES}
        config = PerturbationPipelineConfig(**ROLES)
        result = PerturbationPipeline(config).setup_experiment(experiment)
        assert result.source.groups.roles.covariates == COVARIATES
        experiment.save_config(tmp_path / "again.toml")
        assert lp.load_experiment_config(tmp_path / "again.toml") == experiment
