"""Matching by keys at every door: pipelines, loaders, Datasets, experiments, manifests; with stores on disk."""

import json
import pickle

import anndata
import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from benchmarks.fairness_statistics import measure, pairs_of
from lazypert import ControlMappingConfig, PerturbationPipeline, PerturbationPipelineConfig
from lazypert.errors import ColumnNotFoundError, ConfigError, EmptyPoolError, RunChangedError
from lazypert.run_manifest import _digest
from lazypert.simulate import NullScreenConfig, null_screen
from lazypert.splits.names import SPLITS
from tests.support.matching import matched_pool
from tests.support.screens import CONTROL, make_screen, write_screen

KEYS = ("donor", "plate")
ROLES = {"pert_col": "perturbation", "cell_type_col": "cell_type", "batch_col": "batch", "control_pert": CONTROL}
BATCHES = {"sentence_size": 8, "sentences_per_batch": 4, "to": "numpy"}


def keyed_screen(seed, n=400, name="cell"):
    """A screen with donors (text) and plates (numbers), some of which are missing."""
    rng = np.random.default_rng(seed)
    adata = make_screen(
        {
            "perturbation": rng.choice([CONTROL, CONTROL, "A", "B"], n).tolist(),
            "cell_type": rng.choice(["T", "U"], n).tolist(),
            "batch": rng.choice(["b1", "b2", "b3"], n).tolist(),
            "donor": np.where(rng.random(n) < 0.1, None, rng.choice(["x", "y", "z"], n).astype(object)).tolist(),
        },
        rng.poisson(2.0, (n, 6)),
    )
    adata.obs["plate"] = np.where(rng.random(n) < 0.1, np.nan, rng.integers(1, 7, n))
    adata.obs_names = [f"{name}{i}" for i in range(n)]
    return adata


def convert(folder, seed, *, order="grouped", name="screen", **options):
    path = write_screen(keyed_screen(seed, name=name), folder / f"{name}.h5ad")
    return lp.convert(path, folder / f"{name}-{order}.zarr", **ROLES, order=order, overwrite=True, **options)


def set_up(stores, **options):
    config = PerturbationPipelineConfig(train_frac=0.5, valid_frac=0.25, **{"match": KEYS} | options)
    return PerturbationPipeline(config).setup(stores)


def frame_of(source):
    """Labels of every store row, read cell by cell from the columns of obs."""
    rows = np.arange(source.n_rows)
    columns = ["perturbation", "cell_type", "batch", *KEYS]
    frame = pd.DataFrame({column: source.read_obs(column, rows) for column in columns})
    names = np.append(source.groups.labels["dataset"], None)
    return frame.assign(dataset=names[source.groups.expand(source.groups.codes["dataset"], source.n_rows)])


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keyed")
    return [convert(folder, seed, name=f"s{seed}", order="source" if seed else "grouped") for seed in (0, 1)]


SCREENS = {
    "grouped": lambda stores: stores[0],
    "in the file's order": lambda stores: stores[1],
    "both": lambda stores: stores,
    "a selection": lambda stores: lp.open(stores[1]).isel(cell=np.arange(0, 400, 3)[::-1]),
}


@pytest.mark.parametrize("screen", SCREENS.values(), ids=SCREENS)
@pytest.mark.parametrize("options", [{}, {"fixed_pairs": True}, {"memory_limit": "6KB"}], ids=str)
def test_loaders_match_by_the_labels(stores, screen, options):
    result = set_up(screen(stores))
    frame, levels = frame_of(result.source), set()
    for name in SPLITS:
        loader = result.loader(name, **BATCHES, n_basal_samples=2, **options)
        controls = np.asarray(loader.pools.controls)
        for row, drawn in pairs_of(loader):
            level, pool = matched_pool(frame, row, KEYS, controls)
            levels.add(level)
            assert set(drawn) <= pool
            assert len(set(drawn)) == min(2, len(pool))
    assert levels == {0, 1, 2}


