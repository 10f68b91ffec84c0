"""Every public function that takes a path: home folders, variables, file:// URLs, and URLs that it cannot use."""

import shutil
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import lazypert as lp
from lazypert import PerturbationAnnDataSource, PerturbationSourceConfig
from lazypert._cli import main
from lazypert.converter import open_source
from lazypert.dataset.backend import LazypertBackendEntrypoint
from lazypert.errors import ConfigError, MachineError, SourceMissingError, StoreDamagedError, StoreNotFoundError
from lazypert.simulate import NullScreenConfig, SimulationConfig, null_screen, reference_screen, simulate_screen
from lazypert.splits.split_result import SplitResult
from tests.support.stores import ROLES, converted, with_layer

URL = "s3://bucket/s.zarr"


def set_up(path, **options):
    return lp.PerturbationPipeline(lp.PerturbationPipelineConfig(sentence_size=4, **options)).setup([path])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return converted(tmp_path_factory.mktemp("made"), with_layer(), progress=False)


@pytest.fixture
def home(made, tmp_path, monkeypatch):
    """A home folder with a file and its store, which is also $SCREENS; the working directory is empty."""
    folder = tmp_path / "home"
    (tmp_path / "work").mkdir()
    folder.mkdir()
    shutil.copy2(made[0], folder / "s.h5ad")
    shutil.copytree(made[1], folder / "s.zarr")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("SCREENS", str(folder))
    monkeypatch.chdir(tmp_path / "work")
    yield folder
    assert not list(Path().iterdir()), "something was written to a folder named like the path"


def test_conversion(home):
    made = lp.convert("~/s.h5ad", "$SCREENS/a.zarr", progress=False, **ROLES)
    assert made == home / "a.zarr"
    url = (home / "s.h5ad").as_uri()
    assert lp.convert([url], (home / "b.zarr").as_uri(), progress=False, **ROLES) == home / "b.zarr"
    assert lp.verify(made) == lp.verify(home / "b.zarr") == lp.verify(home / "s.zarr")
    assert open_source("~/s.h5ad").n_obs == 90


@pytest.mark.parametrize("target", ["https://host/s.zarr", "s3://bucket", Path(URL), "$UNSET/s.zarr"], ids=str)
def test_conversion_refuses_other_targets(home, target):
    with pytest.raises(ConfigError, match=r"store: got .*(://|UNSET)"):
        lp.convert(home / "s.h5ad", target, progress=False, **ROLES)


def doors(url):
    """Everything that opens a store at a URL."""
    yield lambda: lp.open(url)
    yield lambda: lp.verify(url)
    yield lambda: PerturbationAnnDataSource(PerturbationSourceConfig(file_path=url))
    yield lambda: set_up(url)


@pytest.mark.parametrize("url", ["s3://bucket/s.h5ad", "https://host/s.h5?raw=1"])
def test_a_file_at_a_url_is_not_opened_as_a_store(url):
    for door in doors(url):
        with pytest.raises(StoreNotFoundError, match=r"the URL of a file.*Convert the file first"):
            door()


class OddStorage(fsspec.AbstractFileSystem):
    """Remote storage whose library has errors of its own."""

    protocol = "odd"

    def cat_file(self, path, start=None, end=None, **options):
        raise RuntimeError("Unable to locate credentials")


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("nothing-like-it://b/s.zarr", ConfigError, "whose protocol 'nothing-like-it' is unknown"),
        ("odd://b/s.zarr", MachineError, r"cannot be read: no credentials were found.*Unable to locate credentials"),
    ],
)
def test_remote_storage_that_cannot_be_read(url, kind, message):
    fsspec.register_implementation("odd", OddStorage, clobber=True)
    for door in doors(url):
        with pytest.raises(kind, match=message):
            door()


def test_a_wrong_storage_option_is_not_called_damage():
    pytest.importorskip("s3fs")
    with pytest.raises(ConfigError, match=r"^storage_options: got the option 'bad' .*") as raised:
        lp.open("s3://bucket/s.zarr", storage_options={"bad": "S3CR3T"})
    assert "S3CR3T" not in str(raised.value)


def test_damaged_metadata_at_a_url_are_called_damaged():
    fsspec.filesystem("memory").pipe("/damaged.zarr/zarr.json", b"{")
    with pytest.raises(StoreDamagedError, match=r"zarr\.json"):
        lp.open("memory://damaged.zarr")


