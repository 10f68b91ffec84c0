"""Files of a dataset are found as cell-load finds them."""

from pathlib import Path

import pytest

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
