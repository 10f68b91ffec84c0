"""Covariates at every door: groups, tables, selections, splits and sentences by (cell type, drug, dose, time)."""

import subprocess
import sys
from collections import Counter
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
from lazypert.errors import ColumnNotFoundError, ConfigError, LabelNotFoundError
from lazypert.screen.roles import Roles
from lazypert.store.store import Store
from tests.support.drug_screen import (
    COVARIATES,
    DOSES,
    ROLES,
    TIMES,
    VEHICLE,
    drug_screen,
    groups_of,
    labels_of,
)
from tests.support.stores import no_sync, read_store  # noqa: F401

SPLITS = ("train", "valid", "test")


def convert(adata, path, covariates=COVARIATES, **options):
    file = path.with_suffix(".h5ad")
    adata.write_h5ad(file)
    return lp.convert(file, path, **(ROLES | {"covariates": covariates, "progress": False} | options))


@pytest.fixture(scope="module")
def screen():
    return drug_screen()


@pytest.fixture(scope="module")
def store(screen, tmp_path_factory):
    return convert(screen, tmp_path_factory.mktemp("with") / "screen.zarr")


@pytest.fixture(scope="module")
def plain_store(screen, tmp_path_factory):
    return convert(screen, tmp_path_factory.mktemp("without") / "screen.zarr", covariates=())


@pytest.fixture(scope="module")
def obs(store):
    """The obs table in the order of the store's rows."""
    return read_store(store).obs


def pipeline(screen, **options):
    return PerturbationPipeline(PerturbationPipelineConfig(**(ROLES | options))).setup(screen)


def named_groups(groups, names):
    """Names of the cells of each group, by its labels."""
    found = {}
    for run in np.flatnonzero(groups.ids >= 0):
        labels = tuple(str(groups.labels[axis][groups.codes[axis][run]]) for axis in ("cell_type", "perturbation"))
        labels += tuple(str(texts[groups.condition[run]]) for texts in groups.conditions.labels.values())
        found.setdefault(labels, set()).update(names[groups.rows(np.array([run]))[:]])
    return found


def members(rows, names):
    return set(np.asarray(names)[np.asarray(rows)])


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


class TestCommandLine:
    def test_convert_and_info(self, screen, store, tmp_path):
        screen.write_h5ad(tmp_path / "s.h5ad")
        arguments = ["--pert-col", "drug", "--control-pert", VEHICLE, "--cell-type-col", "cell_type"]
        arguments += ["--batch-col", "plate", "--covariate", "dose", "--covariate", "time"]
        command = [sys.executable, "-m", "lazypert"]
        subprocess.run([*command, "convert", "s.h5ad", "s.zarr", *arguments], cwd=tmp_path, check=True)
        assert Store(tmp_path / "s.zarr").content_digest == Store(store).content_digest
        shown = subprocess.run([*command, "info", "s.zarr"], cwd=tmp_path, check=True, capture_output=True, text=True)
        n_conditions = len(set(labels_of(screen.obs, COVARIATES)))
        assert f"covariates     dose, time ({n_conditions} conditions)" in shown.stdout
        lines = [line.split() for line in shown.stdout.splitlines()]
        assert ["cell", "type", "perturbation", "dose", "time", "cells", "batches"] in lines
        group = groups_of(screen.obs)["T", "A", str(DOSES[0]), str(TIMES[0])]
        assert ["T", "A", str(DOSES[0]), str(TIMES[0]), str(len(group))] in [line[:5] for line in lines]


def test_runs_with_covariates_are_reproduced(store, tmp_path):
    result = pipeline(store, split_mode="heldout", by=("perturbation", "dose"), test=(("A", 10),))
    loader = result.loader("train", sentence_size=4)
    lp.save_run(tmp_path / "run.json", result, [loader])
    run = lp.load_run(tmp_path / "run.json")
    assert run.result.source.groups.roles.covariates == COVARIATES
    assert run.result.splits.digest == result.splits.digest
