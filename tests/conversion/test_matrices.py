"""Matrices are written without loss, and with the same bytes however the work is divided."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import anndata
import dask
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import lazypert as lp
from lazypert.store.store import Store
from tests.support.stores import (
    ROLES,
    assert_same,
    converted,
    counts,
    dense,
    files,
    read_store,
    screen,
    small_blocks,
    small_grids,
    with_layer,
    write,
)


@pytest.mark.parametrize(
    ("matrix", "dtype"),
    [
        pytest.param(counts(20, 6, dtype="i8"), "u2", id="int64"),
        pytest.param(counts(20, 6, dtype="f8"), "u2", id="float64_counts"),
        pytest.param(counts(20, 6, dtype="f8") * 0.1, "f8", id="float64"),
        pytest.param(counts(20, 6, dtype="u1"), "u2", id="uint8"),
        pytest.param(counts(20, 6, dtype="f4") * 70_000, "u4", id="large"),
        pytest.param(counts(20, 6, dtype="f4") * -1, "i4", id="negative"),
        pytest.param(counts(20, 6, dtype="f4") * np.float32(np.nan), "f4", id="nan"),
        pytest.param(counts(20, 6).astype(bool), "u2", id="bool"),
        pytest.param(sparse.csr_matrix((20, 6), dtype="f4"), "u2", id="nothing_stored"),
        pytest.param(counts(20, 6, density=1.0), "u2", id="full"),
    ],
)
def test_values_are_narrowed_without_loss(tmp_path, matrix, dtype):
    adata = anndata.AnnData(matrix, pd.DataFrame(index=[f"c{i}" for i in range(20)]))
    path = write(adata, tmp_path / "a.h5ad")
    store = lp.convert(path, tmp_path / "a.zarr")
    result = read_store(store).X
    assert Store(store).matrix().dtype == dtype
    assert result.dtype == ("f8" if dtype == "f8" else "f4")
    assert result.indices.dtype == result.indptr.dtype == np.int32
    np.testing.assert_array_equal(result.toarray(), matrix.toarray())
    summary = Store(store).attrs["matrices"]["X"]
    assert summary["nnz"] == matrix.nnz
    if not np.isnan(matrix.data).any():
        assert summary["sum"] == pytest.approx(matrix.sum())
        assert (summary["minimum"], summary["maximum"]) == (matrix.min(), matrix.max())


@pytest.mark.parametrize("layout", ["csr", "csc"])
@pytest.mark.parametrize("index_dtype", ["i4", "i8", "u4"])
def test_unsorted_duplicate_and_wide_indices_are_converted(tmp_path, layout, index_dtype):
    path = write(anndata.AnnData(counts(6, 6), pd.DataFrame(index=list("abcdef"))), tmp_path / "a.h5ad")
    indices = np.array([5, 0, 0, 3, 2, 1, 1, 1, 4], dtype=index_dtype)
    data, indptr = np.arange(1, 10, dtype="f4"), np.array([0, 0, 4, 4, 5, 9, 9], dtype="i8")
    with h5py.File(path, "r+") as file:
        for name, values in (("data", data), ("indices", indices), ("indptr", indptr)):
            del file[f"X/{name}"]
            file[f"X/{name}"] = values
        file["X"].attrs["encoding-type"] = f"{layout}_matrix"
    expected = getattr(sparse, f"{layout}_matrix")((data, indices.astype("i4"), indptr), shape=(6, 6)).toarray()
    result = read_store(lp.convert(path, tmp_path / "a.zarr")).X
    assert result.has_canonical_format
    np.testing.assert_array_equal(result.toarray(), expected)


def test_duplicates_add_up_beyond_their_dtype(tmp_path):
    matrix = sparse.csr_matrix((np.array([200, 100, 7], "u1"), np.array([1, 1, 0]), np.array([0, 2, 3])), (2, 2))
    path = write(anndata.AnnData(matrix, pd.DataFrame(index=["a", "b"])), tmp_path / "a.h5ad")
    assert dense(read_store(lp.convert(path, tmp_path / "s.zarr")).X).tolist() == [[0, 300], [7, 0]]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A source file, and the files of its store as written with the synchronous scheduler."""
    folder = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch, dask.config.set(scheduler="synchronous"):
        small_grids(patch)
        path, store = converted(folder, with_layer())
    return path, files(store)


