"""H5AD files: every encoding is read as AnnData reads it, and nothing in them is trusted."""

import pickle
import shutil

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from stores import (
    ROLES,
    counts,
    every_column,
    leftovers,
    no_sync,  # noqa: F401 - a fixture for the whole module
    read_store,
    screen,
    write,
)

import lazypert as lp
from lazypert.converter import open_source
from lazypert.errors import LazypertError, SourceFormatError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("h5ad")
    adata = screen()
    csc = screen()
    csc.X = csc.X.tocsc()
    flat = screen()
    flat.X = flat.X.toarray()
    return {n: write(a, folder / f"{n}.h5ad") for n, a in (("csr", adata), ("csc", csc), ("dense", flat))}


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
@pytest.mark.parametrize("size", [1, 300, 5_000, 10**9])
def test_blocks_tile_the_matrix_and_keep_to_the_budget(made, layout, size):
    reader = open_source(made[layout])
    expected = anndata.read_h5ad(made["csr"]).X.toarray()
    blocks = reader.blocks("X", size)
    end = reader.n_vars if layout == "csc" else reader.n_obs
    assert [b.start for b in blocks] == [0, *(b.stop for b in blocks[:-1])]
    assert blocks[-1].stop == end
    total = np.zeros_like(expected)
    for spec in blocks:
        block = reader.read_block(spec)
        rows = slice(block.first_row, block.first_row + block.csr.shape[0])
        total[rows] += block.csr.to_dense()
        held = block.csr.nnz * (block.csr.data.itemsize + block.csr.indices.itemsize)
        assert held <= size or spec.stop - spec.start == 1
    np.testing.assert_array_equal(total, expected)
    if size == 10**9:
        assert len(blocks) == 1


def test_the_reader_is_picklable_and_lists_what_there_is(made):
    reader = pickle.loads(pickle.dumps(open_source(made["csr"])))
    assert reader.matrices == {"X": 17, "layers/lognorm": 17, "obsm/guides": 5}
    assert reader.obsm == {"X_pca": 3}
    assert reader.obs_columns == tuple(every_column(1).columns)
    source = anndata.read_h5ad(made["csr"])
    assert list(reader.obs_names()) == list(source.obs_names)
    pd.testing.assert_frame_equal(reader.var(), source.var)
    np.testing.assert_array_equal(reader.read_obsm("X_pca", 3, 8), source.obsm["X_pca"][3:8])


def rewrite(file, path, values):
    attrs = dict(file[path].attrs) if path in file else {}
    del file[path]
    file[path] = values
    file[path].attrs.update(attrs)


def change(path, index, value):
    def apply(file):
        file[path][index] = value

    return apply


def cut(path):
    def apply(file):
        where = path if isinstance(file[path], h5py.Dataset) else f"{path}/values"
        rewrite(file, where, file[where][:-1])

    return apply


def drop(path):
    def apply(file):
        del file[path]

    return apply


def virtual(file):
    """data becomes a view of a file that is gone: HDF5 reads zeros."""
    n = file["X/data"].shape[0]
    layout = h5py.VirtualLayout((n,), "f4")
    layout[:] = h5py.VirtualSource("gone.h5", "data", (n,))
    del file["X/data"]
    file["X"].create_virtual_dataset("data", layout)


