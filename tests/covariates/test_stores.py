"""Covariates in conversion, in stores and on the command line."""

import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert import (
    PerturbationAnnDataSource,
    PerturbationSourceConfig,
)
from lazypert._cli import main
from lazypert.errors import ColumnNotFoundError, ConfigError
from lazypert.screen.roles import Roles
from lazypert.store.store import Store
from tests.support.drug_screen import (
    COVARIATES,
    DOSES,
    ROLES,
    TIMES,
    VEHICLE,
    convert,
    drug_screen,
    groups_of,
    labels_of,
    named_groups,
)
from tests.support.stores import read_store


class TestStore:
    def test_without_covariates_nothing_is_recorded(self, plain_store):
        store = Store(plain_store)
        assert "covariates" not in store.attrs["roles"]
        assert "n_conditions" not in store.attrs["summary"]
        assert not any("condition" in entry.key for entry in store.read_manifest())
        assert store.roles.covariates == ()

    def test_covariates_are_roles(self, store):
        assert Store(store).attrs["roles"]["covariates"] == [*COVARIATES]
        assert Store(store).roles == Roles(**ROLES, covariates=COVARIATES)
        assert lp.verify(store) > 0

    def test_a_reader_that_does_not_know_a_role_refuses_the_store(self):
        with pytest.raises(ConfigError, match=r"^roles: got 'organoid', which this version of lazypert does not know"):
            Roles.from_json({"pert_col": "drug", "organoid": "x"})

    @pytest.mark.parametrize("covariates", [("dose", "dose"), ("",), 3, {"dose"}, (1,)])
    def test_names_that_are_not_columns(self, screen, covariates, tmp_path):
        with pytest.raises(ConfigError, match=r"^covariates: got "):
            convert(screen, tmp_path / "s.zarr", covariates)
        assert not (tmp_path / "s.zarr").exists()

    def test_unknown_column(self, screen, plain_store, tmp_path):
        with pytest.raises(ColumnNotFoundError, match=r"^covariates: got 'doze'.*Did you mean 'dose'"):
            convert(screen, tmp_path / "s.zarr", "doze")
        with pytest.raises(ColumnNotFoundError, match=r"^covariates: got 'doze'"):
            lp.open(plain_store).pert.regroup(covariates="doze")
        config = PerturbationSourceConfig(file_path=tmp_path / "s.h5ad", covariates="doze", **ROLES)
        with pytest.raises(ColumnNotFoundError, match=r"^covariates: got 'doze'"):
            PerturbationAnnDataSource(config)

    def test_several_files_in_one_store(self, tmp_path):
        parts = [drug_screen(200, seed, prefix=f"s{seed}_") for seed in (1, 2)]
        parts[1].obs["dose"] *= 3  # other conditions
        parts[1].obs["dataset"] = "x"
        for part, name in zip(parts, "ab", strict=True):
            part.write_h5ad(tmp_path / f"{name}.h5ad")
        files = [tmp_path / f"{name}.h5ad" for name in "ab"]
        covariates = ("dose", "dataset")
        parts[0].obs["dataset"] = "y"
        parts[0].write_h5ad(files[0])
        path = lp.convert(files, tmp_path / "s.zarr", **ROLES, covariates=covariates, progress=False)
        together = pd.concat([part.obs for part in parts])
        assert Store(path).roles.covariates == ("dose", "dataset_in_file")
        found = named_groups(lp.open(path).pert.groups, read_store(path).obs_names.to_numpy())
        assert found == groups_of(together, ("cell_type", "drug", "dose", "dataset"))

    def test_suspicious_covariates_are_noted(self, screen, tmp_path):
        other = screen.copy()
        other.obs["dose"] = [f"{dose:g}" for dose in screen.obs["dose"]]  # NaN becomes a text
        other.obs["measured"] = np.random.default_rng(0).random(len(screen))
        notes = Store(convert(other, tmp_path / "s.zarr", ("dose", "measured"))).attrs["warnings"]
        assert any(note.startswith("obs/dose: ") and "'nan', which is a label like any other" in note for note in notes)
        assert any(note.startswith("covariates: ") and "a measured value is not a condition" in note for note in notes)


class TestCommandLine:
    def test_convert_and_info(self, screen, store, tmp_path, monkeypatch, capsys):
        screen.write_h5ad(tmp_path / "s.h5ad")
        arguments = ["--pert-col", "drug", "--control-pert", VEHICLE, "--cell-type-col", "cell_type"]
        arguments += ["--batch-col", "plate", "--covariate", "dose", "--covariate", "time"]
        monkeypatch.chdir(tmp_path)
        assert main(["convert", "s.h5ad", "s.zarr", *arguments]) == 0
        assert Store(tmp_path / "s.zarr").content_digest == Store(store).content_digest
        capsys.readouterr()
        assert main(["info", "s.zarr"]) == 0
        shown = capsys.readouterr().out
        n_conditions = len(set(labels_of(screen.obs, COVARIATES)))
        assert f"covariates     dose, time ({n_conditions} conditions)" in shown
        lines = [line.split() for line in shown.splitlines()]
        assert ["cell", "type", "perturbation", "dose", "time", "cells", "batches"] in lines
        group = groups_of(screen.obs)["T", "A", str(DOSES[0]), str(TIMES[0])]
        assert ["T", "A", str(DOSES[0]), str(TIMES[0]), str(len(group))] in [line[:5] for line in lines]
