"""Small screens with every kind of column, and naive readers to compare stores with."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

import lazypert as lp
from lazypert._internal import memory
from lazypert.conversion import plan
from lazypert.screen.labels import label_text
from lazypert.store import format as schema
from lazypert.store.format import TABLES
from lazypert.store.store import Store

ROLES = {
    "pert_col": "perturbation",
    "control_pert": "non-targeting",
    "cell_type_col": "cell_type",
    "batch_col": "batch",
}


ATTRS = {
    "roles": {}, "n_obs": 3, "n_vars": 1, "matrices": {}, "order": "source",
    "summary": {"n_groups": 1, "n_perturbations": 1, "n_cell_types": 1, "n_batches": 1, "n_controls": 0},
}  # fmt: skip


def counts(n_obs, n_vars, seed=0, dtype="f4", density=0.3):
    """Sparse counts from 1 to 9; every seventh cell is empty."""
    rng = np.random.default_rng(seed)
    dense = rng.integers(1, 10, (n_obs, n_vars)) * (rng.random((n_obs, n_vars)) < density)
    dense[::7] = 0
    return sparse.csr_matrix(dense.astype(dtype))


def every_column(n, seed=0):
    """One obs column of each kind that AnnData writes; the first three are the roles."""
    rng = np.random.default_rng(seed)

    def pick(*values):
        return np.array(values, dtype=object)[rng.integers(0, len(values), n)]

    missing = rng.random(n) < 0.2
    return pd.DataFrame(
        {
            "perturbation": pd.Categorical(pick("TP53", "non-targeting", "BRCA1", "KRAS")),
            "cell_type": pd.Categorical(pick("Neuron", "Astrocyte")),
            "batch": pd.Categorical(pick("b1", "b2", "b3")),
            "ordered": pd.Categorical(pick("low", "high"), categories=["low", "mid", "high"], ordered=True),
            "int_category": pd.Categorical(rng.integers(3, 6, n)),
            "float_category": pd.Categorical(rng.choice([0.1, 2.5], n)),
            "holey_category": pd.Categorical(np.where(missing, None, pick("x", "y"))),
            "all_missing": pd.Categorical([None] * n, categories=["never"]),
            "u1": rng.integers(0, 255, n).astype("u1"),
            "i8": rng.integers(-(2**62), 2**62, n),
            "f4": rng.random(n).astype("f4"),
            "f8": np.where(missing, np.nan, rng.random(n)),
            "flag": missing,
            "maybe_int": pd.array(np.where(missing, None, rng.integers(0, 9, n)), dtype="Int32"),
            "maybe_flag": pd.array(np.where(missing, None, rng.random(n) < 0.5), dtype="boolean"),
            "text": pick("sgA", "sgB", "", "é漢"),
            "maybe_text": pd.array(np.where(missing, None, pick("t1", "t2")), dtype="string"),
        },
        index=[f"cell{seed}_{i}" for i in range(n)],
    )


def screen(n_obs=90, n_vars=17, seed=0, dtype="f4", genes=None, *, lean=False):
    """AnnData with every kind of column, layers, and dense and sparse obsm; if lean, only X and the roles."""
    rng = np.random.default_rng(seed + 1)
    names = [f"gene{j}" for j in range(n_vars)] if genes is None else list(genes)
    n_vars = len(names)
    var = pd.DataFrame({"gene_name": [f"{n}-name" for n in names], "length": np.arange(n_vars)}, index=names)
    obs = every_column(n_obs, seed)
    adata = anndata.AnnData(
        counts(n_obs, n_vars, seed, dtype), obs[["perturbation", "cell_type", "batch"]] if lean else obs, var
    )
    if lean:
        return adata
    adata.layers["lognorm"] = sparse.csr_matrix(np.log1p(adata.X.toarray().astype("f8")))
    adata.obsm["X_pca"] = rng.normal(size=(n_obs, 3)).astype("f4")
    adata.obsm["guides"] = counts(n_obs, 5, seed + 2)
    return adata


def small_screen():
    """Screen with two obs columns besides the roles, one layer, and a dense and a sparse embedding."""
    adata, full = with_layer(), screen()
    adata.obs[["flag", "f8"]] = full.obs[["flag", "f8"]]
    adata.obsm.update({"X_pca": full.obsm["X_pca"], "guides": full.obsm["guides"]})
    return adata


def with_layer(name="lognorm"):
    """Lean screen with one layer, twice X."""
    adata = screen(lean=True)
    adata.layers[name] = adata.X * 2
    return adata


def write(adata, path):
    """Write an AnnData without converting its strings."""
    with anndata.settings.override(allow_write_nullable_strings=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_h5ad(path, convert_strings_to_categoricals=False)
    return Path(path)


def read_store(path):
    """Read a store with AnnData; warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        return anndata.read_zarr(path)


