"""10x mtx folders written by hand, and the comparison of their stores with what scanpy reads."""

import gzip
import warnings

import anndata
import numpy as np
from scipy import sparse

import lazypert as lp
from tests.support.stores import counts, dense, source_row


def save(path, text):
    """Write text, compressed if the name says so."""
    raw = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(raw, 1) if path.name.endswith(".gz") else raw)


def entries(matrix, order="cell"):
    """Text of a cells x genes matrix in 10x's format, genes x cells, sorted by cell, gene or neither."""
    found = sparse.coo_array(matrix)
    keys = {"cell": (found.col, found.row), "gene": (found.row, found.col)}
    rows = np.lexsort(keys[order]) if order in keys else np.random.default_rng(0).permutation(found.nnz)
    kind = "integer" if found.data.dtype.kind in "iu" else "real"
    text = [f"%%MatrixMarket matrix coordinate {kind} general\n%metadata_json: {{}}\n"]
    text += [f"{matrix.shape[1]} {matrix.shape[0]} {found.nnz}\n"]
    text += [f"{found.col[k] + 1} {found.row[k] + 1} {found.data[k]}\n" for k in rows]
    return "".join(text)


def folder(path, matrix=None, *, text=None, gz=True, legacy=False, prefix="", order="cell", genes=None):
    """Write a 10x folder, or add three files with another prefix to it."""
    path.mkdir(exist_ok=True)
    matrix = counts(30, 7, dtype="i8") if matrix is None else matrix
    n_obs, n_vars = matrix.shape
    genes = [f"gene{j}" for j in range(n_vars)] if genes is None else genes
    packing = ".gz" if gz else ""
    kind = "" if legacy else "\tGene Expression"
    save(path / f"{prefix}matrix.mtx{packing}", entries(matrix, order) if text is None else text)
    save(path / f"{prefix}barcodes.tsv{packing}", "".join(f"CELL-{i}\n" for i in range(n_obs)))
    table = "".join(f"ENSG{j}\t{genes[j]}{kind}\n" for j in range(n_vars))
    save(path / f"{prefix}{'genes' if legacy else 'features'}.tsv{packing}", table)
    return path


def assert_same_as_scanpy(path, source, dtype=None):
    """The store at a path holds what scanpy reads in the source, whose values scanpy may have rounded to `dtype`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Variable names are not unique")
        found, rows = anndata.read_zarr(path), source_row(path)
    np.testing.assert_array_equal(np.sort(rows), np.arange(source.n_obs))
    assert list(found.obs_names) == list(source.obs_names[rows])
    assert list(found.var_names) == list(source.var_names)
    assert list(found.var) == list(source.var)
    for name in source.var:
        assert list(found.var[name]) == list(source.var[name])
    assert list(found.obs) == list(source.obs)
    for name in source.obs:
        assert list(found.obs[name]) == list(source.obs[name].iloc[rows])
    values = dense(found.X) if dtype is None else dense(found.X).astype(dtype)
    np.testing.assert_array_equal(values, dense(source.X)[rows])
    assert found.X.has_canonical_format
    lp.verify(path)
