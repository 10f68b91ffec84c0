"""Zarr stores of AnnData: folders and zip files, formats 2 and 3, and stores of lazypert."""

import json
import pickle
import shutil
import warnings

import anndata
import numpy as np
import pytest
import zarr
from anndata.io import write_elem
from scipy import sparse

import lazypert as lp
from lazypert.converter import converters, open_source
from lazypert.errors import SourceFormatError
from tests.support.oracles import assert_equal, read_with_anndata
from tests.support.stores import (
    ROLES,
    leftovers,
    no_sync,  # noqa: F401 - a fixture for the whole module
    screen,
    small_blocks,
    small_grids,
    source_row,
    write,
)


def write_zarr(adata, path, version=3):
    """Write an AnnData as AnnData does, zipped if the name says so."""
    folder = path.with_suffix("") if path.suffix == ".zip" else path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with anndata.settings.override(allow_write_nullable_strings=True):
            write_elem(zarr.open_group(folder, mode="w", zarr_format=version), "/", adata)
    if path.suffix == ".zip":
        shutil.make_archive(str(folder), "zip", folder)
        shutil.rmtree(folder)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of AnnData. Don't write to it."""
    return write_zarr(screen(), tmp_path_factory.mktemp("zarr") / "a.zarr")


@pytest.fixture(scope="module")
def converted(made, tmp_path_factory):
    """A store of ours. Don't write to it."""
    return lp.convert(made, tmp_path_factory.mktemp("ours") / "b.zarr")


def layouts():
    csc, flat = screen(), screen()
    csc.X, flat.X = csc.X.tocsc(), flat.X.toarray()
    with_raw = screen()
    with_raw.raw = screen(n_vars=23, seed=4)[:, :]
    return {"csr": screen(), "csc": csc, "dense": flat, "raw": with_raw}


KINDS = [("csr", 2, "a.zarr"), ("csr", 2, "a.zarr.zip"), ("csr", 3, "a.zarr.zip")]
KINDS += [("csc", 3, "a.zarr"), ("dense", 2, "a.zarr"), ("dense", 3, "a.zarr"), ("raw", 3, "a.zarr")]


@pytest.mark.parametrize(("layout", "version", "name"), KINDS)
def test_a_zarr_store_is_converted_exactly(tmp_path, monkeypatch, layout, version, name):
    small_blocks(monkeypatch, 2_000)
    source = layouts()[layout]
    path = write_zarr(source, tmp_path / name, version)
    lp.convert(path, tmp_path / "b.zarr", order="source", **ROLES)
    assert_equal(tmp_path / "b.zarr", read_with_anndata(path))
    assert leftovers(tmp_path, name, "b.zarr") == []


def test_it_is_read_as_the_h5ad_of_the_same(tmp_path, made):
    one, other = open_source(write(screen(), tmp_path / "a.h5ad")), open_source(made)
    assert (one.matrices, one.obsm, one.obs_columns) == (other.matrices, other.obsm, other.obs_columns)
    assert pickle.loads(pickle.dumps(other)) == other
    for name in one.obs_columns:
        assert one.obs_column(name, 3, 50).dtype == other.obs_column(name, 3, 50).dtype
        assert list(map(str, one.obs_column(name, 3, 50))) == list(map(str, other.obs_column(name, 3, 50)))


def test_a_store_of_ours_can_be_converted_again(tmp_path, made, monkeypatch):
    small_grids(monkeypatch)
    first = lp.convert(made, tmp_path / "b.zarr", **ROLES)
    again = lp.convert(first, tmp_path / "c.zarr", pert_col="perturbation", seed=3)
    assert_equal(again, anndata.read_zarr(first), rows=source_row(again))
    lp.verify(again)


def shard(path, part):
    return sorted(file for file in (path / part).rglob("*") if file.is_file() and file.name != "zarr.json")[0]


@pytest.mark.parametrize("part", ["X/data", "X/indices", "X/indptr", "obs/perturbation/codes", "obsm/X_pca"])
def test_a_lost_file_of_a_store_of_ours_is_named(tmp_path, converted, part):
    path = shutil.copytree(converted, tmp_path / "b.zarr")
    lost = shard(path, part)
    lost.unlink()
    key = lost.relative_to(path).as_posix()
    with pytest.raises(SourceFormatError, match=f"b.zarr.*'{part}'.*lacks its file '{key}'"):
        lp.convert(path, tmp_path / "c.zarr")
    assert leftovers(tmp_path, "b.zarr") == []


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("part", ["data", "indices", "indptr"])
def test_a_lost_chunk_of_a_sparse_matrix_is_noticed(tmp_path, version, part):
    path = tmp_path / "a.zarr"
    write_zarr(screen(lean=True), path, version)
    node = zarr.open_group(path, mode="r+", use_consolidated=False)["X"]
    values, attrs = node[part][:], dict(node[part].attrs)
    del node[part]
    made = node.create_array(part, shape=values.shape, dtype=values.dtype, chunks=(50,))
    made[:] = values
    made.attrs.update(attrs)
    key = made.metadata.encode_chunk_key((1,))
    (path / "X" / part / key).unlink()
    with pytest.raises(SourceFormatError, match=rf"a\.zarr.*'X/{part}'"):
        lp.convert(path, tmp_path / "b.zarr")
    assert leftovers(tmp_path, "a.zarr") == []


