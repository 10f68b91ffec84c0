"""Sentences, weights, knockdowns and runs by (cell type, drug, dose, time)."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from tests.support.drug_screen import (
    COVARIATES,
    VEHICLE,
    convert,
    groups_of,
    labels_of,
    pipeline,
)
from tests.support.stores import read_store


class TestSentences:
    @pytest.mark.parametrize("door", ["store", "regrouped", "by plate"])
    def test_are_pure_by_drug_dose_and_time(self, store, plain_store, door):
        options = {"covariates": COVARIATES} if door == "regrouped" else {}
        options |= {"mapping_strategy": "batch"} if door == "by plate" else {}
        path = plain_store if door == "regrouped" else store
        result, obs = pipeline(path, split_mode="random", **options), read_store(path).obs
        loader = result.loader("train", sentence_size=5, sentences_per_batch=4, to="numpy")
        columns = ("cell_type", "drug", *COVARIATES, *(["plate"] if door == "by plate" else []))
        labels, visited, seen = np.array(labels_of(obs, columns)), [], set()
        for batch in loader:
            for rows in batch.row.reshape(-1, 5):
                found = {tuple(row) for row in labels[rows]}
                assert len(found) == 1
                seen |= found
            table = loader.conditions.to_numpy()
            assert (table[batch.condition_code] == labels[batch.row][:, 2:4]).all()
            visited += batch.row[~batch.is_padding].tolist()
            assert (obs["drug"].iloc[batch.control_row.ravel()] == VEHICLE).all()
            types = obs["cell_type"].to_numpy(dtype=object)
            assert (types[batch.control_row[:, 0]] == types[batch.row]).all()
        assert sorted(visited) == sorted(np.asarray(result.train_indices).tolist())  # every cell once
        trained = labels_of(obs.iloc[np.asarray(result.train_indices)], columns)
        assert seen == set(trained)

    def test_sampler_and_doors_agree(self, store, plain_store):
        options = {"sentence_size": 5, "sentences_per_batch": 2}
        names = []
        for path, covariates in ((store, None), (plain_store, COVARIATES)):
            result = pipeline(path, covariates=covariates, **options)
            index = read_store(path).obs_names
            rows = np.asarray(result.train_indices)
            names.append([index[rows[batch]].tolist() for batch in result.train_sampler])
        assert names[0] == names[1]

    def test_held_out_conditions_are_evaluated_with_vehicle_cells(self, store, obs):
        result = pipeline(store, split_mode="heldout", by="dose", test=(10,))
        rows = np.concatenate([batch.row[~batch.is_padding] for batch in result.loader("test", sentence_size=8)])
        known = obs["cell_type"].notna() & obs["drug"].notna()
        assert sorted(rows.tolist()) == np.flatnonzero(known & (obs["dose"] == 10)).tolist()

    def test_balance_counts_conditions(self, store, obs):
        result = pipeline(store, split_mode="random")
        trained = obs.iloc[np.asarray(result.train_indices)]
        per_epoch = {}
        for balance in ("group", "perturbation"):
            seen = Counter()
            loader = result.loader("train", sentence_size=1, balance=balance, n_basal_samples=1)
            for _ in range(10):
                for batch in loader:
                    seen.update(np.asarray(batch.row).tolist())
            per_epoch[balance] = pd.Series(Counter(seen)).reindex(range(len(obs)), fill_value=0)
        key = np.array(["/".join(labels) for labels in labels_of(obs)])
        by_group = per_epoch["group"].groupby(key).sum()
        by_group = by_group[by_group > 0]
        assert len(by_group) == len(groups_of(trained))
        assert by_group.max() - by_group.min() <= 10  # one sentence an epoch
        by_drug = per_epoch["perturbation"].groupby(obs["drug"].to_numpy()).sum()
        n_groups = pd.Series([labels[1] for labels in groups_of(trained)]).value_counts()
        assert by_drug.max() - by_drug.min() <= 10 * n_groups.max()
        assert by_drug.max() / by_drug.min() < 1.2

    def test_weights_are_those_of_perturbations_in_any_number_of_conditions(self, store, obs):
        result = pipeline(store, split_mode="random")
        loader = result.loader("train", sentence_size=1, weights={"A": 1, VEHICLE: 1})
        seen = Counter()
        for _ in range(10):
            for batch in loader:
                seen.update(obs["drug"].iloc[np.asarray(batch.row)].tolist())
        assert set(seen) == {"A", VEHICLE}
        assert seen["A"] / seen[VEHICLE] == pytest.approx(1, rel=0.05)

    def test_knockdown_verdicts_stay_by_perturbation(self, screen, tmp_path):
        adata = screen.copy()
        adata.var_names = ["A", "B", "C", "g3", "g4", "g5"]
        with_covariates = convert(adata, tmp_path / "with.zarr")
        without = convert(adata, tmp_path / "without.zarr", ())
        options = {"residual_expression": 1.0, "cell_residual_expression": 1.0, "min_cells": 1}
        for match in ("all", "cell_type", "batch"):
            found, expected = (
                lp.open(path).pert.knockdown(control_match=match, **options) for path in (with_covariates, without)
            )
            pd.testing.assert_frame_equal(found.table, expected.table)


def test_runs_with_covariates_are_reproduced(store, tmp_path):
    result = pipeline(store, split_mode="heldout", by=("perturbation", "dose"), test=(("A", 10),))
    loader = result.loader("train", sentence_size=4)
    lp.save_run(tmp_path / "run.json", result, [loader])
    run = lp.load_run(tmp_path / "run.json")
    assert run.result.source.groups.roles.covariates == COVARIATES
    assert run.result.splits.digest == result.splits.digest
