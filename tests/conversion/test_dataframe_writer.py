"""Every kind of column is written in AnnData's encoding and reads back equal."""

import anndata
import numpy as np
import pandas as pd
import pytest
import zarr

from lazypert.conversion.dataframe_writer import write_column, write_frame
from lazypert.conversion.store_writer import StoreWriter
from lazypert.errors import SourceFormatError
from lazypert.screen.labels import join_columns
from lazypert.store.store import Store
from tests.support.stores import ATTRS, assert_joined, every_column, leftovers

KINDS = tuple(every_column(1).columns)


def stored_frame(target, frame):
    """Write a store with only an obs table; return it as read by AnnData and by the store's own reader."""
    with StoreWriter(target) as writer:
        write_frame(writer, "obs", frame.index.to_numpy(dtype=object), [str(c) for c in frame.columns])
        for name in frame.columns:
            write_column(writer, "obs", name, frame[name])
        writer.finalise(ATTRS | {"n_obs": len(frame)})
    return anndata.io.read_elem(zarr.open_group(target, mode="r")["obs"]), Store(target)


def test_every_kind_of_column_reads_back_equal(tmp_path):
    frame = every_column(40)
    result, store = stored_frame(tmp_path / "s.zarr", frame)
    expected = frame.copy()
    pd.testing.assert_frame_equal(result[list(frame.columns)], expected, check_index_type=False, check_dtype=False)
    for name in frame.columns:
        column = pd.Series(store.read_column(f"obs/{name}"), index=frame.index, name=name)
        assert column.isna().tolist() == frame[name].isna().tolist()
        present = frame[name].notna()
        assert column[present].tolist() == frame[name][present].tolist()
        if isinstance(frame[name].dtype, pd.CategoricalDtype):
            assert column.cat.ordered == frame[name].cat.ordered
            assert column.cat.categories.tolist() == frame[name].cat.categories.tolist()
            assert result[name].cat.ordered == frame[name].cat.ordered
        elif isinstance(frame[name].dtype, np.dtype) and frame[name].dtype.kind in "fiub":
            assert result[name].dtype == column.dtype == frame[name].dtype


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(np.array([1, -2, 3], dtype=">i4"), id="big_endian_ints"),
        pytest.param(np.array([1.5, np.nan, 3], dtype=">f8"), id="big_endian_floats"),
        pytest.param(pd.array([1.5, None, 2.5], dtype="Float64"), id="nullable_floats"),
        pytest.param(pd.array(["a", "", "ü"], dtype="string"), id="string_array"),
        pytest.param(pd.array(["a", None, "ü"], dtype="string"), id="string_array_missing"),
        pytest.param(np.array(["a", None, "c"], dtype=object), id="objects_missing"),
        pytest.param(np.array(["a", "bb", "c"]), id="fixed_width_text"),
        pytest.param(pd.Categorical([True, False, None]), id="bool_categories"),
        pytest.param(pd.array([2**60, None, -1], dtype="Int64"), id="large_nullable"),
        pytest.param(np.array([2**63, 1, 2], dtype="u8"), id="unsigned"),
    ],
)
def test_other_columns_read_back_equal(tmp_path, values):
    with StoreWriter(tmp_path / "s.zarr") as writer:
        write_frame(writer, "obs", np.array(list("xyz"), dtype=object), ["v"])
        write_column(writer, "obs", "v", values)
        writer.finalise(ATTRS)
    store = Store(tmp_path / "s.zarr")
    result = store.read_column("obs/v")
    assert pd.isna(result).tolist() == pd.isna(values).tolist()
    present = ~np.asarray(pd.isna(values))
    assert list(np.asarray(result, dtype=object)[present]) == list(np.asarray(values, dtype=object)[present])
    assert "obs/v" in str(store._root["obs/v"].path)
    frame = anndata.io.read_elem(zarr.open_group(tmp_path / "s.zarr", mode="r")["obs"])
    assert frame["v"].isna().tolist() == pd.isna(values).tolist()


@pytest.mark.parametrize("n", [127, 128, 32_767, 32_768])
def test_codes_are_wide_enough_for_all_categories(tmp_path, n):
    values = pd.Categorical([f"c{i}" for i in range(n)])
    with StoreWriter(tmp_path / "s.zarr") as writer:
        writer.group("obs", {})
        write_column(writer, "obs", "v", values)
        writer.finalise(ATTRS | {"n_obs": n})
    assert (Store(tmp_path / "s.zarr").read_column("obs/v") == values).all()


@pytest.mark.parametrize("name", ["__lazypert__", "zarr.json", "..", ".", "", "_index", "a/b"])
def test_reserved_column_names_are_refused(tmp_path, name):
    with StoreWriter(tmp_path / "s.zarr") as writer:
        write_frame(writer, "obs", np.array(["x"], dtype=object), [name])
        with pytest.raises(SourceFormatError, match="Rename the column"):
            write_column(writer, "obs", name, np.ones(1))
    assert leftovers(tmp_path) == []


def test_joined_columns_read_back_equal(tmp_path):
    a, b = every_column(8, 0), every_column(9, 1)
    pairs = [(a[left], b[right]) for left, right in zip(KINDS, KINDS[5:] + KINDS[:5], strict=True)]
    with StoreWriter(tmp_path / "s.zarr") as writer:
        write_frame(writer, "obs", np.array(["x"] * 17, dtype=object), [left.name for left, _ in pairs])
        for left, right in pairs:
            write_column(writer, "obs", left.name, join_columns([left.array, right.array], [8, 9]))
        writer.finalise(ATTRS | {"n_obs": 17})
    store = Store(tmp_path / "s.zarr")
    for left, right in pairs:
        assert_joined(store.read_column(f"obs/{left.name}"), [left, right], [8, 9])
