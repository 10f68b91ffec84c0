"""Compact stores hold what fast ones hold: for lazypert, zarr-python and AnnData, after every operation."""

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

import lazypert as lp
from lazypert.errors import ConfigError, StoreDamagedError
from lazypert.sparse.columns import ColumnSelection
from lazypert.store.store import Store
from tests.support.killer import files as files_and_metadata
from tests.support.native import hide_native_functions
from tests.support.stores import (
    ROLES,
    assert_same,
    converted,
    copied,
    files,
    flip,
    read_store,
    screen,
    small_grids,
    write,
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A fast and a compact store of one screen, whose matrices have many small shards."""
    folder = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        small_grids(patch)
        made = screen(400, 60)
        made.raw = made.copy()
        source, fast = converted(folder, made)
        return fast, lp.convert(source, folder / "compact.zarr", compression="compact", **ROLES), made


def codec_names(store, path):
    (sharding,) = zarr.open_array(store / path, mode="r").metadata.to_dict()["codecs"]
    return [codec["name"] for codec in sharding["configuration"]["codecs"]]


def test_only_column_numbers_are_stored_in_another_way(pair):
    fast, compact, _ = pair
    ours, theirs = files(compact), files(fast)
    assert ours.keys() == theirs.keys()
    differing = {key for key in ours if ours[key] != theirs[key] and "/manifest/" not in key}
    assert {key.split("/c/")[0] for key in differing} == {f"{name}/indices" for name in Store(fast).matrices}
    assert Store(compact).attrs["matrices"].keys() == {"X", "layers/lognorm", "raw/X", "obsm/guides"}
    assert (Store(fast).compression, Store(compact).compression) == ("fast", "compact")
    assert codec_names(compact, "X/indices") == ["numcodecs.astype", "numcodecs.delta", "bytes", "blosc", "crc32c"]
    assert "numcodecs.delta" not in codec_names(compact, "layers/lognorm/data")


def test_other_libraries_read_the_same(pair):
    fast, compact, made = pair
    assert_same(compact, made)
    for name in Store(fast).matrices:
        ours, theirs = (zarr.open_group(store / name, mode="r") for store in (compact, fast))
        for array in ("indices", "data", "indptr"):
            assert ours[array].dtype == theirs[array].dtype
            np.testing.assert_array_equal(ours[array][:], theirs[array][:])
            np.testing.assert_array_equal(ours[array][37:901], theirs[array][37:901])
    lazy = anndata.experimental.read_lazy(compact)
    np.testing.assert_array_equal(lazy.X[10:50].compute().toarray(), read_store(fast).X[10:50].toarray())


@pytest.mark.parametrize("compiled", [True, False], ids=["kernel", "python"])
@given(rows=st.lists(st.integers(0, 399), max_size=30), genes=st.lists(st.integers(0, 59), min_size=1, unique=True))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_way_of_reading_rows_gives_the_same(pair, compiled, rows, genes):
    fast, compact = (Store(store).matrix() for store in pair[:2])
    rows, columns = np.array(rows, np.int64), ColumnSelection.from_indices(np.array(genes), 60)
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            hide_native_functions(patch)
        for _ in range(2):  # chunks that were verified are read in another way
            ours, theirs = compact.read_rows(rows), fast.read_rows(rows)
            for name in ("indptr", "indices", "data"):
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
            selected = compact.read_columns(rows, columns, totals=True), fast.read_columns(rows, columns, totals=True)
            for name in ("offsets", "lengths", "indices", "data", "totals"):
                np.testing.assert_array_equal(*(getattr(view, name) for view in selected))
            dense = [matrix.read_dense(rows, columns, target_sum=1e4) for matrix in (compact, fast)]
            np.testing.assert_array_equal(*dense)


def test_queries_and_quality_control_give_the_same(pair):
    fast, compact = (lp.open(store) for store in pair[:2])
    np.testing.assert_array_equal(compact.X.values, fast.X.values)
    options = {"residual_expression": 0.9, "cell_residual_expression": 0.9, "min_cells": 1}
    targets = {"BRCA1": "gene1", "TP53": "gene2", "KRAS": "gene3"}
    for layer in (None, "lognorm"):  # from stored statistics, and from the matrix
        tables = [ds.pert.knockdown(**options, targets=targets, layer=layer).table for ds in (compact, fast)]
        pd.testing.assert_frame_equal(*tables)


def test_damage_is_found(pair, tmp_path):
    store = copied(pair[1], tmp_path / "s.zarr")
    flip(store / "X/indices/c/1", 8 * 40)
    with pytest.raises(StoreDamagedError, match="X/indices/c/1: its bytes changed"):
        lp.verify(store)
    with pytest.raises(StoreDamagedError, match=r"X/indices/c/1.*checksum of chunk"):
        Store(store).matrix().read(0, 400)


def test_added_layers_keep_the_compression(pair, tmp_path):
    for store in pair[:2]:
        target = copied(store, tmp_path / store.name)
        layer = read_store(target).X * 2
        lp.add_layer(target, "twice", layer)
        lp.add_obs(target, pd.DataFrame({"extra": np.arange(400)}, index=read_store(target).obs_names))
        lp.verify(target)
        assert Store(target).compression == Store(store).compression
        assert ("numcodecs.delta" in codec_names(target, "layers/twice/indices")) == (store == pair[1])
        np.testing.assert_array_equal(read_store(target).layers["twice"].toarray(), layer.toarray())
        np.testing.assert_array_equal(lp.open(target)["twice"].values, layer.toarray())


@pytest.mark.parametrize(("n_vars", "stored"), [(65_536, "<u2"), (65_537, "<i4")], ids=["two bytes", "four bytes"])
def test_differences_wrap_around_at_the_widest_matrix(tmp_path, n_vars, stored):
    """A row that ends with the last column is followed by one that begins with the first."""
    columns = [0, n_vars - 1, 0, n_vars - 1, 0, 1, n_vars - 2, n_vars - 1]
    x = sparse.csr_matrix((np.arange(1.0, 9.0), columns, [0, 2, 4, 4, 8]), shape=(4, n_vars))
    made = anndata.AnnData(x, pd.DataFrame(index=list("abcd")), pd.DataFrame(index=[f"g{j}" for j in range(n_vars)]))
    store = lp.convert(write(made, tmp_path / "s.h5ad"), tmp_path / "s.zarr", compression="compact", order="source")
    (sharding,) = zarr.open_array(store / "X/indices", mode="r").metadata.to_dict()["codecs"]
    (delta,) = [c for c in sharding["configuration"]["codecs"] if c["name"] == "numcodecs.delta"]
    assert delta["configuration"] == {"dtype": stored, "astype": stored}
    np.testing.assert_array_equal(read_store(store).X.indices, columns)
    np.testing.assert_array_equal(Store(store).matrix().read(0, 4).indices, columns)


def test_an_empty_matrix_is_compact_too(tmp_path):
    made = anndata.AnnData(sparse.csr_matrix((5, 3), dtype="f4"), pd.DataFrame(index=list("abcde")))
    store = lp.convert(write(made, tmp_path / "s.h5ad"), tmp_path / "s.zarr", compression="compact")
    assert Store(store).compression == "compact"
    assert read_store(store).X.nnz == Store(store).matrix().read(0, 5).nnz == 0


def test_an_interrupted_conversion_resumes_only_with_the_same_compression(tmp_path, monkeypatch, caplog):
    from lazypert.conversion.store_writer import StoreWriter

    source, expected = converted(tmp_path, screen(lean=True), compression="compact")

    def interrupt(self, attrs):
        raise KeyboardInterrupt

    monkeypatch.setattr(StoreWriter, "finalise", interrupt)
    for name in ("again.zarr", "other.zarr"):
        with pytest.raises(KeyboardInterrupt):
            lp.convert(source, tmp_path / name, compression="compact", **ROLES)
    monkeypatch.undo()
    with caplog.at_level("INFO", logger="lazypert"):
        lp.convert(source, tmp_path / "again.zarr", compression="compact", **ROLES)
    assert "resuming" in caplog.text
    assert files(tmp_path / "again.zarr") == files(expected)
    caplog.clear()
    lp.convert(source, tmp_path / "other.zarr", compression="fast", **ROLES)
    assert "starting over" in caplog.text
    assert Store(tmp_path / "other.zarr").compression == "fast"


def test_fast_is_the_default_of_local_stores(tmp_path):
    source, default = converted(tmp_path, screen(lean=True))
    fast = lp.convert(source, tmp_path / "fast.zarr", compression="fast", **ROLES)
    assert files_and_metadata(fast) == files_and_metadata(default)


@pytest.mark.parametrize("compression", ["zstd", "", 3])
def test_other_compressions_are_refused(tmp_path, compression):
    source = write(screen(lean=True), tmp_path / "s.h5ad")
    with pytest.raises(ConfigError, match=r"compression: got .*expected .*'fast'.*'compact'"):
        lp.convert(source, tmp_path / "s.zarr", compression=compression, **ROLES)
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5ad"]
