"""Groups and their tables are those of pandas by cell type, drug, dose and time."""

import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert.store.store import Store
from tests.support.drug_screen import (
    COVARIATES,
    TIMES,
    VEHICLE,
    convert,
    groups_of,
    labels_of,
    named_groups,
)
from tests.support.stores import read_store


class TestGroups:
    def test_groups_are_those_of_pandas(self, store, screen, obs):
        groups = lp.open(store).pert.groups
        expected = groups_of(screen.obs)
        assert named_groups(groups, obs.index.to_numpy()) == expected
        assert len(groups) == len(expected) == Store(store).attrs["summary"]["n_groups"]
        assert any(labels[2] == "" and labels[1] != VEHICLE for labels in expected)  # a drug without a dose

    def test_rows_are_sorted_by_condition(self, store, obs):
        is_labelled = obs[["cell_type", "drug"]].notna().all(axis=1)
        labels = [texts for texts, known in zip(labels_of(obs), is_labelled, strict=True) if known]
        assert labels == sorted(labels)

    def test_table_has_a_column_per_covariate(self, store, screen):
        table = lp.open(store).pert.table()
        columns = ["cell_type", "perturbation", "dose", "time", "n_cells", "n_batches", "is_control"]
        assert table.columns.tolist() == columns
        counts = {labels: len(names) for labels, names in groups_of(screen.obs).items()}
        assert {tuple(row[:4]): row[4] for row in table.to_numpy()} == counts
        plate = screen.obs["plate"].astype(object).fillna("missing")
        frame = screen.obs.assign(plate=plate, key=labels_of(screen.obs))
        n_batches = frame.groupby("key")["plate"].nunique()
        assert all(n_batches[tuple(row[:4])] == row[5] for row in table.to_numpy())
        assert (table["is_control"] == (table["perturbation"] == VEHICLE)).all()
        doses = [float(text) for text in table.query("cell_type == 'T' and perturbation == 'A' and dose != ''")["dose"]]
        assert doses == sorted(doses)  # 10 comes after 1, not before 0.5

    @pytest.mark.parametrize("order", ["grouped", "source"])
    def test_regrouping_equals_converting(self, screen, store, plain_store, obs, order, tmp_path):
        other = plain_store if order == "grouped" else convert(screen, tmp_path / "s.zarr", (), order="source")
        expected, found = lp.open(store).pert, lp.open(other).pert.regroup(covariates=COVARIATES)
        names = read_store(other).obs_names.to_numpy()
        assert named_groups(found, names) == named_groups(expected.groups, obs.index.to_numpy())
        pd.testing.assert_frame_equal(found.table(), expected.table())
        assert found.conditions.table().equals(expected.groups.conditions.table())
        in_order = [names[found.rows(np.array([run]))[:]].tolist() for run in range(len(found.start))]
        stored = expected.groups
        rows = [stored.rows(np.array([run]))[:] for run in range(len(stored.start))]
        assert in_order == [obs.index[mine].tolist() for mine in rows]

    def test_regrouping_without_covariates_equals_a_store_without(self, store, plain_store):
        found = lp.open(store).pert.regroup(covariates=())
        pd.testing.assert_frame_equal(found.table(), lp.open(plain_store).pert.table())
        assert found.condition.tolist() == [0] * len(found.start)

    def test_a_selection_has_the_same_conditions(self, store, screen, obs):
        rows = np.random.default_rng(1).permutation(len(obs))[:100]
        found = lp.open(store).isel(cell=rows).pert.groups
        assert named_groups(found, obs.index.to_numpy()) == groups_of(obs.iloc[rows])
        expected = lp.open(store).pert.groups.conditions
        assert found.conditions.table().equals(expected.table())  # codes stay those of the whole screen

    @pytest.mark.parametrize(
        "dtype",
        [
            lambda dose: dose.astype("f4"),
            lambda dose: pd.Categorical(dose),
            lambda dose: pd.Categorical([None if np.isnan(d) else f"{d:g}" for d in dose]),
            lambda dose: pd.array([None if np.isnan(d) else f"{d:g}" for d in dose], dtype="string"),
        ],
        ids=["float32", "numbers", "categories", "text"],
    )
    def test_numbers_and_text_are_the_same_labels(self, screen, store, dtype, tmp_path):
        other = screen.copy()
        other.obs["dose"] = dtype(screen.obs["dose"].to_numpy())
        other.strings_to_categoricals()
        found = lp.open(convert(other, tmp_path / "other.zarr")).pert.table()
        pd.testing.assert_frame_equal(found, lp.open(store).pert.table())

    def test_only_covariates_group_cells_too(self, screen, tmp_path):
        roles = {"pert_col": None, "control_pert": None, "cell_type_col": None, "batch_col": None}
        path = convert(screen, tmp_path / "other.zarr", "time", **roles)
        table = lp.open(path).pert.table()
        assert dict(zip(table["time"], table["n_cells"], strict=True)) == {
            str(time): int((screen.obs["time"] == time).sum()) for time in TIMES
        }

    def test_of_a_screen_without_cells(self, screen, tmp_path):
        found = lp.open(convert(screen[:0].copy(), tmp_path / "none.zarr", control_pert=None)).pert
        assert len(found.table()) == 0
        assert len(found.regroup(covariates="time")) == 0