def test_sources_that_do_not_exist(home):
    with pytest.raises(ConfigError, match=r"source: got the URL 's3://b/s.h5ad'.* lazypert.convert"):
        open_source("s3://b/s.h5ad")
    with pytest.raises(SourceMissingError, match=r"memory://bucket/none\.h5ad"):
        lp.convert("memory://bucket/none.h5ad", home / "a.zarr")
    with pytest.raises(SourceMissingError, match=r"home/none\.h5ad"):
        lp.convert("~/none.h5ad", home / "a.zarr")


@pytest.mark.parametrize("path", ["~/s.zarr", "$SCREENS/s.zarr", "file", Path("~/s.zarr")], ids=str)
def test_opening(home, path):
    path = (home / "s.zarr").as_uri() if path == "file" else path
    expected = lp.open(home / "s.zarr").attrs
    assert lp.open(path).attrs == expected
    assert lp.verify(path) > 0
    assert LazypertBackendEntrypoint().guess_can_open(path)
    assert PerturbationAnnDataSource(PerturbationSourceConfig(file_path=path, **ROLES)).n_rows == 90
    with xr.open_dataset(path, engine="lazypert") as ds:
        assert ds.attrs == expected


def test_a_path_object_cannot_hold_a_url(home):
    assert not LazypertBackendEntrypoint().guess_can_open(Path(URL))
    for call in (lp.open, lp.verify, set_up, lambda path: xr.open_dataset(path, engine="lazypert")):
        with pytest.raises(ConfigError, match=f"cannot hold a URL: pass the text '{URL}'"):
            call(Path(URL))


def test_the_cached_store(home):
    assert set_up("~/s.h5ad").source.store.path == str(home / "s.lazypert.zarr")
    set_up("$SCREENS/s.h5ad", cache_dir="~/cache")
    assert len(list((home / "cache").glob("s-*.lazypert.zarr"))) == 1
    with pytest.raises(ConfigError, match=f"cache_dir: got the URL '{URL}'"):
        set_up("~/s.h5ad", cache_dir=URL)


def test_several_screens_are_named_by_their_files(home, monkeypatch):
    monkeypatch.setenv("SCREEN", str(home / "s.zarr"))
    config = lp.PerturbationPipelineConfig(sentence_size=4)
    result = lp.PerturbationPipeline(config).setup(["$SCREEN", (home / "s.h5ad").as_uri()])
    assert result.source.names == ("s", "s_2")


def test_perturbation_features(home):
    names = ["non-targeting", *set_up("~/s.zarr").source.groups.labels["perturbation"]]
    pd.DataFrame(np.ones((len(names), 2)), index=names).groupby(level=0).first().to_csv(home / "f.csv")
    options = {"file_path": "~/s.zarr", **ROLES}
    for path in ("~/f.csv", "$SCREENS/f.csv", (home / "f.csv").as_uri()):
        assert PerturbationAnnDataSource(PerturbationSourceConfig(perturbation_features_file=path, **options))[0]
    source = PerturbationAnnDataSource(PerturbationSourceConfig(perturbation_features_file="s3://b/f.csv", **options))
    with pytest.raises(ConfigError, match="perturbation_features_file: got the URL"):
        source[0]


def test_splits(home):
    result = set_up("~/s.zarr")
    result.original_splits.save("~/split.csv")
    assert (home / "split.csv").exists()
    assert SplitResult.load("$SCREENS/split.csv", result.source).digest == result.original_splits.digest
    assert SplitResult.from_table(result.source, "~/split.csv").digest == result.original_splits.digest
    for call in (
        lambda: result.original_splits.save("s3://b/split.csv"),
        lambda: SplitResult.load("s3://b/split.csv", result.source),
        lambda: SplitResult.from_table(result.source, "s3://b/split.csv"),
    ):
        with pytest.raises(ConfigError, match=r"path: got the URL 's3://b/split.csv'"):
            call()


def test_runs(home):
    result = set_up("~/s.zarr")
    lp.save_run("~/run.json", result, [])
    assert f'"path": "{home}/s.zarr"' in (home / "run.json").read_text()
    assert lp.load_run("$SCREENS/run.json").result.original_splits.digest == result.original_splits.digest
    assert lp.load_run("~/run.json", sources="~/s.zarr").result.source.n_rows == 90
    for call in (lambda: lp.save_run("s3://b/run.json", result, []), lambda: lp.load_run("s3://b/run.json")):
        with pytest.raises(ConfigError, match=r"path: got the URL 's3://b/run.json'"):
            call()