@pytest.mark.parametrize("screen", SCREENS.values(), ids=SCREENS)
def test_mappings_and_reports_agree(stores, screen):
    result = set_up(screen(stores))
    frame, mapping = frame_of(result.source), result.control_mapping
    rows = np.sort(np.concatenate([np.asarray(result.splits[name]) for name in SPLITS]))
    rows = rows[(frame["perturbation"] != CONTROL).to_numpy()[rows]]
    table = result.control_coverage()
    assert len(rows) == len(mapping) == table["n_cells"].sum()
    counts = dict.fromkeys(range(3), 0)
    for row, (control,) in zip(rows, mapping, strict=True):
        (own,) = (np.asarray(result.splits[name]) for name in SPLITS if row in set(result.splits[name]))
        level, pool = matched_pool(frame, row, KEYS, own)
        counts[level] += 1
        assert control in pool
    totals = table[["matched_cell_type", "matched_donor", "matched_plate"]].sum().tolist()
    assert totals == [counts[0], counts[1], counts[2]]
    assert table["unmatched"].sum() == 0
    assert ("dataset" in table) == (len(result.source.groups.labels["dataset"]) > 1)
    delivered = sum(len(result.splits[name]) for name in SPLITS)
    assert result.control_coverage(map_controls=True)["n_cells"].sum() == delivered


def test_the_accessor_is_another_door_to_the_same(stores):
    ds = lp.open(stores[0])
    result = set_up(stores[0])
    mapping = ds.pert.match_controls(result.splits, match=KEYS)
    assert (mapping == result.control_mapping).all()
    table = ds.pert.control_coverage(result.splits, match=("cell_type", *KEYS))
    pd.testing.assert_frame_equal(table, result.control_coverage())
    whole = ds.pert.control_coverage(match=KEYS)
    assert "split" not in whole
    assert whole["n_cells"].tolist() == ds.pert.table().query("~is_control")["n_cells"].tolist()


def test_quality_control_leaves_cells_out_of_the_report(stores):
    result = set_up(stores[0])
    mask = np.arange(400) % 2 == 0
    result.knockdown = type("Passed", (), {"mask": mask})()
    frame = frame_of(result.source)
    assert result.control_coverage()["n_cells"].sum() == (mask & (frame["perturbation"] != CONTROL)).sum()


@pytest.mark.parametrize(
    ("limit", "fixed"),
    [
        ("64MiB", True),
        ("6KB", False),  # the pools do not fit
        pytest.param("64MiB", False, marks=pytest.mark.slow),
        pytest.param("6KB", True, marks=pytest.mark.slow),
    ],
)
def test_a_cell_meets_the_same_controls_whatever_the_hosts_threads_and_blocks(stores, limit, fixed):
    def loader_of(**options):
        return set_up(stores).loader(
            "train", **BATCHES | {"n_basal_samples": 2, "memory_limit": limit, "fixed_pairs": fixed} | options
        )

    expected = pairs_of(loader_of())
    assert (loader_of()._block_reader.reach is None) == (limit == "64MiB")
    for changes in ({"threads": 1}, {"threads": 4}, {"shuffle_size": 32}, {"sentences_per_batch": 1}):
        assert pairs_of(loader_of(**changes)) == expected
    hosts = [loader_of(host=host, n_hosts=3) for host in range(3)]
    assert set().union(*map(pairs_of, hosts)) == expected


def test_a_cell_meets_the_same_controls_whatever_the_order_of_the_store(tmp_path):
    found = []
    for order in ("grouped", "source"):
        loader = set_up(convert(tmp_path, 3, order=order)).loader("train", **BATCHES, n_basal_samples=2)
        names = loader.source.obs_names(np.arange(400))
        found.append({(names[row], *names[list(controls)]) for row, controls in pairs_of(loader)})
    assert found[0] == found[1]


def test_epochs_draw_other_controls_and_fixed_pairs_do_not(stores):
    loader = set_up(stores[0]).loader("train", **BATCHES)
    fixed = set_up(stores[0]).loader("train", **BATCHES, fixed_pairs=True)
    assert len(pairs_of(loader) & pairs_of(loader)) < 0.6 * len(loader.rows)
    assert pairs_of(fixed) == pairs_of(fixed)


class TestStrategyBatch:
    def test_equals_its_keys(self, stores):
        by_strategy, by_match = (
            set_up(stores[0], match=match, mapping_strategy=strategy)
            for match, strategy in ((None, "batch"), (("batch",), "random"))
        )
        assert (by_strategy.control_mapping == by_match.control_mapping).all()
        assert pairs_of(by_strategy.loader("train", **BATCHES)) == pairs_of(by_match.loader("train", **BATCHES))

    def test_makes_sentences_of_one_batch_with_further_keys_too(self, stores):
        result = set_up(stores[0], match=("batch", "donor"), mapping_strategy="batch")
        frame, loader = frame_of(result.source), result.loader("train", **BATCHES)
        for batch in loader:
            assert all(len(set(codes)) == 1 for codes in batch.batch_code.reshape(-1, 8).tolist())
        controls = np.asarray(loader.pools.controls)
        for row, drawn in pairs_of(loader):
            assert set(drawn) <= matched_pool(frame, row, ("batch", "donor"), controls)[1]


