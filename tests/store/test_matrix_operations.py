"""SciPy and NumPy compute the same from the matrices of a store as from those of its source file."""

import json
import warnings
from pathlib import Path
from typing import NamedTuple

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

import lazypert as lp
from lazypert.store.store import Store
from tests.support.stores import (
    ROLES,
    counts,
    dense,
    layers_of,
    read_store,
    screen,
    small_grids,
    write,
)

N_OBS, N_VARS = 60, 12


def scaled(factor, *, dtype, seed=0):
    return (counts(N_OBS, N_VARS, seed).astype("f8") * factor).astype(dtype)


def with_signs(matrix):
    matrix.data[::2] *= -1
    return matrix


# Source matrix, stored dtype, and the dtype in which readers get it.
MATRICES = {
    "counts": (scaled(30, dtype="f4"), "u2", "f4"),
    "one_byte": (scaled(28, dtype="u1"), "u2", "f4"),
    "int64": (scaled(7_000, dtype="i8"), "u2", "f4"),
    "above_uint16": (scaled(70_000, dtype="f4"), "u4", "f4"),
    "above_2_to_24": (scaled(2**24 // 9 + 1, dtype="f8"), "u4", "f8"),
    "above_uint32": (scaled(2**31, dtype="i8"), "i8", "f8"),
    "negative": (with_signs(scaled(1_000, dtype="i8")), "i4", "f4"),
    "float32": (scaled(0.37, dtype="f4"), "f4", "f4"),
    "float64": (scaled(0.37, dtype="f8"), "f8", "f8"),
}


class Pair(NamedTuple):
    """A matrix as X and as a layer, read from a store; and the same cells from the file."""

    store: Path
    found: anndata.AnnData
    source: anndata.AnnData
    stored: str
    declared: str


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    made, out = screen(N_OBS, N_VARS, lean=True), {}
    for name, (matrix, stored, declared) in MATRICES.items():
        made.X, made.layers["same"] = matrix, matrix.copy()
        folder = tmp_path_factory.mktemp(name)
        path = write(made, folder / "a.h5ad")
        with pytest.MonkeyPatch.context() as patch:
            small_grids(patch)
            store = lp.convert(path, folder / "a.zarr", **ROLES)
        found = read_store(store)
        out[name] = Pair(store, found, anndata.read_h5ad(path)[found.obs_names].copy(), stored, declared)
    return out


@pytest.fixture(params=MATRICES)
def pair(request, pairs):
    return pairs[request.param]


def indicator():
    """One-hot columns of three groups of cells, as booleans."""
    return sparse.csr_matrix(np.arange(N_OBS)[:, None] % 3 == np.arange(3))


OPERATIONS = {
    "difference of rows": lambda x: x[3] - x[5],
    "difference of blocks": lambda x: x[:20] - x[20:40],
    "difference of columns": lambda x: x[:, :4] - x[:, 4:8],
    "difference from the mean": lambda x: x - x.mean(axis=0),
    "difference from a float": lambda x: x.toarray() - 0.5,
    "difference from an integer": lambda x: x.toarray() - 3,
    "successive differences": lambda x: np.diff(x.toarray(), axis=0),
    "absolute difference": lambda x: abs(x[:20] - x[20:40]),
    "negation": lambda x: -x,
    "sum of blocks": lambda x: x[:20] + x[20:40] + x[40:],
    "square": lambda x: x.power(2),
    "cube": lambda x: x.power(3),
    "elementwise product": lambda x: x.multiply(x),
    "product with a row": lambda x: x.multiply(np.arange(N_VARS)),
    "product with a number": lambda x: x * 3,
    "product with a large integer": lambda x: x.multiply(np.full((1, 1), 70_000)),
    "quotient": lambda x: x / 7,
    "gene by gene": lambda x: x.T @ x,
    "cell by cell": lambda x: x @ x.T,
    "sums of groups": lambda x: indicator().T @ x,
    "sums of groups of bytes": lambda x: indicator().astype("u1").T @ x,
    "weights of genes": lambda x: x @ np.arange(N_VARS),
    "dot product": lambda x: x.dot(np.eye(N_VARS, dtype="i4")),
    "scaled rows": lambda x: sparse.diags(np.arange(N_OBS) / 8) @ x,
    "greater than": lambda x: x > 60,
    "less than a negative": lambda x: (x < -1).astype("i4"),
    "not equal": lambda x: x[:20] != x[20:40],
    "maximum of blocks": lambda x: x[:20].maximum(x[20:40]),
    "minimum with the negative": lambda x: x.minimum(-x),
    "sum": lambda x: np.array([x.sum()]),
    "sums of cells": lambda x: x.sum(axis=1),
    "sums of genes": lambda x: x.sum(axis=0),
    "means": lambda x: x.mean(axis=0),
    "variances": lambda x: x.multiply(x).mean(axis=0) - np.square(x.mean(axis=0)),
    "variances of a dense matrix": lambda x: x.toarray().var(axis=0),
    "covariances": lambda x: np.cov(x.toarray(), rowvar=False),
    "largest values": lambda x: x.max(axis=1),
    "positions of the largest": lambda x: x.argmax(axis=1),
    "numbers of values": lambda x: x.getnnz(axis=0),
    "norms": lambda x: sparse.linalg.norm(x, axis=1),
    "log1p of magnitudes": lambda x: abs(x).log1p(),
    "square root of magnitudes": lambda x: abs(x).sqrt(),
    "every seventh row": lambda x: x[::7],
    "every third column": lambda x: x[:, ::3],
    "rows backwards": lambda x: x[::-1],
    "repeated rows": lambda x: x[[5, 1, 1, 40]],
    "rows by mask": lambda x: x[np.arange(N_OBS) % 2 == 0],
    "coordinates": lambda x: x.tocoo(),
    "by columns": lambda x: x.tocsc()[:, 2],
    "transposed": lambda x: x.T.tocsr()[3:5],
    "stacked": lambda x: sparse.vstack([x[:3], x[3:6].astype("f8")]),
    "side by side": lambda x: sparse.hstack([x, x]).tocsr(),
}


def assert_close(result, expected, precision):
    result, expected = dense(result), dense(expected)
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(result, expected, rtol=precision, atol=precision * scale)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("where", ["X", "same"])
def test_operation_on_a_store_equals_the_one_on_exact_floats(pairs, name, where):
    for pair in pairs.values():
        found, source = ((one.X if where == "X" else one.layers[where]) for one in (pair.found, pair.source))
        expected = OPERATIONS[name](source.astype("f8"))
        assert_close(OPERATIONS[name](found), expected, 1e-5 if pair.declared == "f4" else 1e-13)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_on_a_store_equals_the_one_on_the_file_in_the_same_dtype_bit_for_bit(pairs, name):
    for pair in pairs.values():
        result, expected = OPERATIONS[name](pair.found.X), OPERATIONS[name](pair.source.X.astype(pair.declared))
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(dense(result), dense(expected))


def test_a_third_of_the_operations_is_wrong_on_unsigned_counts(pairs):
    """The two tests above can fail: stores that show counts as they are stored fail them."""
    exact, wrong = pairs["int64"].source.X.astype("f8"), set()
    for name, operation in OPERATIONS.items():
        try:
            assert_close(operation(exact.astype("u2")), operation(exact), 1e-5)
        except (AssertionError, OverflowError):
            wrong.add(name)
    assert wrong >= {"difference of rows", "difference from an integer", "square", "gene by gene", "variances"}
    assert len(wrong) > len(OPERATIONS) / 3


def test_values_have_the_stored_dtype_in_lazypert_and_the_declared_one_elsewhere(pair):
    store, found, source, stored, declared = pair
    assert Store(store).matrix().dtype == Store(store).matrix("same").dtype == stored
    assert found.X.dtype == found.layers["same"].dtype == declared
    assert found.X.indices.dtype == found.X.indptr.dtype == np.int32
    assert zarr.open_array(store / "X" / "data", mode="r").dtype == declared
    np.testing.assert_array_equal(found.X.toarray(), source.X.toarray())
    np.testing.assert_array_equal(found.layers["same"].toarray(), source.X.toarray())


def test_lazypert_reads_the_same_values(pair):
    store, found, _, stored, declared = pair
    matrix = Store(store).matrix()
    assert matrix.read(0, N_OBS).data.dtype == stored
    np.testing.assert_array_equal(matrix.read(0, N_OBS).to_dense(np.float64), found.X.toarray())
    ds = lp.open(store)
    assert ds.X.dtype == ds.same.dtype == declared
    np.testing.assert_array_equal(ds.X.values, found.X.toarray())
    assert lp.verify(store) > 30


def test_lazy_reading_gives_the_same_sums(pair):
    store, found, _, _, declared = pair
    lazy = anndata.experimental.read_lazy(store)
    assert lazy.X.dtype == lazy.layers["same"].dtype == declared
    sums = lazy.X.map_blocks(lambda block: np.asarray(block.sum(axis=1)), chunks=(lazy.X.chunks[0], (1,))).compute()
    np.testing.assert_allclose(sums, found.X.toarray().sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-3)


def test_slices_of_the_sparse_dataset_are_floats(pair):
    store, found, _, _, declared = pair
    dataset = anndata.io.sparse_dataset(zarr.open_group(store, mode="r")["X"])
    for rows in (slice(4, 9), slice(50, None), np.array([3, 30, 59])):
        assert dataset[rows].dtype == declared
        np.testing.assert_array_equal(dataset[rows].toarray(), found.X[rows].toarray())
    assert dataset.to_memory().dtype == declared


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_what_anndata_writes_again_is_the_same(pair, suffix, tmp_path):
    _, found, source, _, declared = pair
    target = tmp_path / f"again{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (found.write_h5ad if suffix == ".h5ad" else found.write_zarr)(target)
        again = (anndata.read_h5ad if suffix == ".h5ad" else anndata.read_zarr)(target)
    assert again.X.dtype == declared
    assert layers_of(again) == {"same"}
    np.testing.assert_array_equal(again.X.toarray(), source.X.toarray())
    pd.testing.assert_frame_equal(again.obs, found.obs)


@pytest.mark.slow
def test_a_store_is_converted_again_without_a_change(pair, tmp_path):
    store, found, _, stored, declared = pair
    again = lp.convert(store, tmp_path / "again.zarr", **ROLES)
    assert Store(again).matrix().dtype == stored
    assert read_store(again).X.dtype == declared
    assert list(read_store(again).obs_names) == list(found.obs_names)
    np.testing.assert_array_equal(read_store(again).X.toarray(), found.X.toarray())


def test_data_frames_and_concatenation_keep_floats(pair):
    _, found, source, _, declared = pair
    frame = found.to_df()
    assert set(frame.dtypes) == {np.dtype(declared)}
    np.testing.assert_array_equal(frame.to_numpy() - frame.to_numpy()[0], dense(source.X) * 1.0 - dense(source.X)[0])
    joined = anndata.concat({"store": found, "file": source}, index_unique="-")
    assert joined.X.dtype == np.result_type(declared, source.X.dtype)
    np.testing.assert_array_equal(joined.X[:N_OBS].toarray(), joined.X[N_OBS:].toarray())


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1], ids=["above", "below"])
def test_integers_that_no_float_represents_are_read_as_they_are(tmp_path, value):
    made = anndata.AnnData(sparse.csr_matrix(np.array([[value, 1], [0, 3]])), pd.DataFrame(index=["a", "b"]))
    store = lp.convert(write(made, tmp_path / "a.h5ad"), tmp_path / "a.zarr")
    found = read_store(store).X
    assert found.dtype == np.int64
    assert found.toarray().tolist() == [[value, 1], [0, 3]]


