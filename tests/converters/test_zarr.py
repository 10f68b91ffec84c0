"""Zarr stores as trees: lost files, damage and foreign files are noticed or passed over."""

import json
import shutil

import anndata
import numpy as np
import pytest
import zarr
from scipy import sparse

import lazypert as lp
from lazypert.converter import open_source
from lazypert.errors import SourceFormatError
from tests.support.oracles import assert_equal, read_with_anndata
from tests.support.stores import (
    ROLES,
    leftovers,
    screen,
)
from tests.support.zarr_stores import write_zarr


@pytest.fixture(scope="module")
def converted(anndata_store, tmp_path_factory):
    """Path of a read-only lazypert store."""
    return lp.convert(anndata_store, tmp_path_factory.mktemp("ours") / "b.zarr")


def first_shard(path, array):
    return sorted(file for file in (path / array).rglob("*") if file.is_file() and file.name != "zarr.json")[0]


@pytest.mark.parametrize("array", ["X/data", "X/indices", "X/indptr", "obs/perturbation/codes", "obsm/X_pca"])
def test_a_lost_file_of_a_lazypert_store_is_named(tmp_path, converted, array):
    path = shutil.copytree(converted, tmp_path / "b.zarr")
    lost = first_shard(path, array)
    lost.unlink()
    key = lost.relative_to(path).as_posix()
    with pytest.raises(SourceFormatError, match=f"b.zarr.*'{array}'.*lacks its file '{key}'"):
        lp.convert(path, tmp_path / "c.zarr")
    assert leftovers(tmp_path, "b.zarr") == []


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("array", ["data", "indices", "indptr"])
def test_a_lost_chunk_of_a_sparse_matrix_is_refused(tmp_path, version, array):
    path = tmp_path / "a.zarr"
    write_zarr(screen(lean=True), path, version)
    node = zarr.open_group(path, mode="r+", use_consolidated=False)["X"]
    values, attrs = node[array][:], dict(node[array].attrs)
    del node[array]
    made = node.create_array(array, shape=values.shape, dtype=values.dtype, chunks=(50,))
    made[:] = values
    made.attrs.update(attrs)
    key = made.metadata.encode_chunk_key((1,))
    (path / "X" / array / key).unlink()
    with pytest.raises(SourceFormatError, match=rf"a\.zarr.*'X/{array}'"):
        lp.convert(path, tmp_path / "b.zarr")
    assert leftovers(tmp_path, "a.zarr") == []


def test_omitted_chunks_of_zeros_are_read_as_zeros(tmp_path):
    matrix = np.zeros((40, 3), "f4")
    matrix[:, 0] = 1  # all indices are zero, so zarr omits the chunk
    adata = anndata.AnnData(sparse.csr_matrix(matrix), layers={"flat": np.zeros((40, 3), "f4")})
    adata.obs["nothing"] = np.zeros(40)
    path = write_zarr(adata, tmp_path / "a.zarr")
    assert not [file for file in (path / "X/indices").rglob("*") if file.is_file() and file.name != "zarr.json"]
    lp.convert(path, tmp_path / "b.zarr")
    assert_equal(tmp_path / "b.zarr", read_with_anndata(path))


def rewrite_metadata(path, change):
    meta = path / "zarr.json"
    meta.write_text(json.dumps(change(json.loads(meta.read_text()))))


BROKEN = {
    "not_json": (lambda p: (p / "X/data/zarr.json").write_text("{"), "'X/data'"),
    "unknown_codec": (
        lambda p: rewrite_metadata(p / "X/data", lambda m: {**m, "codecs": [{"name": "lost", "configuration": {}}]}),
        "'X/data'.*lost",
    ),
    "damaged_chunk": (lambda p: first_shard(p, "X/data").write_bytes(b"\0" * 9), "'X/data'.*cannot be read"),
    "truncated_chunk": (
        lambda p: first_shard(p, "X/indices").write_bytes(first_shard(p, "X/indices").read_bytes()[:20]),
        "'X/indices'.*cannot be read",
    ),
    "no_obs": (lambda p: shutil.rmtree(p / "obs"), "'obs'.*is missing"),
    "no_column": (lambda p: shutil.rmtree(p / "obs/i8"), "'obs/i8'.*is missing"),
    "no_data": (lambda p: shutil.rmtree(p / "X/data"), "'X/data'.*is missing"),
    "root_not_json": (lambda p: (p / "zarr.json").write_text("no"), "cannot be read as a Zarr group"),
    "root_of_another_kind": (
        lambda p: rewrite_metadata(p, lambda m: {**m, "attributes": {"encoding-type": "MuData"}}),
        "'MuData', expected 'anndata'",
    ),
    "shape_wrong": (
        lambda p: rewrite_metadata(p / "X", lambda m: {**m, "attributes": {**m["attributes"], "shape": [90, 18]}}),
        r"'X'.*\(90, 18\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_stores_are_refused_with_one_clear_error(tmp_path, anndata_store, case):
    damage, says = BROKEN[case]
    path = shutil.copytree(anndata_store, tmp_path / "a.zarr")
    damage(path)
    with pytest.raises(SourceFormatError, match=says) as caught:
        lp.convert(path, tmp_path / "b.zarr", **ROLES)
    assert repr(str(path)) in str(caught.value)
    assert leftovers(tmp_path, "a.zarr") == []


def test_a_truncated_zip_file_is_described_as_one(tmp_path):
    path = write_zarr(screen(lean=True), tmp_path / "a.zarr.zip")
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(SourceFormatError, match="zip"):
        open_source(path)


def test_files_that_do_not_belong_to_the_store_are_ignored(tmp_path, anndata_store):
    path = shutil.copytree(anndata_store, tmp_path / "a.zarr")
    (path / ".DS_Store").write_bytes(b"x")
    (path / "obs" / "notes").mkdir()
    reader = open_source(path)
    assert reader.not_carried == ()


@pytest.mark.parametrize("name", ["obs/ordered/codes/0", "X/data/0"])
def test_blosc_chunks_that_are_cut_short_are_refused(tmp_path, name):
    path = write_zarr(screen(20, 6), tmp_path / "a.zarr", version=2)
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[:-5])
    with pytest.raises(SourceFormatError, match=f"'{name}', which is cut short"):
        lp.convert(path, tmp_path / "b.zarr")
    (path / name).write_bytes(data)
    lp.convert(path, tmp_path / "b.zarr")