class TestFallbackError:
    def test_names_the_groups_and_the_report_counts_them(self, stores):
        result = set_up(stores[0], fallback="error")
        lacking = result.control_coverage(map_controls=True)
        n = (lacking["n_cells"] - lacking["matched_plate"])[lacking["split"] == "train"].sum()
        with pytest.raises(EmptyPoolError, match=rf"match: {n} cells have no control with the same cell_type, donor"):
            result.loader("train", **BATCHES)
        with pytest.raises(EmptyPoolError, match=r"\(T, A\)"):
            _ = result.control_mapping
        assert result.loader("train", **BATCHES, n_basal_samples=0) is not None

    def test_accepts_what_matches_completely(self, stores):
        ds = lp.open(stores[0])
        has_batch = ds.isel(cell=np.flatnonzero(ds["batch"].to_numpy() != "b3"))
        strict, lenient = (
            set_up(has_batch, match=("batch",), fallback=fallback).loader("train", **BATCHES)
            for fallback in ("error", "drop_last")
        )
        assert pairs_of(strict) == pairs_of(lenient)


class TestErrors:
    def test_name_the_column_and_similar_ones(self, stores):
        for screens in (stores[0], stores):
            with pytest.raises(ColumnNotFoundError, match=r"match: got 'donr', expected an obs column .*'donor'"):
                set_up(screens, match=("donr",))
        with pytest.raises(ColumnNotFoundError, match="match: got 'donr'"):
            lp.open(stores[0]).pert.match_controls(match=("donr",))
        with pytest.raises(ColumnNotFoundError, match="match: got 'donr'"):
            lp.open(stores[0]).pert.control_coverage(match=("donr",))

    def test_name_the_axis_that_has_no_labels(self, tmp_path):
        path = write_screen(keyed_screen(0), tmp_path / "screen.h5ad")
        roles = ROLES | {"batch_col": None}
        store = lp.convert(path, tmp_path / "screen.zarr", **roles)
        with pytest.raises(ConfigError, match="match: got 'batch', but this screen has no batch labels"):
            lp.open(store).pert.match_controls(match=("batch",))

    def test_are_raised_for_a_dataset_without_batches_beside_others(self, stores):
        sources = [
            lp.PerturbationAnnDataSource(
                lp.PerturbationSourceConfig(file_path=stores[0], **ROLES | {"batch_col": name})
            )
            for name in ("batch", None)
        ]
        with pytest.raises(
            ConfigError, match=r"match: got 'batch', but PerturbationAnnDataSource\(.* has no batch lab"
        ):
            set_up(sources, match=("batch",))

    def test_are_raised_when_the_pipeline_is_configured(self):
        with pytest.raises(ConfigError, match="match: got 3, expected names only"):
            PerturbationPipelineConfig(match=("donor", 3))
        with pytest.raises(ConfigError, match="expected 'batch' among the keys"):
            PerturbationPipelineConfig(match=KEYS, mapping_strategy="batch")


def test_an_experiment_matches_by_keys(stores, tmp_path):
    toml = tmp_path / "experiment.toml"
    toml.write_text(
        f'[datasets]\none = "{stores[0]}"\nother = "{stores[1]}"\n'
        '[training]\none = "train"\n[zeroshot]\n"other.T" = "test"\n'
    )
    result = PerturbationPipeline(PerturbationPipelineConfig(match=KEYS)).setup_experiment(toml)
    frame = frame_of(result.source)
    for name in ("train", "test"):
        loader = result.loader(name, **BATCHES)
        controls = np.asarray(loader.pools.controls)
        for row, drawn in pairs_of(loader):
            assert set(drawn) <= matched_pool(frame, row, KEYS, controls)[1]