def assert_same_files(store, expected):
    result = files(store)
    assert result.keys() == expected.keys()
    # The manifest covers the zarr.json files too.
    assert [key for key in result if result[key] != expected[key]] == []
    assert sum(key.startswith("X/data/c/") for key in result) > 2


@pytest.mark.parametrize("size", [1, 400, 10**6])
def test_block_size_does_not_change_the_bytes(tmp_path, monkeypatch, reference, size):
    small_grids(monkeypatch)
    small_blocks(monkeypatch, size)
    assert_same_files(lp.convert(reference[0], tmp_path / "s.zarr", **ROLES), reference[1])


def test_threads_do_not_change_the_bytes(tmp_path, monkeypatch, reference):
    small_grids(monkeypatch)
    small_blocks(monkeypatch, 500, workers=4)
    with dask.config.set(scheduler="threads", num_workers=4):
        assert_same_files(lp.convert(reference[0], tmp_path / "s.zarr", **ROLES), reference[1])


@pytest.mark.slow
def test_processes_do_not_change_the_bytes(tmp_path, monkeypatch):
    small_grids(monkeypatch)
    small_blocks(monkeypatch, 500)
    path = write(screen(150, 9, lean=True), tmp_path / "a.h5ad")
    with dask.config.set(scheduler="synchronous"):
        expected = files(lp.convert(path, tmp_path / "one.zarr", **ROLES))
    # One pool for all phases: Dask would start new processes for each.
    with (
        ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool,
        dask.config.set(scheduler="processes", pool=pool),
    ):
        assert_same_files(lp.convert(path, tmp_path / "two.zarr", **ROLES), expected)


@pytest.mark.slow
def test_a_cluster_does_not_change_the_bytes(tmp_path, monkeypatch, reference):
    distributed = pytest.importorskip("distributed")
    small_grids(monkeypatch)
    small_blocks(monkeypatch, 2_000)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster),
    ):
        assert_same_files(lp.convert(reference[0], tmp_path / "s.zarr", **ROLES), reference[1])


def test_progress_counts_every_task(tmp_path, monkeypatch):
    small_blocks(monkeypatch, 700)
    seen = []
    converted(tmp_path, screen(lean=True), progress=seen.append)
    phases = list(dict.fromkeys(event.phase for event in seen))
    assert phases[:5] == [
        f"obs: {step}"
        for step in ("reading labels", "reading names", "counting names", "sorting cells", "placing cells")
    ]
    assert phases[5:7] == ["obs/_index: reading and sorting", "obs/_index: writing shards"]
    assert phases[-2:] == ["X: reading and sorting", "X: writing shards"]
    for phase in phases:
        events = [event for event in seen if event.phase == phase]
        assert [event.done for event in events] == list(range(events[-1].total + 1))
        sizes = [event.n_bytes for event in events]
        assert sizes[0] == 0 < sizes[-1]
        assert sizes == sorted(sizes)


def test_invalid_checkpoints_are_ignored(tmp_path, monkeypatch):
    path = write(screen(lean=True), tmp_path / "a.h5ad")

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lazypert.conversion.convert.write_tables", fail)
        with pytest.raises(KeyboardInterrupt):
            lp.convert(path, tmp_path / "s.zarr", **ROLES)
    (staging,) = tmp_path.glob("s.zarr.partial-*")
    for checkpoint in staging.rglob("work/*/*.json"):
        checkpoint.write_text("{}")
    (staging / "store/X/data/c/77").write_text("junk")
    store = lp.convert(path, tmp_path / "s.zarr", **ROLES)
    assert not (store / "X/data/c/77").exists()
    assert_same(store, anndata.read_h5ad(path))