def test_targets(home, monkeypatch):
    (home / "targets.csv").write_text("label,gene\nTP53,gene1\n")
    monkeypatch.setenv("TARGETS", str(home / "targets.csv"))
    source = lp.open("~/s.zarr").pert
    expected = source.knockdown(targets={"TP53": "gene1"}, min_cells=1)
    for path in ("~/targets.csv", "$SCREENS/targets.csv", "$TARGETS", (home / "targets.csv").as_uri()):
        assert source.knockdown(targets=path, min_cells=1).table.equals(expected.table)
    with pytest.raises(ConfigError, match=r"targets: got the URL 's3://b/t.csv'"):
        source.knockdown(targets="s3://b/t.csv")


def test_files_of_anndata(home):
    ds = lp.open("~/s.zarr").isel(cell=slice(0, 5))
    assert ds.pert.write_h5ad("$SCREENS/part.h5ad") == home / "part.h5ad"
    with pytest.raises(ConfigError, match=r"path: got the URL 's3://b/part.h5ad'"):
        ds.pert.write_h5ad("s3://b/part.h5ad")


def test_experiments(home):
    text = '[datasets]\n{} = "{}"\n[training]\n{} = "train"\n'
    for number, path in enumerate(("~/s.zarr", "$SCREENS/s.zarr", (home / "s.zarr").as_uri(), "s.zarr")):
        name = f"d{number}"
        (home / "e.toml").write_text(text.format(name, path, name))
        for toml in ("~/e.toml", "$SCREENS/e.toml"):
            pipeline = lp.PerturbationPipeline(lp.PerturbationPipelineConfig(sentence_size=4))
            assert pipeline.setup_experiment(toml).source.n_rows == 90
    with pytest.raises(ConfigError, match=r"path: got the URL 's3://b/e.toml'"):
        lp.load_experiment_config("s3://b/e.toml")


def test_simulated_screens(home):
    assert reference_screen("~/r.h5ad") == home / "r.h5ad"
    simulate_screen("$SCREENS/m.h5ad", SimulationConfig(n_cells=256, n_genes=300, n_perturbations=4))
    assert (home / "m.h5ad").exists()
    assert null_screen("~/n.h5ad", NullScreenConfig(group_sizes=(5, 7), n_controls=9)) == [home / "n.h5ad"]
    for call in (reference_screen, null_screen, lambda url: simulate_screen(url, SimulationConfig(n_cells=9))):
        with pytest.raises(ConfigError, match=r"paths?: got the URL 's3://b/a.h5ad'"):
            call("s3://b/a.h5ad")


def test_the_command_line(home, capsys):
    roles = ["--pert-col", "perturbation"]
    assert main(["convert", "~/s.h5ad", "$SCREENS/c.zarr", *roles]) == 0
    assert main(["info", "~/c.zarr"]) == main(["verify", "$SCREENS/c.zarr"]) == 0
    capsys.readouterr()
    assert main(["convert", "~/s.h5ad", "https://host/s.zarr", *roles]) == 1
    assert "store: got 'https://host/s.zarr'" in capsys.readouterr().err
    assert main(["convert", "~/s.h5ad", "memory://paths/s.zarr", *roles, "--work-dir", "$SCREENS/work"]) == 0
    assert main(["convert", "memory://paths/s.zarr", "~/d.zarr", *roles, "--storage-option", "auto_mkdir=true"]) == 0
    assert main(["convert", "~/s.h5ad", "memory://paths/t.zarr", "--storage-option", "secret"]) == 1
    assert "--storage-option: got 'secret'" in capsys.readouterr().err
    assert main(["demo", "--out", URL]) == 1
    assert f"--out: got the URL '{URL}'" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["https://me:hunter2@host/s.zarr", "https://host/s.zarr?token=hunter2"])
@pytest.mark.parametrize("call", [lp.open, lambda url: lp.convert("~/s.h5ad", url)], ids=["open", "convert"])
def test_urls_of_stores_hold_no_credentials(home, url, call):
    with pytest.raises(ConfigError, match="Pass credentials as storage_options") as caught:
        call(url)
    assert "hunter2" not in str(caught.value)