class TestExperimentFiles:
    @pytest.fixture
    def toml(self, stores, tmp_path):
        file = tmp_path / "experiment.toml"
        file.write_text(
            f'[datasets]\none = "{stores[0]}"\n[training]\none = "train"\n[zeroshot]\n"one.T" = "test"\n'
            '[controls]\nmatch = ["donor", "plate"]\n'
        )
        return file

    def test_name_the_keys(self, toml):
        result = PerturbationPipeline(PerturbationPipelineConfig()).setup_experiment(toml)
        assert result.config == PerturbationPipelineConfig(match=KEYS)
        expected = PerturbationPipeline(result.config).setup_experiment(toml)  # the same keys in both places
        assert pairs_of(result.loader("test", **BATCHES)) == pairs_of(expected.loader("test", **BATCHES))
        pd.testing.assert_frame_equal(result.control_coverage(), expected.control_coverage())

    def test_name_the_fallback(self, toml):
        toml.write_text(toml.read_text() + 'fallback = "error"\n')
        result = PerturbationPipeline(PerturbationPipelineConfig()).setup_experiment(toml)
        with pytest.raises(EmptyPoolError, match=r"^match: .*no control with the same cell_type, donor, plate"):
            result.loader("train", **BATCHES)

    @pytest.mark.parametrize("options", [{"match": ("donor",)}, {"match": KEYS, "fallback": "error"}], ids=str)
    def test_must_not_contradict_the_config(self, toml, options):
        with pytest.raises(ConfigError, match=r"^match, fallback: got .* in the config, but .* in \[controls\]"):
            PerturbationPipeline(PerturbationPipelineConfig(**options)).setup_experiment(toml)
        with pytest.raises(ConfigError, match=r"^match: got .* with the strategy 'batch'"):
            PerturbationPipeline(PerturbationPipelineConfig(mapping_strategy="batch")).setup_experiment(toml)

    def test_are_reproduced_from_a_manifest(self, toml, tmp_path):
        result = PerturbationPipeline(PerturbationPipelineConfig()).setup_experiment(toml)
        loader = result.loader("test", **BATCHES)
        lp.save_run(tmp_path / "run.json", result, loader)
        run = lp.load_run(tmp_path / "run.json")
        assert run.result.config.match == ("cell_type", *KEYS)
        assert pairs_of(run.loaders[0]) == pairs_of(loader)


class TestSavedRuns:
    def test_manifests_record_the_keys(self, stores, tmp_path):
        result = set_up(stores, fallback="drop_last")
        loader = result.loader("train", **BATCHES)
        lp.save_run(tmp_path / "run.json", result, loader)
        manifest = json.loads((tmp_path / "run.json").read_text())
        assert manifest["config"]["match"] == ["cell_type", *KEYS]
        assert manifest["config"]["fallback"] == "drop_last"
        run = lp.load_run(tmp_path / "run.json")
        assert run.result.config.match == ("cell_type", *KEYS)
        assert pairs_of(run.loaders[0]) == pairs_of(loader)

    def test_manifests_from_before_the_option_still_load(self, stores, tmp_path):
        result = set_up(stores[0], match=None)
        loader, path = result.loader("train", **BATCHES), tmp_path / "run.json"
        lp.save_run(path, result, loader)
        manifest = json.loads(path.read_text())
        for section in (manifest["config"], manifest["loaders"][0]["fingerprint"]):
            del section["match"], section["fallback"]
        manifest["digests"] |= {name: _digest(manifest[name]) for name in ("config", "loaders")}
        path.write_text(json.dumps(manifest))
        assert pairs_of(lp.load_run(path).loaders[0]) == pairs_of(loader)

    def test_other_keys_are_refused(self, stores, tmp_path):
        result, path = set_up(stores[0]), tmp_path / "run.json"
        lp.save_run(path, result, result.loader("train", **BATCHES))
        manifest = json.loads(path.read_text())
        manifest["config"]["match"] = ["cell_type", "plate"]
        manifest["digests"]["config"] = _digest(manifest["config"])
        path.write_text(json.dumps(manifest))
        with pytest.raises(RunChangedError, match="loader 'train': "):
            lp.load_run(path)

    @pytest.mark.parametrize(
        "other", [{"match": None}, {"match": ("plate", "donor")}, {"match": ("donor",)}, {"fallback": "error"}], ids=str
    )
    def test_states_of_other_keys_are_refused(self, stores, other):
        if other == {"fallback": "error"}:
            options, other = {"match": ("cell_type",)}, {"match": ("cell_type",), **other}
        else:
            options = {}
        state = set_up(stores[0], **options).loader("train", **BATCHES).state_dict()
        loader = set_up(stores[0], **other).loader("train", **BATCHES)
        first = set_up(stores[0], **options).loader("train", **BATCHES)
        for one, saved in ((loader, state), (first, loader.state_dict())):
            with pytest.raises(ConfigError, match=r"state: got a state saved with (match|fallback|controls)="):
                one.load_state_dict(json.loads(json.dumps(saved)))

    def test_states_resume(self, stores):
        loader, other = (set_up(stores[0]).loader("train", **BATCHES) for _ in range(2))
        batches = iter(loader)
        next(batches)
        other.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        np.testing.assert_array_equal(next(iter(other)).control_row, next(batches).control_row)

    def test_states_from_before_the_option_resume(self, stores):
        loader = set_up(stores[0], match=None).loader("train", **BATCHES)
        state = loader.state_dict()
        del state["plan"]["match"], state["plan"]["fallback"]
        loader.load_state_dict(state)

    def test_pickled_loaders_read_the_keys_again(self, stores):
        loader = set_up(stores).loader("train", **BATCHES)
        expected = pairs_of(loader)
        again = pickle.loads(pickle.dumps(loader))
        again.set_epoch(0)
        assert pairs_of(again) == expected
        assert not pickle.loads(pickle.dumps(loader.pools.match))._columns


