"""What AnnData reads in a file, and the exact comparison of a store with it."""

from __future__ import annotations

import warnings

import anndata
import numpy as np
import pandas as pd
from anndata.io import read_elem

from lazypert.store.store import Store
from tests.support.stores import dense, layers_of


def read_with_anndata(path):
    """Read a file with AnnData, ignoring its warnings about old encodings and repeated names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if str(path).endswith(".h5ad"):
            return anndata.read_h5ad(path)
        return _read_zarr(path)


def _read_zarr(path):
    """Read a Zarr store without uns, which stores do not keep and not every version of zarr can read."""
    import zarr

    store = zarr.storage.ZipStore(path, mode="r") if path.is_file() else path
    root = zarr.open_group(store, mode="r", use_consolidated=False)
    elements = {name: read_elem(root[name]) for name in ("X", "obs", "var", "layers", "obsm", "raw") if name in root}
    return anndata.AnnData(**elements)


def assert_equal(path, source, *, rows=None):
    """The store at a path holds exactly what the AnnData `source` does, except for what its warnings list."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(Observation|Variable) names are not unique")
        found = anndata.read_zarr(path)
    rows = np.arange(source.n_obs) if rows is None else rows
    warned = Store(path).attrs["warnings"]
    assert found.shape == source.shape
    same_frame(found.obs, source.obs.iloc[rows])
    same_frame(found.var, source.var)
    same_values(found.X, source.X, rows)
    assert layers_of(found) == layers_of(source)
    for name in layers_of(source):
        same_values(found.layers[name], source.layers[name], rows)
    for name in source.obsm:
        if name in found.obsm and isinstance(source.obsm[name], pd.DataFrame):
            same_frame(found.obsm[name], source.obsm[name].iloc[rows])
        elif name in found.obsm:
            same_values(found.obsm[name], source.obsm[name], rows)
        else:
            assert any(f" obsm/{name} was not copied: " in line for line in warned), (name, warned)
    assert set(found.obsm) <= set(source.obsm)
    assert (found.raw is None) == (source.raw is None)
    if source.raw is not None:
        same_values(found.raw.X, source.raw.X, rows)
        same_frame(found.raw.var, source.raw.var)


def same_values(found, expected, rows):
    """Two matrices are equal; compared by row range, as some have many columns."""
    assert found.shape == expected.shape
    for start in range(0, len(rows), 2_000):
        span = slice(start, start + 2_000)
        np.testing.assert_array_equal(dense(found[span]), dense(expected[rows[span]]))


def same_frame(found, expected):
    """Two tables have the same names, columns and values; text may have any of pandas' dtypes for it."""
    assert list(found.index) == [str(name) for name in expected.index]
    assert list(found.columns) == list(expected.columns)
    for name in expected:
        got, want = found[name], expected[name]
        if isinstance(want.dtype, pd.CategoricalDtype):
            assert list(got.cat.categories) == list(want.cat.categories), name
            assert got.cat.ordered == want.cat.ordered, name
            np.testing.assert_array_equal(got.cat.codes, want.cat.codes, err_msg=name)
        elif is_text(want.dtype):
            assert is_text(got.dtype), name
            assert as_text(got) == as_text(want), name
        else:
            pd.testing.assert_series_equal(got, want, check_names=False, check_index=False)


def is_text(dtype):
    return dtype.kind == "O" or isinstance(dtype, pd.StringDtype)


def as_text(column):
    return [None if pd.isna(value) else value for value in column]