HOSTILE = {
    "negative_column": (change("X/indices", 3, -1), "X/indices"),
    "column_too_big": (change("X/indices", 3, 17), "X/indices"),
    "indptr_not_from_0": (change("X/indptr", 0, 1), "X/indptr"),
    "indptr_decreases": (change("X/indptr", 40, 0), "X/indptr"),
    "indptr_past_the_end": (change("X/indptr", -1, 10**6), "X/indptr"),
    "indptr_short": (cut("X/indptr"), "X/indptr"),
    "data_shorter_than_indices": (cut("X/data"), "'X'"),
    "both_shorter_than_indptr": (lambda f: [cut("X/data")(f), cut("X/indices")(f)], "X/indptr"),
    "shape_wrong": (lambda f: f["X"].attrs.update(shape=[90, 18]), "'X'"),
    "float_indices": (lambda f: rewrite(f, "X/indices", f["X/indices"][:] + 0.5), "X"),
    "text_data": (lambda f: rewrite(f, "X/data", np.full(f["X/data"].shape, b"x")), "X"),
    "no_indptr": (drop("X/indptr"), "X"),
    "no_data": (drop("X/data"), "X"),
    "unknown_encoding": (lambda f: f["X"].attrs.update({"encoding-type": "coo_matrix"}), "coo"),
    "virtual_source_gone": (virtual, "gone.h5"),
    "short_obs_column": (cut("obs/i8"), "obs/i8"),
    "short_role_column": (cut("obs/perturbation/codes"), "obs/perturbation"),
    "code_too_big": (change("obs/perturbation/codes", 0, 99), "obs/perturbation"),
    "column_listed_but_absent": (drop("obs/i8"), "i8"),
    "mask_short": (cut("obs/maybe_int/mask"), "obs/maybe_int"),
    "index_short": (cut("obs/_index"), "X"),
    "layer_index": (change("layers/lognorm/indices", 0, 99), "layers/lognorm/indices"),
    "obsm_short": (cut("obsm/X_pca"), "obsm/X_pca"),
    "beyond_int64": (lambda f: rewrite(f, "X/data", np.full(f["X/data"].shape, 2**63, "u8")), "9223372036854775807"),
    "no_index": (lambda f: f["obs"].attrs.update(_index="gone"), "gone"),
    "compound_obs": (lambda f: rewrite(f, "obs", np.zeros(90, [("index", "i4")])), "AnnData before 0.7"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_damaged_file_is_one_clear_error_and_no_store(tmp_path, made, kind):
    damage, says = HOSTILE[kind]
    path = tmp_path / "bad.h5ad"
    shutil.copy(made["csr"], path)
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(LazypertError) as caught:
        lp.convert(path, tmp_path / "s.zarr", **ROLES)
    assert says in str(caught.value)
    assert str(path) in str(caught.value) or kind == "beyond_int64"
    assert len(str(caught.value)) < 1_000
    assert leftovers(tmp_path, "bad.h5ad") == []


def test_a_damaged_chunk_is_an_error(tmp_path):
    rng = np.random.default_rng(0)
    adata = anndata.AnnData(sparse.csr_matrix(rng.random((500, 200))))
    path = tmp_path / "a.h5ad"
    adata.write_h5ad(path, compression="gzip")
    with h5py.File(path) as file:
        chunk = file["X/data"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + 100 : chunk.byte_offset + 140] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(SourceFormatError, match="X"):
        lp.convert(path, tmp_path / "s.zarr")
    assert leftovers(tmp_path, "a.h5ad") == []


@pytest.mark.parametrize("kind", ["data", "column", "embedding"])
def test_big_endian_values(tmp_path, kind):
    adata = screen(lean=True)
    adata.obs["i8"], adata.obsm["X_pca"] = np.arange(90), np.random.default_rng(0).normal(size=(90, 3))
    path = write(adata, tmp_path / "a.h5ad")
    where = {"data": "X/data", "column": "obs/i8", "embedding": "obsm/X_pca"}[kind]
    with h5py.File(path, "r+") as file:
        rewrite(file, where, file[where][:].astype(file[where].dtype.newbyteorder(">")))
    found = read_store(lp.convert(path, tmp_path / "s.zarr", order="source", **ROLES))
    np.testing.assert_array_equal(found.X.toarray(), adata.X.toarray())
    np.testing.assert_array_equal(found.obs["i8"], adata.obs["i8"])
    np.testing.assert_array_equal(found.obsm["X_pca"], adata.obsm["X_pca"])


@pytest.mark.parametrize("dtype", ["f2", "u1", "i2", "bool"])
def test_narrow_matrices(tmp_path, dtype):
    matrix = counts(20, 5).toarray().astype(dtype)
    adata = anndata.AnnData(np.zeros((20, 5), "f4"))
    path = write(adata, tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        rewrite(file, "X", matrix)
    np.testing.assert_array_equal(read_store(lp.convert(path, tmp_path / "s.zarr")).X.toarray(), matrix)


def test_old_categoricals(tmp_path):
    path = write(screen(lean=True), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        obs = file["obs"]
        codes, labels = obs["batch/codes"][:], obs["batch/categories"][:]
        del obs["batch"]
        obs["__categories/batch"] = labels
        obs["batch"] = codes
        obs["batch"].attrs["categories"] = obs["__categories/batch"].ref
        obs.attrs["encoding-version"] = "0.1.0"
    found = read_store(lp.convert(path, tmp_path / "old.zarr", order="source", **ROLES))
    assert found.obs["batch"].tolist() == screen().obs["batch"].tolist()
