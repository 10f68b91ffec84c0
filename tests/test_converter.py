"""Source files are recognised by their content, and what is not one is said to be what it is."""

import gzip
import os
import pickle

import h5py
import pytest

from lazypert.converter import Converter, converters, open_source
from lazypert.errors import LazypertError, SourceFormatError
from tests.support.stores import screen, write


def test_h5ad_is_installed_as_a_converter():
    known = converters()
    assert "h5ad" in known
    assert all(isinstance(converter, Converter) for converter in known.values())
    assert all(name == converter.name for name, converter in known.items())


def test_a_file_is_known_by_its_content_not_by_its_name(tmp_path):
    path = write(screen(), tmp_path / "screen.h5ad").rename(tmp_path / "screen.data")
    reader = open_source(str(path))
    assert (reader.n_obs, reader.n_vars) == (90, 17)
    assert pickle.loads(pickle.dumps(reader)) == reader


@pytest.fixture
def good(tmp_path):
    return write(screen(), tmp_path / "good.h5ad").read_bytes()


def hdf5_without_obs(path):
    with h5py.File(path, "w") as file:
        file["x"] = [1, 2]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(lambda p, _: p.write_text("gene,cell\n1,2\n"), "starts with the bytes b'gene,cel'", id="text"),
        pytest.param(lambda p, good: p.write_bytes(gzip.compress(good)), "gzip", id="gzip"),
        pytest.param(lambda p, _: p.write_bytes(b""), "empty", id="empty"),
        pytest.param(lambda p, good: p.write_bytes(good[: len(good) // 2]), "cut short or damaged", id="truncated"),
        pytest.param(lambda p, good: p.write_bytes(good[:12]), "cut short or damaged", id="signature_only"),
        pytest.param(lambda p, _: p.mkdir(), "folder", id="folder"),
        pytest.param(lambda p, _: p.write_text("<!DOCTYPE html><html>"), "web page", id="web_page"),
        pytest.param(lambda p, _: p.write_bytes(b"PK\x03\x04rest"), "zip", id="zip"),
        pytest.param(lambda p, _: hdf5_without_obs(p), "'obs': it is missing", id="other_hdf5"),
    ],
)
def test_what_is_no_source_file_is_said_to_be_what_it_is(tmp_path, good, make, says):
    path = tmp_path / "bad.h5ad"
    make(path, good)
    with pytest.raises(SourceFormatError, match=says) as caught:
        open_source(path)
    assert repr(str(path)) in str(caught.value)


def test_a_missing_file_is_also_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.h5ad") as caught:
        open_source(tmp_path / "nothing.h5ad")
    assert isinstance(caught.value, LazypertError)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_one_error(tmp_path):
    path = write(screen(lean=True), tmp_path / "a.h5ad")
    path.chmod(0)
    with pytest.raises(SourceFormatError, match=r"cannot be read \(Permission denied\)"):
        open_source(path)
