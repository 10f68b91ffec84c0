"""AnnData's Zarr stores are converted exactly: folders and zip files, formats 2 and 3, and lazypert stores."""

import pickle

import anndata
import pytest

import lazypert as lp
from lazypert.converter import converters, open_source
from tests.support.oracles import assert_equal, read_with_anndata
from tests.support.stores import (
    ROLES,
    leftovers,
    screen,
    small_blocks,
    small_grids,
    source_row,
    write,
)
from tests.support.zarr_stores import write_zarr


def layouts():
    csc, flat = screen(), screen()
    csc.X, flat.X = csc.X.tocsc(), flat.X.toarray()
    with_raw = screen()
    with_raw.raw = screen(n_vars=23, seed=4)[:, :]
    return {"csr": screen(), "csc": csc, "dense": flat, "raw": with_raw}


KINDS = [("csr", 2, "a.zarr"), ("csr", 2, "a.zarr.zip"), ("csr", 3, "a.zarr.zip")]
KINDS += [("csc", 3, "a.zarr"), ("dense", 2, "a.zarr"), ("dense", 3, "a.zarr"), ("raw", 3, "a.zarr")]
SLOW = [pytest.param(*kind, marks=pytest.mark.slow) for kind in KINDS[1:-1]]


@pytest.mark.parametrize(("layout", "version", "name"), [KINDS[0], *SLOW, KINDS[-1]])
def test_zarr_stores_are_converted_exactly(tmp_path, monkeypatch, layout, version, name):
    small_blocks(monkeypatch, 2_000)
    source = layouts()[layout]
    path = write_zarr(source, tmp_path / name, version)
    lp.convert(path, tmp_path / "b.zarr", order="source", **ROLES)
    assert_equal(tmp_path / "b.zarr", read_with_anndata(path))
    assert leftovers(tmp_path, name, "b.zarr") == []


def test_a_store_is_read_like_the_h5ad_of_the_same_screen(tmp_path, anndata_store):
    one, other = open_source(write(screen(), tmp_path / "a.h5ad")), open_source(anndata_store)
    assert (one.matrices, one.obsm, one.obs_columns) == (other.matrices, other.obsm, other.obs_columns)
    assert pickle.loads(pickle.dumps(other)) == other
    for name in one.obs_columns:
        assert one.obs_column(name, 3, 50).dtype == other.obs_column(name, 3, 50).dtype
        assert list(map(str, one.obs_column(name, 3, 50))) == list(map(str, other.obs_column(name, 3, 50)))


def test_a_lazypert_store_can_be_converted_again(tmp_path, anndata_store, monkeypatch):
    small_grids(monkeypatch)
    first = lp.convert(anndata_store, tmp_path / "b.zarr", **ROLES)
    again = lp.convert(first, tmp_path / "c.zarr", pert_col="perturbation")
    assert_equal(again, anndata.read_zarr(first), rows=source_row(again))
    lp.verify(again)


def test_only_zarr_groups_are_recognised(tmp_path):
    zarrs = converters()["anndata_zarr"]
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04rest")
    for path in (tmp_path, tmp_path / "folder", tmp_path / "a.zip", tmp_path / "nothing"):
        assert not zarrs.recognises(path)
    for name in ("a.zarr", "b.zarr.zip"):
        path = write_zarr(screen(lean=True), tmp_path / name)
        assert [name for name, one in converters().items() if one.recognises(path)] == ["anndata_zarr"]
