"""H5AD readers return matrices in source blocks of limited size, and columns by row range."""

import pickle

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

from lazypert.converter import converters, open_source
from lazypert.errors import ColumnNotFoundError, LazypertError
from tests.support.h5files import write_base
from tests.support.oracles import read_with_anndata, same_frame
from tests.support.stores import every_column, screen, write


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
def test_blocks_cover_the_matrix_and_respect_the_size_limit(made, layout, size):
    reader = open_source(made[layout])
    expected = anndata.read_h5ad(made["csr"]).X.toarray()
    blocks = reader.blocks("X", size)
    ends = {"csr": reader.n_obs, "csc": reader.n_vars, "dense": reader.n_obs * reader.n_vars}
    assert [b.start for b in blocks] == [0, *(b.stop for b in blocks[:-1])]
    assert blocks[-1].stop == ends[layout]
    smallest = reader.n_vars if layout == "dense" else 1
    total = np.zeros_like(expected)
    for spec in blocks:
        block = reader.read_block(spec)
        rows = slice(block.first_row, block.first_row + block.csr.shape[0])
        total[rows] += block.csr.to_dense()
        held = block.csr.nnz * (block.csr.data.itemsize + block.csr.indices.itemsize)
        assert held <= size or spec.stop - spec.start == smallest
    np.testing.assert_array_equal(total, expected)
    if size == 10**9:
        assert len(blocks) == 1


def test_readers_are_picklable_and_list_the_contents(made):
    reader = pickle.loads(pickle.dumps(open_source(made["csr"])))
    assert reader.matrices == {"X": 17, "layers/lognorm": 17, "obsm/guides": 5}
    assert reader.obsm == {"X_pca": 3}
    assert reader.obs_columns == tuple(every_column(1).columns)
    source = anndata.read_h5ad(made["csr"])
    assert list(reader.obs_names()) == list(source.obs_names)
    same_frame(reader.var(), source.var)
    np.testing.assert_array_equal(reader.read_obsm("X_pca", 3, 8), source.obsm["X_pca"][3:8])


@pytest.mark.parametrize("name", every_column(1).columns)
def test_ranges_of_a_column_add_up_to_the_column(made, name):
    reader = open_source(made["csr"])
    column = reader.obs_column(name)
    ranges = [reader.obs_column(name, start, start + 40) for start in (0, 40, 80)]
    assert [len(values) for values in ranges] == [40, 40, 10]
    assert {str(values.dtype) for values in ranges} == {str(column.dtype)}
    for values in ranges:
        assert values.dtype == column.dtype
    joined = pd.concat([pd.Series(values) for values in ranges], ignore_index=True)
    pd.testing.assert_series_equal(joined, pd.Series(column))
    source = read_with_anndata(made["csr"]).obs[[name]]
    same_frame(pd.DataFrame({name: column}, index=source.index), source)


def test_ranges_of_names_equal_slices_of_all_names(made):
    reader = open_source(made["csr"])
    names = list(reader.obs_names())
    assert [*reader.obs_names(0, 7), *reader.obs_names(7, 90)] == names
    assert list(reader.obs_names(30)) == names[30:]


def test_a_range_of_a_column_reads_only_its_chunks(tmp_path):
    """A chunk of other rows is damaged, so that reading it would raise."""

    def chunked(file):
        values = file["obs/n"][:]
        attrs = dict(file["obs/n"].attrs)
        del file["obs/n"]
        file["obs"].create_dataset("n", data=values, chunks=(4,), compression="gzip")
        file["obs/n"].attrs.update(attrs)

    path = write_base(tmp_path / "a.h5ad", chunked)
    with h5py.File(path) as file:
        chunk = file["obs/n"].id.get_chunk_info(2)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * chunk.size)
    reader = open_source(path)
    assert list(reader.obs_column("n", 2, 8)) == list(range(2, 8))
    with pytest.raises(LazypertError, match="'obs/n'"):
        reader.obs_column("n")


def test_the_error_for_a_missing_column_suggests_similar_names(made):
    with pytest.raises(ColumnNotFoundError, match=r"'perturbaton'.*'perturbation'"):
        open_source(made["csr"]).obs_column("perturbaton")
    with pytest.raises(ColumnNotFoundError, match=r"matrix: got 'raw/X', expected a matrix of .*'layers/lognorm'"):
        open_source(made["csr"]).raw_var()


def test_scratch_bytes_count_chunks_and_row_pointers(tmp_path):
    def change(file):
        del file["layers"]
        layers = file.create_group("layers")
        layers.create_dataset("tiles", data=np.ones((12, 7)), chunks=(6, 4))
        group = layers.create_group("csc")
        group.attrs.update({"encoding-type": "csc_matrix", "encoding-version": "0.1.0", "shape": (12, 7)})
        group["data"], group["indices"], group["indptr"] = np.ones(2), np.array([0, 1]), np.array([0, 2] + [2] * 6)

    reader = open_source(write_base(tmp_path / "a.h5ad", change))
    assert reader.scratch_bytes("X") == 0  # contiguous
    assert reader.scratch_bytes("layers/csc") >= 3 * 8 * 13
    assert reader.scratch_bytes("layers/tiles") >= 2 * 6 * 4 * 8


def test_files_are_recognised_by_content_or_name(tmp_path):
    h5ad = converters()["h5ad"]
    for name, members in (("a.h5", ["obs", "var"]), ("b.h5", ["X"]), ("c.h5ad", ["anything"])):
        with h5py.File(tmp_path / name, "w") as file:
            for member in members:
                file.create_group(member)
        assert h5ad.recognises(tmp_path / name)
    for name, members in (("d.h5", ["anything"]), ("e.h5mu", ["mod", "obs", "var"]), ("f.h5ad", ["matrix"])):
        with h5py.File(tmp_path / name, "w") as file:
            for member in members:
                file.create_group(member)
        assert not h5ad.recognises(tmp_path / name)
