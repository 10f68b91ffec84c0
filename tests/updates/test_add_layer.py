"""Added layers equal the given matrix at every door, are stored like converted ones, and are read block by block."""

import itertools

import anndata
import dask.array
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import lazypert as lp
from lazypert.errors import ConfigError
from lazypert.store.store import Store
from tests.support.killer import files
from tests.support.stores import ROLES, read_store, small_screen, write


def values(dtype="f4"):
    return (sparse.random(90, 17, density=0.3, format="csr", random_state=0) * 100).astype(dtype)


def in_blocks(matrix, *bounds):
    return (matrix[start:stop] for start, stop in zip((0, *bounds), (*bounds, 90), strict=True))


KINDS = {
    "csr": lambda m: m,
    "csc": lambda m: m.tocsc(),
    "dense": lambda m: m.toarray(),
    "blocks": lambda m: in_blocks(m, 1, 40, 40, 77),
    "dense_blocks": lambda m: in_blocks(m.toarray(), 33),
}


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, "f4") for kind in KINDS), ("csr", "f8"), ("csr", "u1"), ("blocks", "i8"), ("dense", "?"), ("csr", "?")],
)
def test_a_layer_reads_back(store, kind, dtype):
    matrix = values(dtype)
    lp.add_layer(store, "new", KINDS[kind](matrix))
    lp.verify(store)
    layer = read_store(store).layers["new"]
    np.testing.assert_array_equal(layer.toarray(), matrix.toarray())
    assert layer.has_canonical_format
    np.testing.assert_array_equal(lp.open(store)["new"].values, matrix.toarray())


@pytest.mark.parametrize("dtype", [">f4", "f2"])
def test_dtypes_that_scipy_lacks(store, dtype):
    matrix = values().toarray().astype(dtype)
    lp.add_layer(store, "new", matrix)
    np.testing.assert_array_equal(read_store(store).layers["new"].toarray(), matrix)


def test_a_layer_is_stored_as_conversion_would_store_it(store, tmp_path):
    adata = small_screen()
    adata.layers["new"] = adata.X * 3
    write(adata, tmp_path / "s.h5ad")
    converted = lp.convert(tmp_path / "s.h5ad", tmp_path / "converted.zarr", progress=False, **ROLES)
    lp.add_layer(store, "new", read_store(store).X * 3)
    ours, theirs = files(store), files(converted)
    assert set(ours) == set(theirs)
    assert {key for key in ours if ours[key] != theirs[key]} == {"zarr.json"}
    assert Store(store).attrs["matrices"] == Store(converted).attrs["matrices"]


def test_the_x_of_an_anndata_object_and_of_a_file(store, tmp_path, monkeypatch):
    monkeypatch.setattr("lazypert.updates.add_layer._BLOCK_ROWS", 7)
    adata = read_store(store)
    adata.X = values()
    lp.add_layer(store, "memory", adata)
    write(adata, tmp_path / "t.h5ad")
    backed = anndata.read_h5ad(tmp_path / "t.h5ad", backed="r")
    lp.add_layer(store, "file", backed)
    backed.file.close()
    for name in ("memory", "file"):
        np.testing.assert_array_equal(read_store(store).layers[name].toarray(), values().toarray())


@pytest.mark.parametrize("kind", ["dense", "sparse", "lazy"])
def test_arrays_of_dask(store, tmp_path, kind):
    array = dask.array.from_array(values().toarray(), chunks=(40, 17))
    if kind == "lazy":
        adata = read_store(store)
        adata.X = values()
        given = anndata.experimental.read_lazy(write(adata, tmp_path / "t.h5ad"))
    else:
        given = array if kind == "dense" else array.map_blocks(sparse.csr_matrix)
    lp.add_layer(store, "new", given)
    np.testing.assert_array_equal(read_store(store).layers["new"].toarray(), values().toarray())