def test_chunks_left_out_because_they_are_zeros_are_zeros(tmp_path):
    matrix = np.zeros((40, 3), "f4")
    matrix[:, 0] = 1  # all indices are zero, and zarr leaves the chunk out
    adata = anndata.AnnData(sparse.csr_matrix(matrix), layers={"flat": np.zeros((40, 3), "f4")})
    adata.obs["nothing"] = np.zeros(40)
    path = write_zarr(adata, tmp_path / "a.zarr")
    assert not [file for file in (path / "X/indices").rglob("*") if file.is_file() and file.name != "zarr.json"]
    lp.convert(path, tmp_path / "b.zarr")
    assert_equal(tmp_path / "b.zarr", read_with_anndata(path))


def spoil(path, change):
    meta = path / "zarr.json"
    meta.write_text(json.dumps(change(json.loads(meta.read_text()))))


BROKEN = {
    "not_json": (lambda p: (p / "X/data/zarr.json").write_text("{"), "'X/data'"),
    "unknown_codec": (
        lambda p: spoil(p / "X/data", lambda m: {**m, "codecs": [{"name": "lost", "configuration": {}}]}),
        "'X/data'.*lost",
    ),
    "damaged_chunk": (lambda p: shard(p, "X/data").write_bytes(b"\0" * 9), "'X/data'.*cannot be read"),
    "truncated_chunk": (
        lambda p: shard(p, "X/indices").write_bytes(shard(p, "X/indices").read_bytes()[:20]),
        "'X/indices'.*cannot be read",
    ),
    "no_obs": (lambda p: shutil.rmtree(p / "obs"), "'obs'.*is missing"),
    "no_column": (lambda p: shutil.rmtree(p / "obs/i8"), "'obs/i8'.*is missing"),
    "no_data": (lambda p: shutil.rmtree(p / "X/data"), "'X/data'.*is missing"),
    "root_not_json": (lambda p: (p / "zarr.json").write_text("no"), "cannot be read as a Zarr group"),
    "root_of_another_kind": (
        lambda p: spoil(p, lambda m: {**m, "attributes": {"encoding-type": "MuData"}}),
        "'MuData', expected 'anndata'",
    ),
    "shape_wrong": (
        lambda p: spoil(p / "X", lambda m: {**m, "attributes": {**m["attributes"], "shape": [90, 18]}}),
        r"'X'.*\(90, 18\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_store_is_one_clear_error(tmp_path, made, case):
    damage, says = BROKEN[case]
    path = shutil.copytree(made, tmp_path / "a.zarr")
    damage(path)
    with pytest.raises(SourceFormatError, match=says) as caught:
        lp.convert(path, tmp_path / "b.zarr", **ROLES)
    assert repr(str(path)) in str(caught.value)
    assert leftovers(tmp_path, "a.zarr") == []


def test_a_zip_file_cut_short_is_said_to_be_one(tmp_path):
    path = write_zarr(screen(lean=True), tmp_path / "a.zarr.zip")
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(SourceFormatError, match="zip"):
        open_source(path)


def test_only_zarr_is_recognised(tmp_path):
    zarrs = converters()["anndata_zarr"]
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04rest")
    for path in (tmp_path, tmp_path / "folder", tmp_path / "a.zip", tmp_path / "nothing"):
        assert not zarrs.recognises(path)
    for name in ("a.zarr", "b.zarr.zip"):
        path = write_zarr(screen(lean=True), tmp_path / name)
        assert [name for name, one in converters().items() if one.recognises(path)] == ["anndata_zarr"]


def test_files_that_are_no_part_of_the_store_are_passed_over(tmp_path, made):
    path = shutil.copytree(made, tmp_path / "a.zarr")
    (path / ".DS_Store").write_bytes(b"x")
    (path / "obs" / "notes").mkdir()
    reader = open_source(path)
    assert reader.not_carried == ()
