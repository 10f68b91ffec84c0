"""Selections and splits by covariates."""

import numpy as np
import pytest

import lazypert as lp
from lazypert import PerturbationConcatSource, PerturbationPipeline, PerturbationPipelineConfig
from lazypert.errors import ConfigError, LabelNotFoundError
from tests.support.drug_screen import (
    COVARIATES,
    VEHICLE,
    convert,
    groups_of,
    members,
    pipeline,
)

SPLITS = ("train", "valid", "test")


class TestSelect:
    @pytest.mark.parametrize(
        ("wanted", "chosen"),
        [
            ({"dose": ("10",), "time": 24}, lambda o: (o["dose"] == 10) & (o["time"] == 24)),
            ({"dose": [0.5, 1]}, lambda o: o["dose"].isin([0.5, 1])),
            ({"dose": None}, lambda o: o["dose"].isna()),
            ({"time": "6"}, lambda o: o["time"] == 6),
        ],
    )
    def test_equals_pandas(self, store, obs, wanted, chosen):
        ds = lp.open(store)
        found = ds.pert.select(perturbation=("A", VEHICLE), covariates=wanted)
        expected = obs.index[chosen(obs) & obs["drug"].isin(["A", VEHICLE])]
        assert found.cell_name.to_numpy().tolist() == expected.tolist()

    def test_unknown_labels_and_covariates(self, store, plain_store):
        with pytest.raises(LabelNotFoundError, match=r"^covariates\['dose'\]: got '7'"):
            lp.open(store).pert.select(covariates={"dose": 7})
        with pytest.raises(ConfigError, match=r"^covariates: got 'dose', expected a covariate of this screen \(none\)"):
            lp.open(plain_store).pert.select(covariates={"dose": 1})


class TestSplits:
    def test_random_splits_are_even_in_each_condition(self, store, obs):
        splits = lp.open(store).pert.split("random", train_frac=0.6, valid_frac=0.2)
        for labels, names in groups_of(obs).items():
            for split, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
                n = len(members(splits[split], obs.index) & names)
                assert abs(n - share * len(names)) < 2, (labels, split)
        sizes = [len(splits[split]) for split in SPLITS]
        n_cells = sum(map(len, groups_of(obs).values()))
        assert np.cumsum(sizes).tolist() == [int(n_cells * 0.6 + 1e-9), int(n_cells * 0.8 + 1e-9), n_cells]

    def test_a_split_does_not_depend_on_the_door(self, store, plain_store):
        expected = lp.open(store).pert.split("random")
        regrouped = pipeline(plain_store, covariates=COVARIATES).splits
        assert regrouped.digest == expected.digest
        assert pipeline(plain_store).splits.digest != expected.digest

    def test_holding_out_a_dose(self, store, obs):
        splits = lp.open(store).pert.split("heldout", by="dose", test=(10,), valid=("1",))
        known = obs["cell_type"].notna() & obs["drug"].notna()
        is_vehicle = obs["drug"] == VEHICLE
        assert members(splits["test"], obs.index) == set(obs.index[known & (obs["dose"] == 10)])
        assert members(splits["valid"], obs.index) == set(obs.index[known & (obs["dose"] == 1)])
        trains = known & ((obs["dose"] == 0.5) | is_vehicle)  # a drug without a dose is in no split
        assert members(splits["train"], obs.index) == set(obs.index[trains])

    def test_vehicle_cells_with_a_label_go_where_it_goes(self, store, obs):
        splits = lp.open(store).pert.split("heldout", by="time", test=(24,))
        known = obs["cell_type"].notna() & obs["drug"].notna()
        assert members(splits["test"], obs.index) == set(obs.index[known & (obs["time"] == 24)])
        both = lp.open(store).pert.split("heldout", by=("dose", "time"), test=((10, 24),))
        assert members(both["test"], obs.index) == set(obs.index[known & (obs["time"] == 24) & (obs["dose"] == 10)])
        assert set(obs.index[known & (obs["drug"] == VEHICLE)]) <= members(both["train"], obs.index)

    def test_holding_out_a_drug_at_a_dose(self, store, obs):
        splits = lp.open(store).pert.split("heldout", by=("perturbation", "dose"), test=(("A", 10), ("B", "0.5")))
        known = obs["cell_type"].notna()
        is_test = ((obs["drug"] == "A") & (obs["dose"] == 10)) | ((obs["drug"] == "B") & (obs["dose"] == 0.5))
        assert members(splits["test"], obs.index) == set(obs.index[known & is_test])
        assert set(obs.index[known & (obs["drug"] == VEHICLE)]) <= members(splits["train"], obs.index)

    def test_a_covariate_and_a_column_hold_out_the_same_cells(self, store, plain_store, obs):
        options = {"by": ("perturbation", "dose"), "test": 0.3, "valid": 0.2}
        declared = lp.open(store).pert.split("heldout", **options)
        read = lp.open(plain_store).pert.split("heldout", **options)
        assert declared.digest == read.digest

    def test_a_held_out_drug_holds_out_all_of_its_conditions(self, store, obs):
        splits = lp.open(store).pert.split("fewshot", held_out_perturbations=("A",))
        expected = set(obs.index[(obs["drug"] == "A") & obs["cell_type"].notna()])
        assert members(splits["test"], obs.index) == expected
        splits = lp.open(store).pert.split("heldout", by="perturbation", test=("A",))
        assert members(splits["test"], obs.index) == expected

    def test_small_groups_are_those_of_one_condition(self, store, obs):
        least = int(np.median([len(names) for names in groups_of(obs).values()]))
        splits = lp.open(store).pert.split("random", min_cells_per_group=least)
        kept = set().union(*(members(splits[split], obs.index) for split in SPLITS))
        groups = groups_of(obs).items()
        assert kept == set().union(*(names for k, names in groups if len(names) >= least or k[1] == VEHICLE))


def test_a_dose_is_held_out_whatever_its_precision(screen, tmp_path):
    sources = []
    for dtype in ("f4", "f8"):
        other = screen.copy()
        other.obs["dose"] = other.obs["dose"].replace(1.0, 0.1).astype(dtype)
        other.obs_names = [f"{dtype}-{name}" for name in other.obs_names]
        sources.append(lp.open(convert(other, tmp_path / f"{dtype}.zarr")).pert.source())
    both = PerturbationConcatSource(sources)
    assert both.groups.conditions.levels["dose"].tolist() == ["0.1", "0.5", "10"]
    splits = PerturbationPipeline(PerturbationPipelineConfig(split_mode="heldout", by="dose", test=(0.1,)))
    splits = splits.setup(sources).splits
    rows = splits.test_indices[:]
    assert np.unique(both.read_obs("dose", rows).astype("f4")).tolist() == [np.float32(0.1)]
    known = screen.obs["cell_type"].notna() & screen.obs["drug"].notna()
    assert len(rows) == 2 * (known & (screen.obs["dose"] == 1.0)).sum()