def test_repeats_are_summed_and_the_matrix_is_not_changed(store):
    matrix = sparse.csr_matrix((np.array([1.0, 2.0, 4.0]), np.array([5, 2, 5]), np.array([0, 3, *[3] * 89])), (90, 17))
    lp.add_layer(store, "new", matrix)
    assert matrix.indices.tolist() == [5, 2, 5]
    np.testing.assert_array_equal(read_store(store).layers["new"].toarray()[0, [2, 5]], [2, 5])


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.coo_matrix, sparse.csc_matrix])
def test_sums_of_repeats_do_not_wrap(store, make):
    narrow = (np.array([200, 100], "u1"), (np.array([0, 0]), np.array([5, 5])))
    matrix = sparse.coo_matrix(narrow, shape=(90, 17))
    if make is not sparse.coo_matrix:
        n, minor, major = (90, 5, 0) if make is sparse.csr_matrix else (17, 0, 5)
        indptr = np.where(np.arange(n + 1) > major, 2, 0)
        matrix = make((narrow[0], np.array([minor, minor]), indptr), shape=(90, 17))
    lp.add_layer(store, "new", matrix)
    assert read_store(store).layers["new"][0, 5] == 300


def test_a_source_reads_an_added_layer_and_its_digest_counts(store):
    matrix = values()
    digest = Store(store).content_digest
    lp.add_layer(store, "new", matrix)
    config = lp.PerturbationSourceConfig(file_path=store, layer="new")
    source = lp.PerturbationAnnDataSource(config)
    np.testing.assert_array_equal(source[5]["counts"], matrix[5].toarray().ravel())
    assert Store(store).content_digest == digest
    assert source.content_digests() != (digest,)


def test_empty_and_non_finite_layers(store):
    lp.add_layer(store, "empty", sparse.csr_matrix((90, 17)))
    infinite = np.zeros((90, 17))
    infinite[0, :3] = np.inf, -np.inf, np.nan
    lp.add_layer(store, "infinite", infinite)
    lp.verify(store)
    found = read_store(store)
    assert found.layers["empty"].nnz == 0
    np.testing.assert_array_equal(found.layers["infinite"].toarray(), infinite)


def with_column(matrix, number):
    matrix.indices[0] = number
    return matrix


def without_x(store):
    adata = read_store(store)
    del adata.X
    return adata


def shifted(store):
    adata = read_store(store)
    return adata[np.roll(np.arange(90), 1)]


BAD_LAYERS = {
    "exists": ("lognorm", lambda _: values(), "'lognorm', which is a matrix of the store already"),
    "raw": ("raw", lambda _: values(), "'raw', which is a matrix of the store already"),
    "shape": ("new", lambda _: values()[:89], r"got shape \(89, 17\), expected \(90, 17\)"),
    "too_few_rows": ("new", lambda _: iter([values()[:89]]), "got 89 rows, expected 90"),
    "too_many_rows": ("new", lambda _: iter([values(), values()]), "got more than the store's 90 rows"),
    "endless": ("new", lambda _: itertools.repeat(values()), "got more than the store's 90 rows"),
    "columns_of_a_block": ("new", lambda _: [values()[:, :3]], r"block 1: got csr_matrix of shape \(90, 3\)"),
    "masked": ("new", lambda _: np.ma.masked_less(np.ones((90, 17)), 0), "got a masked array"),
    "frame": ("new", lambda _: pd.DataFrame(np.ones((90, 17))), "got DataFrame of shape"),
    "column_beyond": ("new", lambda _: with_column(values(), 17), "got a malformed CSR matrix"),
    "column_before": ("new", lambda _: iter([with_column(values(), -1)]), "block 1: got a malformed CSR matrix"),
    "no_x": ("new", without_x, "got AnnData without X"),
    "dtypes": ("new", lambda _: [values()[:9], values("f8")[9:]], "got float64 in block 2 after blocks of float32"),
    "complex": ("new", lambda _: np.ones((90, 17), complex), "block 1: got values of complex128"),
    "order": ("new", shifted, "other cells or genes than the store, or in another order"),
    "number": ("new", lambda _: 3, "got int, expected a SciPy matrix"),
    "slash": ("a/b", lambda _: values(), "got the name 'a/b'"),
}


@pytest.mark.parametrize(("name", "make", "message"), BAD_LAYERS.values(), ids=BAD_LAYERS)
def test_wrong_layers_are_clear_errors(store, name, make, message):
    before = files(store)
    with pytest.raises(ConfigError, match=message):
        lp.add_layer(store, name, make(store))
    assert files(store) == before
    assert [path.name for path in store.parent.iterdir()] == [store.name]
