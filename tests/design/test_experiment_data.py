"""Files of a dataset are found as cell-load finds them."""

import logging
from pathlib import Path

import pytest

from lazypert.design.experiment import load_experiment_config
from lazypert.errors import ConfigError, ExperimentFileNotFoundError
from tests.support.experiments import config_of


@pytest.fixture
def tree(tmp_path):
    names = ["k562.h5ad", "rpe1.h5ad", "hepg2.h5", "notes.txt", "[x].h5ad"]
    for name in [*names, "sub1/a.h5", "sub1/a.h5ad", "sub2/b.h5ad", "sub2/deep/c.h5ad"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "store.zarr").mkdir()
    (tmp_path / "store.zarr" / "zarr.json").touch()
    return tmp_path


@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("k562.h5ad", "k562.h5ad"),
        ("sub1", "sub1/a.h5 sub1/a.h5ad"),
        ("sub2/", "sub2/b.h5ad"),
        ("store.zarr", "store.zarr"),
        ("*.zarr", "store.zarr"),
        ("*.h5ad", "[x].h5ad k562.h5ad rpe1.h5ad"),
        ("{rpe1,k562}.h5ad", "rpe1.h5ad k562.h5ad"),
        ("{rpe1, k562 , absent}.h5ad", "rpe1.h5ad k562.h5ad"),
        ("{sub1,sub2}/{a,b}.{h5,h5ad}", "sub1/a.h5 sub1/a.h5ad sub2/b.h5ad"),
        ("{k562,*}.h5ad", "k562.h5ad [x].h5ad rpe1.h5ad"),
        ("sub?", "sub1/a.h5 sub1/a.h5ad sub2/b.h5ad"),
        ("sub[2]/", "sub2/b.h5ad"),
        ("sub*/**/*.h5ad", "sub1/a.h5ad sub2/b.h5ad sub2/deep/c.h5ad"),
        ("[x].h5ad", "[x].h5ad"),
    ],
)
def test_paths_folders_and_patterns_give_files(tree, path, expected, absolute):
    # Some versions of pytest put the parameters of a test, in square brackets, into tmp_path.
    assert not set("*?[]{}") & set(str(tree))
    config = config_of(tree / path if absolute else path, base_dir=tree)
    assert config.dataset_files("d0") == [tree / name for name in expected.split()]


@pytest.mark.parametrize("path", ["absent.h5ad", "*.loom", "sub3", "{x,y}.h5"])
def test_missing_files_raise_an_error(tree, path):
    with pytest.raises(ExperimentFileNotFoundError, match="'d0' has no files"):
        config_of(path, base_dir=tree).dataset_files("d0")


def test_without_a_toml_paths_start_from_the_working_directory(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert config_of("k562.h5ad").dataset_files("d0") == [Path("k562.h5ad")]


def test_relative_patterns_are_not_saved_from_a_folder_with_pattern_characters(tmp_path):
    folder = tmp_path / "a[1]"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"got the pattern '\*\.h5ad' in the folder .*a\[1\]"):
        config_of("*.h5ad", base_dir=folder).save_config(tmp_path / "e.toml")


@pytest.mark.parametrize(
    "path", ["~/k562.h5ad", "$SCREENS/k562.h5ad", "${SCREENS}/{k562,absent}.h5ad", "~/k*.h5ad", "file"], ids=str
)
def test_home_folders_variables_and_file_urls(tree, monkeypatch, path):
    monkeypatch.setenv("HOME", str(tree))
    monkeypatch.setenv("SCREENS", str(tree))
    path = (tree / "k562.h5ad").as_uri() if path == "file" else path
    config = config_of(path, base_dir=tree / "sub1")
    assert config.dataset_files("d0") == [tree / "k562.h5ad"]
    config.save_config(tree / "sub2" / "e.toml")
    saved = load_experiment_config(tree / "sub2" / "e.toml")
    assert saved.dataset_path("d0") == path, "the same file can be used by others"
    assert saved.dataset_files("d0") == [tree / "k562.h5ad"]


def test_urls_stand_for_themselves(tree):
    config = config_of("s3://bucket/screen.zarr", base_dir=tree)
    assert config.dataset_files("d0") == ["s3://bucket/screen.zarr"]
    config.save_config(tree / "sub1" / "e.toml")
    assert load_experiment_config(tree / "sub1" / "e.toml").dataset_files("d0") == ["s3://bucket/screen.zarr"]
    for call in (load_experiment_config, config.save_config):
        with pytest.raises(ConfigError, match=r"path: got the URL 's3://b/e.toml'"):
            call("s3://b/e.toml")


def test_variables_that_are_not_set(tree, monkeypatch):
    monkeypatch.delenv("UNSET", raising=False)
    with pytest.raises(ConfigError, match=r"\[datasets\] 'd0': got '\$UNSET/a.h5ad', .*'UNSET' is not set"):
        config_of("$UNSET/a.h5ad", base_dir=tree).dataset_files("d0")


def test_the_working_directory_comes_second(tree, monkeypatch, caplog):
    monkeypatch.chdir(tree)
    config = config_of("rpe1.h5ad", "a.h5ad", "sub2/b.h5ad", base_dir=tree / "sub1")
    with caplog.at_level(logging.WARNING, logger="lazypert"):
        assert config.dataset_files("d1") == [tree / "sub1" / "a.h5ad"]
        assert not caplog.records
        assert config.dataset_files("d0") == [tree / "rpe1.h5ad"]
        assert f"'rpe1.h5ad' is not in {str(tree / 'sub1')!r} and was taken from the working directory" in caplog.text
        caplog.clear()
        (tree / "a.h5ad").touch()
        assert config.dataset_files("d1") == [tree / "sub1" / "a.h5ad"]
        assert f"'a.h5ad' was taken from {str(tree / 'sub1')!r}; the working directory" in caplog.text
    config.save_config(tree / "sub2" / "e.toml")
    monkeypatch.chdir(tree / "sub2")
    saved = load_experiment_config("e.toml")
    assert saved.dataset_files("d0") == [tree / "rpe1.h5ad"]
    assert saved.dataset_files("d1") == [tree / "sub1" / "a.h5ad"]
