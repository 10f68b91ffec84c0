"""AnnData objects give the same store as the .h5ad file that AnnData writes of them."""

import importlib.metadata
import pickle
import warnings

import anndata
import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from anndata.experimental import read_lazy
from scipy import sparse

import lazypert as lp
from lazypert.converter import open_source
from lazypert.errors import ConfigError, LabelNotFoundError, NotCopiedWarning, SourceFormatError, StoreExistsError
from tests.support.stores import ROLES, counts, every_column, screen, small_blocks

pytestmark = pytest.mark.filterwarnings("ignore:.*names are not unique")
N, M = 60, 11


def full_screen(x=sparse.csr_matrix):
    """AnnData with every kind of column, matrix and embedding, and a raw with more genes."""
    adata = screen(N, M)
    raw = anndata.AnnData(counts(N, M + 3, seed=5), adata.obs)
    raw.var = pd.DataFrame({"kind": ["a", "b"] * 7}, index=[f"gene{j}" for j in range(M + 3)])
    adata.raw = raw
    adata.X = x(adata.X)
    adata.layers["csc"] = sparse.csc_matrix(adata.layers["lognorm"])
    adata.layers["dense"] = adata.layers["lognorm"].toarray()
    adata.layers["ints"] = sparse.csr_array(counts(N, M, dtype="u2"))
    return adata


def lean_screen(x=sparse.csr_matrix):
    """AnnData with a few columns, one layer and one embedding."""
    adata = screen(N, M, lean=True)
    adata.obs["text"] = every_column(N)["text"]
    adata.layers["csc"] = sparse.csc_matrix(adata.X * 2)
    adata.obsm["X_pca"] = np.arange(3.0 * N).reshape(N, 3)
    adata.X = x(adata.X)
    return adata


def content(store):
    """Bytes of every file of a store, except for the root, which names the source."""
    files = (path for path in store.rglob("*") if path.is_file())
    return {name: path.read_bytes() for path in files if (name := path.relative_to(store).as_posix()) != "zarr.json"}