def source_row(path):
    return Store(path).read_array(f"{TABLES}/source_row")


def layers_of(adata):
    """Names of the layers; AnnData 0.13 lists X among them, as None."""
    return {name for name in adata.layers if name is not None}


def dense(matrix):
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def assert_same(store, source):
    """Assert that a store holds exactly an AnnData, in any row order."""
    result = read_store(store)
    rows = source_row(store)
    np.testing.assert_array_equal(np.sort(rows), np.arange(source.n_obs))
    assert list(result.obs_names) == list(source.obs_names[rows])
    assert list(result.var_names) == list(source.var_names)
    pd.testing.assert_frame_equal(result.obs, source.obs.iloc[rows], check_index_type=False, check_names=False)
    pd.testing.assert_frame_equal(result.var, source.var, check_index_type=False, check_names=False)
    np.testing.assert_array_equal(dense(result.X), dense(source.X)[rows])
    assert result.X.has_canonical_format
    assert layers_of(result) == layers_of(source)
    assert set(result.obsm) == set(source.obsm)
    for name in layers_of(source):
        np.testing.assert_array_equal(dense(result.layers[name]), dense(source.layers[name])[rows])
    for name in source.obsm:
        np.testing.assert_array_equal(dense(result.obsm[name]), dense(source.obsm[name])[rows])


def assert_joined(result, columns, lengths):
    """Assert that joined columns keep missing values, and all others or the text of their label."""
    expected = [v for c, n in zip(columns, lengths, strict=True) for v in ([None] * n if c is None else list(c))]
    assert [bool(m) for m in pd.isna(result)] == [bool(pd.isna(v)) for v in expected]
    for value, original in zip(np.asarray(result, dtype=object), expected, strict=True):
        same = pd.isna(original) or value in (original, label_text(original))
        assert same or (isinstance(value, float) and value == float(original))


def small_grids(monkeypatch, chunk=32, shard=128):
    """Give arrays of a few hundred elements several shards of several chunks."""
    monkeypatch.setattr(schema, "MATRIX_CHUNK", chunk)
    monkeypatch.setattr(schema, "MATRIX_SHARD", shard)
    monkeypatch.setattr(schema, "COLUMN_CHUNK", chunk)
    monkeypatch.setattr(schema, "COLUMN_SHARD", shard)


def small_blocks(monkeypatch, size, workers=2):
    """Make conversion read source blocks of at most `size` bytes."""
    monkeypatch.setattr(plan, "MAX_BLOCK_BYTES", size)
    monkeypatch.setattr(plan, "MIN_BLOCK_BYTES", 1)
    monkeypatch.setattr(memory, "cpu_count", lambda: workers)


def files(store):
    """Bytes of every file of a store except metadata, by key."""
    root = Path(store)
    paths = (path for path in root.rglob("*") if path.is_file() and path.name != "zarr.json")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def leftovers(folder, *expected):
    """Names in a folder other than the expected ones, such as staging directories that should be gone."""
    return sorted({path.name for path in Path(folder).iterdir()} - set(expected))


def converted(folder, adata=None, **options):
    """Convert a screen; return the source file and the store."""
    path = write(screen() if adata is None else adata, Path(folder) / "screen.h5ad")
    return path, lp.convert(path, Path(folder) / "screen.zarr", **(ROLES | options))


def copied(store, target):
    shutil.copytree(store, target)
    return Path(target)


def flip(path, bit):
    """Flip one bit of a file."""
    data = bytearray(Path(path).read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    Path(path).write_bytes(data)
