"""Paths as users write them: home folders, variables, file:// URLs, and URLs that pathlib has changed."""

import os
from pathlib import Path

import pytest

from lazypert._internal.paths import is_entry_name, is_url, local_path, location
from lazypert.errors import ConfigError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    monkeypatch.setenv("SCREENS", "/data")
    monkeypatch.setenv("BUCKET", "lab")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("screen.h5ad", "screen.h5ad"),
        ("./a/../b", "./a/../b"),
        (Path("a/b"), "a/b"),
        ("$SCREENS/a", "/data/a"),
        ("${SCREENS}/a", "/data/a"),
        (Path("$SCREENS/a"), "/data/a"),
        ("a_${BUCKET}_$BUCKET.h5ad", "a_lab_lab.h5ad"),
        ("price$5.h5ad", "price$5.h5ad"),
        ("a~b", "a~b"),
        ("s3://$BUCKET/a.zarr", "s3://lab/a.zarr"),
        ("https://host/a.zarr?$UNSET=1", "https://host/a.zarr?$UNSET=1"),
        ("simplecache::s3://b/a", "simplecache::s3://b/a"),
        ("file:///data/a b", "/data/a b"),
        ("file:///data/a%20b", "/data/a b"),
        ("FILE://localhost/data/a", "/data/a"),
        ("simplecache::file:///data/a", "simplecache::file:///data/a"),
        ("C:/data/a", "C:/data/a"),
        ("/a/s3:/b", "/a/s3:/b"),
    ],
)
def test_a_location(given, expected):
    assert location("store", given) == expected


def test_the_home_folder(home):
    assert location("store", "~/a") == f"{home}/a"
    assert local_path("store", Path("~/a"), "") == home / "a"
    assert location("store", "~") == str(home)


@pytest.mark.parametrize("name", ["", ".", "..", "zarr.json", "a/b", "a\0b", "n" * 256, "é" * 128, "\ud800"], ids=repr)
def test_what_cannot_be_the_name_of_an_array(name):
    assert not is_entry_name(name)
    assert is_entry_name(f"a{name[:100]}".translate(dict.fromkeys(map(ord, "/\0\ud800"))))


@pytest.mark.parametrize("given", ["", None, 3, "a\0b", b"a"])
def test_what_is_not_a_path(given):
    with pytest.raises(ConfigError, match=r"store: got .*, expected a path"):
        location("store", given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("$UNSET/a", "'UNSET' is not set"),
        ("${UNSET}/a", "'UNSET' is not set"),
        ("$EMPTY/a", "'EMPTY' is empty"),
        ("${}/a", "'' is not set"),
        ("s3://$UNSET/a", "'UNSET' is not set"),
        ("~nobody-of-this-name/a", "no home folder of '~nobody-of-this-name'"),
        ("file://server/a", "three slashes"),
        ("file://", "three slashes"),
    ],
)
def test_what_cannot_be_resolved(given, message):
    with pytest.raises(ConfigError, match=message):
        location("store", given)


@pytest.mark.parametrize(
    "url", ["s3://bucket/a.zarr", "memory://a.zarr", "file:///data/a", "simplecache::s3://b/a", "gs://b"]
)
def test_a_url_that_pathlib_has_changed_is_named(url):
    assert is_url(url)
    assert not is_url(Path(url))
    for changed in (Path(url), str(Path(url))):
        with pytest.raises(ConfigError) as raised:
            location("store", changed)
        assert url.replace("file:///", "file://") in str(raised.value)


def test_names_with_dollar_signs_and_tildes_stay_if_they_exist(tmp_path):
    (tmp_path / "a$UNSET").mkdir()
    (tmp_path / "~odd").mkdir()
    assert location("store", "a$UNSET/new.zarr") == "a$UNSET/new.zarr"
    assert location("store", tmp_path / "a$UNSET") == str(tmp_path / "a$UNSET")
    assert location("store", "~odd/x") == "~odd/x"


def test_a_file_url_that_was_not_encoded(tmp_path):
    (tmp_path / "100%25.h5ad").touch()
    assert location("store", f"file://{tmp_path}/100%25.h5ad") == str(tmp_path / "100%25.h5ad")
    assert location("store", (tmp_path / "100%.h5ad").as_uri()) == str(tmp_path / "100%25.h5ad")
    assert location("store", (tmp_path / "a b").as_uri()) == str(tmp_path / "a b")


def test_a_local_path_refuses_urls():
    assert local_path("store", "file:///data/a", "Copy it.") == Path("/data/a")
    with pytest.raises(ConfigError, match=r"store: got the URL 's3://lab/a', expected a local path\. Copy it\."):
        local_path("store", "s3://$BUCKET/a", "Copy it.")
    assert local_path("store", f".{os.sep}a", "") == Path("a")