def write_h5ad(adata, path):
    with anndata.settings.override(allow_write_nullable_strings=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.copy().write_h5ad(path)
    return path


def assert_same_store(tmp_path, adata, written, **options):
    """Converting an object gives the files that converting the .h5ad file of `written` gives."""
    options = ROLES | {"progress": False} | options
    lp.convert(write_h5ad(written, tmp_path / "expected.h5ad"), tmp_path / "expected.zarr", **options)
    lp.convert(adata, tmp_path / "found.zarr", **options)
    lp.verify(tmp_path / "found.zarr")
    expected, found = content(tmp_path / "expected.zarr"), content(tmp_path / "found.zarr")
    assert set(found) == set(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.parametrize(
    ("make", "x", "options"),
    [
        (full_screen, sparse.csr_matrix, {}),
        (lean_screen, sparse.csc_matrix, {"layer": "csc", "order": "source"}),
        (full_screen, sparse.csr_array, {"layer": "raw"}),
        (lean_screen, lambda X: X.toarray(), {}),
    ],
)
def test_in_memory(tmp_path, make, x, options):
    adata = make(x)
    assert_same_store(tmp_path, adata, adata, **options)


def test_the_object_is_not_changed(tmp_path):
    adata = full_screen()
    before = adata.copy()
    lp.convert(adata, tmp_path / "s.zarr", **ROLES)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())


SELECTIONS = {
    "mask": np.random.default_rng(0).random(N) < 0.5,
    "slice": slice(7, 41, 3),
    "order": np.random.default_rng(1).permutation(N)[:25],
    "repeats": np.array([5, 5, 1, 40, 40, 39]),
}


LAYOUTS = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": lambda X: X.toarray()}


@pytest.mark.parametrize(
    ("make", "layout", "rows", "columns"),
    [
        (lean_screen, "csr", "mask", slice(None)),
        (full_screen, "csr", "order", [7, 2, 3]),
        (lean_screen, "csc", "order", slice(2, 9)),
        (lean_screen, "dense", "slice", slice(2, 9)),
        pytest.param(lean_screen, "csc", "repeats", [7, 2, 3], marks=pytest.mark.slow),
        pytest.param(lean_screen, "dense", "repeats", slice(None), marks=pytest.mark.slow),
    ],
)
def test_views(tmp_path, make, layout, rows, columns):
    view = make(LAYOUTS[layout])[SELECTIONS[rows], columns]
    assert_same_store(tmp_path, view, view, control_pert=None)
    assert view.is_view


def test_view_of_a_view_by_mask_in_small_blocks(tmp_path, monkeypatch):
    small_blocks(monkeypatch, 300)
    view = lean_screen()[::-1][SELECTIONS["mask"]][:, 3:]
    assert_same_store(tmp_path, view, view)


@pytest.mark.parametrize(
    ("make", "layout", "rows"),
    [
        (full_screen, "csr", "repeats"),
        (lean_screen, "csc", "mask"),
        (lean_screen, "dense", None),
        pytest.param(lean_screen, "csr", None, marks=pytest.mark.slow),
        pytest.param(lean_screen, "dense", "order", marks=pytest.mark.slow),
    ],
)
def test_backed(tmp_path, make, layout, rows):
    path = write_h5ad(make(LAYOUTS[layout]), tmp_path / "screen.h5ad")
    backed, memory = anndata.read_h5ad(path, backed="r"), anndata.read_h5ad(path)
    backed.obs["batch"] = memory.obs["batch"] = pd.Categorical(["changed"] * N)
    if rows is not None:
        backed, memory = backed[SELECTIONS[rows], 1:8], memory[SELECTIONS[rows], 1:8]
    assert_same_store(tmp_path, backed, memory, control_pert=None)
    backed.file.close()


def test_views_are_never_copied_as_a_whole(tmp_path, monkeypatch):
    adata = full_screen()
    view, parent_x = adata[SELECTIONS["mask"]], adata.X

    def x_of(self):
        assert not self.is_view
        return parent_x

    with monkeypatch.context() as context:
        context.setattr(anndata.AnnData, "X", property(x_of))
        lp.convert(view, tmp_path / "s.zarr", **ROLES)
    assert anndata.read_zarr(tmp_path / "s.zarr").n_obs == view.n_obs


def test_open_for_writing_is_refused(tmp_path):
    path = write_h5ad(full_screen(), tmp_path / "screen.h5ad")
    backed = anndata.read_h5ad(path, backed="r+")
    with pytest.raises(ConfigError, match="open for writing"):
        lp.convert(backed, tmp_path / "s.zarr", **ROLES)
    backed.file.close()


@pytest.mark.parametrize(
    ("make", "suffix", "layout", "rows"),
    [
        (lean_screen, "h5ad", "dense", "mask"),
        (lean_screen, "h5ad", "csr", None),
        (full_screen, "zarr", "csr", "mask"),
        pytest.param(full_screen, "h5ad", "csc", "order", marks=pytest.mark.slow),
        pytest.param(lean_screen, "zarr", "dense", None, marks=pytest.mark.slow),
    ],
)
def test_lazy(tmp_path, make, suffix, layout, rows):
    adata = make(LAYOUTS[layout])
    path = write_h5ad(adata, tmp_path / "screen.h5ad")
    memory = anndata.read_h5ad(path)
    if suffix == "zarr":
        options = {"allow_write_nullable_strings": True}
        if importlib.metadata.version("anndata").startswith("0.12."):
            options["zarr_write_format"] = 3
        with anndata.settings.override(**options), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            memory.write_zarr(tmp_path / "screen.zarr")
        path = tmp_path / "screen.zarr"
    lazy = read_lazy(path)
    if rows is not None:
        lazy = lazy[SELECTIONS[rows]]
        with anndata.settings.override(remove_unused_categories=False):  # lazy views keep the categories of all rows
            memory = memory[SELECTIONS[rows]].copy()
    memory.var = lazy.var.to_memory()  # in which missing text is NA, and not NaN, in every version
    assert_same_store(tmp_path, lazy, memory, control_pert=None)


@pytest.mark.parametrize(
    ("chunks", "kind"),
    [
        ((N, 4), sparse.csc_matrix),
        ((7, 5), sparse.csr_matrix),
        pytest.param((13, M), sparse.csr_matrix, marks=pytest.mark.slow),
        pytest.param((7, 5), np.asarray, marks=pytest.mark.slow),
    ],
)
def test_dask_chunks(tmp_path, monkeypatch, chunks, kind):
    small_blocks(monkeypatch, 300)
    adata = screen(N, M, lean=True)
    expected = adata.copy()
    adata.X = da.from_array(expected.X.toarray(), chunks=chunks).map_blocks(kind)
    assert_same_store(tmp_path, adata, expected)


def test_lazy_tables_are_read_by_ranges(tmp_path, monkeypatch):
    path = write_h5ad(full_screen(), tmp_path / "screen.h5ad")
    reader = open_source(read_lazy(path))
    expected = open_source(path)
    for name in expected.obs_columns:
        for start, stop in ((0, N), (5, 9), (N, N)):
            found = reader.obs_column(name, start, stop)
            assert pd.Series(found).equals(pd.Series(expected.obs_column(name, start, stop))), name
    assert reader.obs_columns == expected.obs_columns
    assert list(reader.obs_names(3, 6)) == list(expected.obs_names(3, 6))


def test_lists_mix_objects_and_files(tmp_path):
    one, two = screen(40, 9, seed=1, lean=True), screen(50, 9, seed=2, lean=True)
    write_h5ad(one, tmp_path / "adata.h5ad")
    write_h5ad(two, tmp_path / "two.h5ad")
    lp.convert([tmp_path / "adata.h5ad", tmp_path / "two.h5ad"], tmp_path / "expected.zarr", **ROLES)
    lp.convert([one, tmp_path / "two.h5ad"], tmp_path / "found.zarr", **ROLES)
    assert content(tmp_path / "found.zarr") == content(tmp_path / "expected.zarr")


def test_guide_calls_join_an_object(tmp_path):
    adata = screen(40, 9, lean=True)
    table = pd.DataFrame({"guide": ["a", "b"] * 20}, index=adata.obs_names)
    lp.convert(adata, tmp_path / "s.zarr", obs=table, pert_col="guide", control_pert="a")
    found = anndata.read_zarr(tmp_path / "s.zarr")
    assert list(found.obs["guide"]) == list(table["guide"][found.obs_names])


def bad(change):
    adata = screen(N, M, lean=True)
    change(adata)
    return adata


def set_index(adata):
    adata.X.indices[3] = 99


def set_indptr(name):
    def change(adata):
        adata.layers["lognorm"] = adata.X.copy()
        (adata.X if name == "X" else adata.layers["lognorm"]).indptr[3] = 10**6

    return change


def set_mask(adata):
    adata.layers["m"] = np.ma.masked_array(np.ones((N, M)), np.eye(N, M) > 0)


def test_refused(tmp_path):
    target = tmp_path / "s.zarr"
    with pytest.raises(SourceFormatError, match=r"'adata' is not a valid AnnData object at 'X/indices': it holds 99"):
        lp.convert(bad(set_index), target, **ROLES)
    for name in ("X", "layers/lognorm"):
        with pytest.raises(SourceFormatError, match=f"not a valid AnnData object at '{name}/indptr': it decreases"):
            lp.convert(bad(set_indptr(name))[1:], target, **ROLES)
    with pytest.raises(LabelNotFoundError):
        lp.convert(screen(N, M, lean=True), target, **ROLES | {"control_pert": "none"})
    with pytest.raises(SourceFormatError, match="no X"):
        lp.convert(anndata.AnnData(obs=every_column(N)), target)
    lazy = screen(N, M, lean=True)
    lazy.X = da.from_array(lazy.X.toarray(), chunks=(20, M)).map_blocks(_with_a_bad_index)
    with pytest.raises(SourceFormatError, match="index 99"):
        lp.convert(lazy, target, **ROLES)
    assert [path.name for path in tmp_path.iterdir()] == []


def _with_a_bad_index(chunk):
    matrix = sparse.csr_matrix(chunk)
    matrix.indices = matrix.indices.copy()
    matrix.indices[:1] = 99
    return matrix


def test_what_a_store_cannot_hold_is_told(tmp_path):
    adata = screen(N, M, lean=True)
    adata.obs["mixed"] = [1, "a"] * (N // 2)
    adata.obs["when"] = pd.Timestamp("2020-01-01")
    with pytest.warns(NotCopiedWarning, match=r"obs/mixed was not copied.*obs/when was not copied"):
        lp.convert(adata, tmp_path / "s.zarr", **ROLES)


def test_a_store_is_not_replaced_by_an_object_that_reads_it(tmp_path):
    path = write_h5ad(screen(N, M, lean=True), tmp_path / "screen.h5ad")
    backed = anndata.read_h5ad(path, backed="r")
    with pytest.raises((ConfigError, StoreExistsError)):
        lp.convert(backed, path, overwrite=True)
    backed.file.close()


def test_other_processes_are_refused(tmp_path):
    adata = screen(N, M, lean=True)
    with dask.config.set(scheduler="processes"), pytest.raises(ConfigError, match="uses other processes"):
        lp.convert(adata, tmp_path / "s.zarr", **ROLES)
    with pytest.raises(ConfigError, match="uses other processes"):
        pickle.dumps(open_source(adata))
    with dask.config.set(scheduler="threads"):
        lp.convert(adata, tmp_path / "s.zarr", **ROLES)


def test_an_interrupted_conversion_starts_over(tmp_path, monkeypatch):
    adata = screen(N, M, lean=True)
    with monkeypatch.context() as context:
        context.setattr("lazypert.conversion.convert.write_tables", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            lp.convert(adata, tmp_path / "s.zarr", **ROLES)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    lp.convert(adata, tmp_path / "s.zarr", **ROLES)