def test_keys_are_read_when_the_first_batch_is(stores, monkeypatch):
    result = set_up(stores[0])
    read = []
    of_source = type(result.source).read_obs
    monkeypatch.setattr(
        type(result.source), "read_obs", lambda self, column, rows: read.append(column) or of_source(self, column, rows)
    )
    loaders = [result.loader(name, **BATCHES) for name in SPLITS]
    assert not read
    for loader in loaders:
        next(iter(loader))
    assert sorted(read) == sorted(KEYS)  # once for all loaders
    assert [result.match_keys._column(key)[0].dtype for key in KEYS] == [np.int8, np.int8]


@pytest.fixture(scope="module")
def null_stores(tmp_path_factory):
    """Perturbations do nothing, plates do much, and each donor has four plates. In the second store, two plates have no
    controls, so that their cells fall back to the donor."""
    folder = tmp_path_factory.mktemp("null")
    options = NullScreenConfig(group_sizes=(300,) * 12, n_controls=4000, n_batches=24)
    (path,) = null_screen([folder / "null.h5ad"], options)
    adata = anndata.read_h5ad(path)
    batch = adata.obs["batch"].cat.codes.to_numpy()
    adata.obs["donor"] = pd.Categorical([f"donor{number // 4}" for number in batch])
    adata.obs["plate"] = pd.Categorical([f"plate{number}" for number in batch])
    has_controls = ~((adata.obs["perturbation"] == CONTROL).to_numpy() & np.isin(batch, [0, 9]))
    for name, cells in (("all", adata), ("some", adata[has_controls])):
        cells.write_h5ad(folder / f"{name}.h5ad")
    return [lp.convert(folder / f"{name}.h5ad", folder / f"{name}.zarr", **ROLES) for name in ("all", "some")]


class TestNullScreen:
    def loader(self, store, match, **options):
        options = {"sentence_size": 32, "sentences_per_batch": 4, "to": "numpy"} | options
        return set_up([store], match=match).loader("train", **options)

    @pytest.mark.parametrize("limit", ["64MiB", "150KB"], ids=["pools fit", "pools do not fit"])
    def test_differences_are_what_chance_allows(self, null_stores, limit):
        for match in (("donor",), KEYS):
            loader = self.loader(null_stores[0], match, memory_limit=limit)
            reach = loader._block_reader.reach
            assert (reach is None) == (limit == "64MiB")
            found = measure(loader)
            assert 0.2 < found.rms_z < 1.1
            assert found.correlation < 0.35
            assert found.n_served > 0.8 * found.n_expected * (1 if reach is None else reach.turns)

    def test_keys_remove_what_plates_without_controls_add(self, null_stores):
        rms = [measure(self.loader(null_stores[1], match)).rms_z for match in (None, ("donor",), KEYS)]
        assert rms[2] < 0.9 * rms[1] < 0.9 * rms[0]
        assert rms[2] < 1

    def test_each_control_of_a_plate_serves_equally_often(self, null_stores):
        loader, counts = self.loader(null_stores[0], KEYS, control_sentences=False), 0
        plates = loader.source.read_obs("plate", np.arange(loader.source.n_rows))
        for _ in range(4):
            drawn = [control for _, controls in pairs_of(loader) for control in controls]
            counts = counts + np.bincount(drawn, minlength=len(plates))
        controls = np.asarray(loader.pools.controls)
        for plate in ("plate1", "plate3"):
            served = counts[controls[plates[controls] == plate]]
            assert len(served) > 50
            # Poisson, whose variance is its mean.
            assert 0.6 < served.var() / served.mean() < 1.5


def test_mapping_classes_accept_the_keys(stores):
    source = lp.PerturbationAnnDataSource(lp.PerturbationSourceConfig(file_path=stores[0]))
    mapping = lp.RandomControlMapping(ControlMappingConfig(match=KEYS)).build_mapping(source)
    assert (mapping == lp.open(stores[0]).pert.match_controls(match=KEYS)).all()
