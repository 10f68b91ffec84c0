"""A run is set up again from its manifest alone, bit for bit; whatever differs is refused and named."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import zarr

import lazypert as lp
from lazypert import DownsamplingConfig, PerturbationPipeline, PerturbationPipelineConfig, RandomSplitter
from lazypert.errors import ConfigError, RunChangedError, SourceMissingError, StoreDamagedError
from lazypert.run_manifest import _digest, _without_credentials, load_run, save_run
from tests.store.test_golden import GOLDEN, unpacked
from tests.support.screens import CONTROL, make_screen, write_screen

OPTIONS = {"sentence_size": 6, "sentences_per_batch": 3}


def screen(seed=0):
    """240 cells of 2 types, 3 perturbations and controls, in 2 batches, with 8 genes."""
    labels = np.indices((2, 4, 30)).reshape(3, -1)[:, np.random.default_rng(seed).permutation(240)]
    return make_screen(
        {
            "perturbation": np.array([CONTROL, "A", "B", "C"])[labels[1]].tolist(),
            "cell_type": np.array(["T", "U"])[labels[0]].tolist(),
            "batch": np.array(["b1", "b2"])[labels[2] % 2].tolist(),
        },
        np.random.default_rng(seed + 1).poisson(3.0, (240, 8)),
        genes=[f"gene{i}" for i in range(8)],
    )


def batch_digests(loader):
    """SHA-256 of every batch of two epochs, all fields."""
    digests = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        for batch in loader:
            leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(batch)]
            digests.append(hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest())
    return digests


def convert(folder, *, seed=0, name="screen", **options):
    path = write_screen(screen(seed), folder / f"{name}.h5ad")
    roles = {"pert_col": "perturbation", "cell_type_col": "cell_type", "batch_col": "batch", "control_pert": CONTROL}
    return lp.convert(path, folder / f"{name}.zarr", **roles, overwrite=True, **options)


def set_up(paths, **options):
    return PerturbationPipeline(PerturbationPipelineConfig(**options)).setup(paths)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return convert(tmp_path_factory.mktemp("made"))


@pytest.fixture
def store(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "screen.zarr"))


@pytest.fixture
def saved(store, tmp_path):
    """A run with two loaders, its manifest, and the digests of its batches."""
    result = set_up(store, controls="shared", mapping_strategy="batch", seed=3)
    loaders = [
        result.loader(
            "train", **OPTIONS, n_basal_samples=2, target_sum=1e4, genes=["gene3", "gene1"], obs=["batch"],
            downsampling=DownsamplingConfig(fraction=0.5), weights={"A": 1.0, "B": 2.0}, to="numpy",
        ),
        result.loader("test", layout="csr"),
    ]  # fmt: skip
    save_run(tmp_path / "run.json", result, loaders)
    return tmp_path / "run.json", [batch_digests(loader) for loader in loaders]


def test_a_run_is_reproduced_bit_for_bit(saved):
    path, expected = saved
    run = load_run(path)
    assert [batch_digests(loader) for loader in run.loaders] == expected
    assert run.result.config.controls == "shared"


def test_a_state_resumes_in_the_reproduced_run(saved):
    path, _ = saved
    one, other = load_run(path).loaders[0], load_run(path).loaders[0]
    batches = iter(one)
    next(batches)
    other.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(next(iter(other)).row, next(batches).row)


def test_screens_may_have_moved(saved, tmp_path):
    path, expected = saved
    moved = shutil.move(tmp_path / "screen.zarr", tmp_path / "moved.zarr")
    with pytest.raises(SourceMissingError):
        load_run(path)
    assert batch_digests(load_run(path, sources=[moved]).loaders[0]) == expected[0]
    with pytest.raises(ConfigError, match="sources: got 2 files, expected 1"):
        load_run(path, sources=[moved, moved])


def test_several_screens_and_a_given_split(tmp_path):
    paths = [convert(tmp_path, seed=seed, name=f"s{seed}") for seed in range(2)]
    pipeline = PerturbationPipeline(PerturbationPipelineConfig())
    splits = RandomSplitter().split(pipeline.setup(paths).source)
    result = pipeline.setup(paths, splits=splits.keep(np.arange(480) % 3 > 0))
    loader = result.loader("train", **OPTIONS)
    save_run(tmp_path / "run.json", result, loader)
    assert sorted(file.name for file in tmp_path.glob("run.*")) == [
        f"run.{result.original_splits.digest[:12]}.split.csv.gz",
        "run.json",
    ]
    assert batch_digests(load_run(tmp_path / "run.json").loaders[0]) == batch_digests(loader)


def test_an_experiment(store, tmp_path):
    toml = tmp_path / "experiment.toml"
    toml.write_text('[datasets]\nmine = "screen.zarr"\n[training]\nmine = "train"\n[zeroshot]\n"mine.T" = "test"\n')
    result = PerturbationPipeline(PerturbationPipelineConfig(split_mode="random", train_frac=0.5)).setup_experiment(
        toml
    )
    loader = result.loader("test", **OPTIONS)
    save_run(tmp_path / "run.json", result, loader)
    toml.unlink()
    assert batch_digests(load_run(tmp_path / "run.json").loaders[0]) == batch_digests(loader)


def test_a_file_is_converted_again(tmp_path):
    write_screen(screen(), tmp_path / "s.h5ad")
    options = {"control_pert": CONTROL, "controls": "disjoint"}
    result = set_up(tmp_path / "s.h5ad", **options)
    loader = result.loader("train", **OPTIONS)
    save_run(tmp_path / "run.json", result, loader)
    expected = batch_digests(loader)
    shutil.rmtree(tmp_path / "s.lazypert.zarr")
    assert batch_digests(load_run(tmp_path / "run.json").loaders[0]) == expected


GOLDEN_BATCHES = "77c971b411ce48d0fb38726574d099fcb8b0955799969fcf211ba6cad47a57e8"


def test_a_golden_run_gives_the_same_batches_everywhere(tmp_path):
    """A manifest and a store from the repository, on every platform and Python version."""
    store = unpacked(GOLDEN / "golden_v3.zip", tmp_path)
    run = load_run(GOLDEN / "golden_run.json", sources=store, verify=True)
    digests = [digest for loader in run.loaders for digest in batch_digests(loader)]
    assert hashlib.sha256("".join(digests).encode()).hexdigest() == GOLDEN_BATCHES


def make_golden_run(folder):
    """Write the manifest; run this file as a script to do so for a new store format."""
    store = unpacked(GOLDEN / "golden_v3.zip", folder)
    result = set_up(store, split_mode="heldout", by="perturbation", test=("TP53",), controls="disjoint", seed=11)
    thinned = DownsamplingConfig(fraction=0.5)
    loaders = [
        result.loader("train", **OPTIONS, n_basal_samples=2, downsampling=thinned, to="numpy"),
        result.loader("test", **OPTIONS, layout="csr", genes=["gene3", "gene0"], obs=["guide"], to="numpy"),
    ]
    save_run(GOLDEN / "golden_run.json", result, loaders)
    manifest = json.loads((GOLDEN / "golden_run.json").read_text())
    manifest["sources"][0]["path"] = "golden.zarr"
    manifest["digests"]["sources"] = _digest(manifest["sources"])
    (GOLDEN / "golden_run.json").write_text(json.dumps(manifest, indent=2) + "\n")
    digests = [digest for loader in loaders for digest in batch_digests(loader)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


class TestAltered:
    """Ten inputs that differ from what the manifest says."""

    def edit(self, path, change):
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    @pytest.mark.parametrize(
        ("section", "change"),
        [
            ("config", lambda m: m["config"].update(seed=4)),
            ("config", lambda m: m["config"].update(train_frac=0.7)),
            ("split", lambda m: m["split"].update(digest="0" * 64)),
            ("sources", lambda m: m["sources"][0].update(digest="0" * 64)),
            ("loaders", lambda m: m["loaders"][0]["arguments"].update(target_sum=1e3)),
            ("versions", lambda m: m["versions"].pop("numpy")),
            ("loaders", lambda m: m.pop("loaders")),
        ],
        ids=["seed", "fraction", "split", "store", "target_sum", "versions", "no_loaders"],
    )
    def test_an_edited_manifest(self, saved, section, change):
        path, _ = saved
        self.edit(path, change)
        with pytest.raises(RunChangedError, match=f"^{section}: this section"):
            load_run(path)

    @pytest.mark.parametrize(
        ("change", "name"),
        [
            (lambda adata: adata[:, ::-1], "digest"),
            (lambda adata: adata[:, :-1], "digest"),
            (lambda adata: adata[:-1], "digest"),
        ],
        ids=["gene_order", "fewer_genes", "fewer_cells"],
    )
    def test_another_screen(self, saved, change, name):
        path, _ = saved
        adata = change(screen()).copy()
        self.replace(path.parent, adata)
        with pytest.raises(RunChangedError, match=rf"source '.*screen.zarr': {name}: got"):
            load_run(path)

    @pytest.mark.parametrize("is_split_given", [False, True])
    def test_a_store_that_cells_were_appended_to(self, store, tmp_path, is_split_given):
        """The manifest goes on to describe the store of the first file alone, which can be converted again."""
        first = set_up(store)
        result = PerturbationPipeline(PerturbationPipelineConfig()).setup(store, splits=first.splits)
        result = result if is_split_given else first
        save_run(tmp_path / "run.json", result, result.loader("train", **OPTIONS))
        more = screen(seed=5)
        more.obs_names = [f"more{i}" for i in range(240)]
        lp.append(store, write_screen(more, tmp_path / "more.h5ad"), progress=False)
        with pytest.raises(RunChangedError, match=r"got 480 cells, expected 240 .* cells were appended"):
            load_run(tmp_path / "run.json")
        (tmp_path / "first").mkdir()
        load_run(tmp_path / "run.json", sources=convert(tmp_path / "first"))
        save_run(tmp_path / "new.json", result := set_up(store), result.loader("train", **OPTIONS))
        load_run(tmp_path / "new.json", verify=True)

    @pytest.mark.parametrize("what", ["counts", "labels", "names"])
    def test_other_values(self, saved, what):
        path, _ = saved
        adata = screen()
        if what == "counts":
            adata.X[0, 0] += 1
        elif what == "labels":
            adata.obs["batch"] = adata.obs["batch"].to_numpy()[::-1]
        else:
            adata.obs_names = [f"other{i}" for i in range(240)]
        self.replace(path.parent, adata)
        with pytest.raises(RunChangedError, match=r"source '.*screen.zarr': digest: got"):
            load_run(path)

    def replace(self, folder, adata):
        write_screen(adata, folder / "screen.h5ad")
        roles = {"pert_col": "perturbation", "cell_type_col": "cell_type", "batch_col": "batch"}
        lp.convert(folder / "screen.h5ad", folder / "screen.zarr", **roles, control_pert=CONTROL, overwrite=True)

    @pytest.mark.parametrize("verify", [False, True])
    def test_a_store_that_was_edited_in_place(self, saved, verify):
        path, _ = saved
        counts = zarr.open_group(path.parent / "screen.zarr", mode="r+")["X/data"]
        counts[:] = counts[:] + np.arange(counts.shape[0]) % 7
        error, message = (StoreDamagedError, "X/data/c/0") if verify else (RunChangedError, "size of X/data/c/0")
        with pytest.raises(error, match=message):
            load_run(path, verify=verify)

    def test_a_split_file(self, store, tmp_path):
        pipeline = PerturbationPipeline(PerturbationPipelineConfig())
        first = pipeline.setup(store)
        result = pipeline.setup(store, splits=first.splits)
        save_run(tmp_path / "run.json", result, result.loader("train", **OPTIONS))
        other = RandomSplitter(lp.RandomSplitterConfig(seed=1)).split(first.source)
        file = next(tmp_path.glob("run.*.split.csv.gz"))
        other.save(file)
        with pytest.raises(RunChangedError, match="split: digest: got"):
            load_run(tmp_path / "run.json")
        file.unlink()
        with pytest.raises(RunChangedError, match="is missing"):
            load_run(tmp_path / "run.json")

    def test_a_loader_that_reaches_fewer_controls(self, saved):
        path, _ = saved

        def change(manifest):
            manifest["loaders"][0]["fingerprint"]["controls_in_reach"] = 7
            text = json.dumps(manifest["loaders"], sort_keys=True)
            manifest["digests"]["loaders"] = hashlib.sha256(text.encode()).hexdigest()

        self.edit(path, change)
        with pytest.raises(RunChangedError, match="loader 'train': controls_in_reach: got None, expected 7"):
            load_run(path)

    @pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "lazypert run", "version": 2}'])
    def test_something_else(self, tmp_path, text):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ConfigError, match="run manifest"):
            load_run(tmp_path / "run.json")


class TestSaving:
    def test_options_may_be_arrays(self, store, tmp_path):
        result = set_up(store, additional_obs=("batch",), cache_dir="cache")
        genes = lp.open(tmp_path / "screen.zarr").gene.values[[4, 2]]
        loader = result.loader("train", genes=genes, obs=np.array(["batch"]), seed=np.int64(3), sentence_size=None)
        one = result.loader("valid", genes=genes[:1], **OPTIONS)
        save_run(tmp_path / "run.json", result, [loader, one])
        run = load_run(tmp_path / "run.json")
        assert [batch_digests(a) for a in run.loaders] == [batch_digests(b) for b in (loader, one)]
        assert Path(run.result.config.cache_dir).is_absolute()

    def test_features_of_perturbations_are_part_of_the_run(self, store, tmp_path):
        table = tmp_path / "features.csv"
        table.write_text("name,x\nA,1\nB,2\nC,3\n")
        result = set_up(store, perturbation_features_file=table)
        loader = result.loader("train", extras=("pert_emb",), **OPTIONS)
        save_run(tmp_path / "run.json", result, [loader])
        run = load_run(tmp_path / "run.json")
        assert batch_digests(run.loaders[0]) == batch_digests(loader)
        table.write_text("name,x\nA,1\nB,2\nC,4\n")
        with pytest.raises(RunChangedError, match="features"):
            load_run(tmp_path / "run.json")

    def test_a_file_of_targets_is_part_of_the_run(self, store, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        table = tmp_path / "targets.csv"
        table.write_text("label,gene\nA,gene1\nB,gene2\nC,gene3\n")
        options = {"enable_knockdown_filter": True, "targets": "targets.csv", "residual_expression": 1.0}
        result = set_up(store, **options, cell_residual_expression=1.0, min_cells=1)
        loader = result.loader("train", **OPTIONS)
        save_run(tmp_path / "run.json", result, [loader])
        monkeypatch.chdir("/")
        run = load_run(tmp_path / "run.json")
        assert run.result.config.targets == str(table)
        assert batch_digests(run.loaders[0]) == batch_digests(loader)
        table.write_text("label,gene\nA,gene1\nB,gene2\nC,gene4\n")
        with pytest.raises(RunChangedError, match=r"targets: SHA-256 of '.*targets\.csv': got"):
            load_run(tmp_path / "run.json")
        table.unlink()
        with pytest.raises(RunChangedError, match=r"targets: cannot read '.*targets\.csv' \(No such file"):
            load_run(tmp_path / "run.json")
        manifest = json.loads((tmp_path / "run.json").read_text())
        manifest["files"]["targets"] = "0"
        (tmp_path / "run.json").write_text(json.dumps(manifest))
        with pytest.raises(RunChangedError, match=r"^files: this section of '.*run\.json' was changed"):
            load_run(tmp_path / "run.json")

    def test_a_failure_keeps_the_run_that_was_saved_before(self, store, tmp_path):
        pipeline = PerturbationPipeline(PerturbationPipelineConfig())
        first = pipeline.setup(store, splits=pipeline.setup(store).splits)
        save_run(tmp_path / "run.json", first, first.loader("train", **OPTIONS))
        other = pipeline.setup(store, splits=RandomSplitter(lp.RandomSplitterConfig(seed=1)).split(first.source))
        loader = other.loader("train", **OPTIONS)
        loader.arguments["weights"] = {"A": object()}
        with pytest.raises(TypeError, match="not JSON serializable"):
            save_run(tmp_path / "run.json", other, loader)
        assert load_run(tmp_path / "run.json").result.splits == first.splits

    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("s3://key:sec@bucket/x.zarr?token=sec", "s3://bucket/x.zarr"),
            ("simplecache::s3://key:sec@bucket/x.zarr", "simplecache::s3://bucket/x.zarr"),
            ("https://host/x.zarr;tok=sec", "https://host/x.zarr"),
            ("https://host/x.zarr#sec", "https://host/x.zarr"),
        ],
    )
    def test_urls_lose_their_credentials(self, url, expected):
        assert _without_credentials(url) == expected

    def test_no_credential_is_written(self, store, tmp_path):
        result = set_up(store, storage_options={"secret": "hunter2"})
        object.__setattr__(result.source.config, "file_path", "s3://me:hunter2@bucket/s.zarr?token=hunter2")
        save_run(tmp_path / "run.json", result, result.loader("train", **OPTIONS))
        text = (tmp_path / "run.json").read_text()
        assert "hunter2" not in text
        assert json.loads(text)["sources"][0]["path"] == "s3://bucket/s.zarr"

    def test_selections_are_refused(self, store, tmp_path):
        result = set_up(lp.open(store).pert.select(cell_type="T"))
        with pytest.raises(ConfigError, match="got a selection of 120 of the 240 cells"):
            save_run(tmp_path / "run.json", result, result.loader("train", **OPTIONS))

    def test_foreign_loaders_are_refused(self, store, tmp_path):
        one, other = set_up(store), set_up(store)
        with pytest.raises(ConfigError, match="expected loaders made by this result's"):
            save_run(tmp_path / "run.json", one, other.loader("train", **OPTIONS))
        with pytest.raises(ConfigError, match=r"ends in .json"):
            save_run(tmp_path / "run.txt", one, one.loader("train", **OPTIONS))
        assert list(Path(tmp_path).glob("run*")) == []


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print("GOLDEN_BATCHES =", make_golden_run(Path(scratch)))