def test_raw_and_sparse_obsm_are_floats_too(tmp_path):
    made = screen(N_OBS, N_VARS, dtype="i8")
    made.raw = made.copy()
    store = lp.convert(write(made, tmp_path / "a.h5ad"), tmp_path / "a.zarr", **ROLES)
    found = read_store(store)
    source = anndata.read_h5ad(tmp_path / "a.h5ad")[found.obs_names].copy()
    assert found.raw.X.dtype == found.obsm["guides"].dtype == np.float32
    np.testing.assert_array_equal(dense(found.raw.X[0] - found.raw.X[1]), dense(source.raw.X[0] - source.raw.X[1]))
    np.testing.assert_array_equal(dense(found.obsm["guides"]), dense(source.obsm["guides"]))


def test_metadata_that_contradict_themselves_are_refused(tmp_path):
    path = write(screen(N_OBS, N_VARS, lean=True), tmp_path / "a.h5ad")
    store = lp.convert(path, tmp_path / "a.zarr", **ROLES)
    for file in (store / "zarr.json", store / "X" / "data" / "zarr.json"):
        text = json.dumps(json.loads(file.read_text()))
        file.write_text(text.replace('"decode_dtype": "<f4"', '"decode_dtype": "<f8"'))
    with pytest.raises(lp.errors.StoreDamagedError, match="decode_dtype: got '<f8' in an array of float32"):
        Store(store).matrix()
