"""H5AD files: every encoding is read as AnnData reads it, and nothing in them is trusted."""

import pickle

import anndata
import numpy as np
import pandas as pd
import pytest
from stores import (
    every_column,
    no_sync,  # noqa: F401 - a fixture for the whole module
    screen,
    write,
)

from lazypert.converter import open_source


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
