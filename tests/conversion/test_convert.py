"""`convert`: the store holds exactly what the source holds, or there is no store."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import lazypert as lp
from lazypert.errors import (
    ColumnNotFoundError,
    ConfigError,
    LabelNotFoundError,
    LazypertError,
    SourceFormatError,
    StoreExistsError,
)
from lazypert.store.store import Store
from tests.support.stores import (
    ROLES,
    assert_same,
    converted,
    dense,
    files,
    layers_of,
    leftovers,
    read_store,
    screen,
    small_blocks,
    small_grids,
    source_row,
    with_layer,
    write,
)


def as_layout(adata, layout):
    adata.X = adata.X.toarray() if layout == "dense" else adata.X.asformat(layout)
    for name in layers_of(adata):
        adata.layers[name] = adata.layers[name].toarray() if layout == "dense" else adata.layers[name].asformat(layout)
    return adata


@pytest.mark.parametrize("order", ["grouped", "source"])
@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
def test_the_store_equals_the_source(tmp_path, monkeypatch, layout, order):
    small_grids(monkeypatch)
    small_blocks(monkeypatch, 700)
    adata = screen()
    if (layout, order) != ("csr", "grouped"):  # testing every column once is enough
        adata.obs = adata.obs[["perturbation", "cell_type", "batch", "text"]]
    path, store = converted(tmp_path, as_layout(adata, layout), order=order)
    assert_same(store, anndata.read_h5ad(path))
    lp.verify(store)
    if order == "source":
        np.testing.assert_array_equal(source_row(store), np.arange(90))
    assert leftovers(tmp_path, "screen.h5ad", "screen.zarr") == []


def test_grouped_order_makes_every_group_one_run(tmp_path):
    _, store = converted(tmp_path, screen(lean=True))
    obs = read_store(store).obs
    keys = list(zip(*(obs[c].astype(str) for c in ("cell_type", "perturbation")), strict=True))
    runs = [key for key, _ in itertools.groupby(keys)]
    assert runs == sorted(set(keys))
    rows = source_row(store)
    rows_of_runs = [np.array(rows[[k == key for k in keys]]) for key in runs]
    assert all((np.diff(r) < 0).any() for r in rows_of_runs)  # in another order than the file's


@pytest.mark.filterwarnings("ignore:seed")
@pytest.mark.parametrize("change", ["order of the file", "seed", "batch_col", "memory_limit"])
def test_the_order_of_cells_follows_from_their_names(tmp_path, change):
    adata = screen(lean=True)
    _, store = converted(tmp_path, adata)
    options = {"seed": {"seed": 5}, "batch_col": {"batch_col": None}, "memory_limit": {"memory_limit": "70MiB"}}
    if change == "order of the file":
        adata = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    path = write(adata, tmp_path / "other.h5ad")
    other = lp.convert(path, tmp_path / "other.zarr", **(ROLES | options.get(change, {})))
    assert read_store(other).obs_names.tolist() == read_store(store).obs_names.tolist()


def test_neighbouring_cells_are_of_any_batch(tmp_path):
    """A pair of neighbours shares a batch as often as two random cells of their group do."""
    adata = screen(3000, 4, lean=True)
    adata = adata[np.argsort(adata.obs["batch"].astype(str), kind="stable")].copy()
    _, store = converted(tmp_path, adata)
    obs = read_store(store).obs
    batch, groups = obs["batch"].astype(str).to_numpy(), Store(store).groups
    same, expected = [], []
    for start, stop in zip(groups.start, groups.stop, strict=True):
        of_run = batch[start:stop]
        same.extend(of_run[1:] == of_run[:-1])
        expected.append(((pd.Series(of_run).value_counts() / len(of_run)) ** 2).sum())
    assert abs(np.mean(same) - np.mean(expected)) < 4 * np.sqrt(0.25 / len(same))


def test_a_layer_becomes_x_and_x_becomes_a_layer(tmp_path):
    path, store = converted(tmp_path, with_layer(), layer="lognorm")
    source, result, rows = anndata.read_h5ad(path), read_store(store), source_row(store)
    np.testing.assert_array_equal(dense(result.X), dense(source.layers["lognorm"])[rows])
    np.testing.assert_array_equal(dense(result.layers["X"]), dense(source.X)[rows])
    assert layers_of(result) == {"X"}


@pytest.mark.parametrize("shape", [(0, 4), (5, 0), (1, 1)], ids=str)
def test_tiny_screens_are_converted_or_refused(tmp_path, shape):
    obs = pd.DataFrame({"perturbation": ["x"] * shape[0]}, index=[str(i) for i in range(shape[0])])
    path = write(anndata.AnnData(sparse.csr_matrix(shape, dtype="f4"), obs), tmp_path / "a.h5ad")
    try:
        store = lp.convert(path, tmp_path / "a.zarr", pert_col="perturbation")
    except SourceFormatError as error:
        assert "no cells" in str(error) or "no genes" in str(error)  # noqa: PT017 - either outcome is fine
        assert leftovers(tmp_path, "a.h5ad") == []
        return
    assert read_store(store).shape == shape
    assert lp.open(store).sizes["cell"] == shape[0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pert_col": "perturbatoin"}, ColumnNotFoundError, "Did you mean 'perturbation'"),
        ({"cell_type_col": "celltype"}, ColumnNotFoundError, "Did you mean 'cell_type'"),
        ({"batch_col": "zzz"}, ColumnNotFoundError, "There are 3: 'perturbation'"),
        ({"control_pert": "non_targeting"}, LabelNotFoundError, "Did you mean 'non-targeting'"),
        ({"control_pert": "zzz"}, LabelNotFoundError, "There are 4"),
        ({"layer": "lognrom"}, ColumnNotFoundError, "Did you mean 'lognorm'"),
        ({"order": "random"}, ConfigError, "'grouped' or 'source'"),
        ({"join": "left"}, ConfigError, "'inner' or 'outer'"),
        ({"memory_limit": "1MB"}, ConfigError, "memory_limit: got '1MB'"),
        ({"memory_limit": "much"}, ConfigError, "'256MiB'"),
        ({"source": []}, ConfigError, "empty list"),
    ],
    ids=lambda v: "-".join(f"{k}={x}" for k, x in v.items()) if isinstance(v, dict) else "",
)
def test_invalid_options_are_refused_and_leave_nothing(tmp_path, options, error, message):
    path = write(with_layer(), tmp_path / "a.h5ad")
    options = {"source": path, **ROLES, **options}
    with pytest.raises(error, match=message):
        lp.convert(options.pop("source"), tmp_path / "s.zarr", **options)
    assert leftovers(tmp_path, "a.h5ad") == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"control_pert": 0}, LabelNotFoundError, "control_pert: got '0', expected a label"),
        ({"pert_col": 3}, ConfigError, "pert_col: got 3, expected text"),
        ({"seed": -1}, ConfigError, "seed: got -1"),
        ({"memory_limit": 1.0}, ConfigError, r"memory_limit: got 1.0 \(1 B\), expected at least 64.0 MiB"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_options_of_a_wrong_type_are_refused(tmp_path, options, error, message):
    path = write(screen(lean=True), tmp_path / "a.h5ad")
    with pytest.raises(error, match=message):
        lp.convert(path, tmp_path / "s.zarr", **(ROLES | options))
    assert leftovers(tmp_path, "a.h5ad") == []


def test_numpy_numbers_are_accepted(tmp_path):
    path = write(screen(lean=True), tmp_path / "a.h5ad")
    with pytest.warns(FutureWarning, match="seed: got 3, which has no effect"):
        store = lp.convert(path, tmp_path / "s.zarr", seed=np.int64(3), memory_limit=np.float64(1e9), **ROLES)
    assert Store(store).n_obs == 90


def test_an_existing_target_is_refused_and_untouched(tmp_path):
    path, store = converted(tmp_path, screen(lean=True))
    before = files(store)
    with pytest.raises(StoreExistsError, match="overwrite=True"):
        lp.convert(path, store, **ROLES)
    assert files(store) == before
    lp.convert(path, store, overwrite=True, order="source", **ROLES)
    assert files(store) != before
    lp.verify(store)
    assert leftovers(tmp_path, "screen.h5ad", "screen.zarr") == []


@pytest.mark.parametrize("target", ["a.h5ad", "."], ids=["the_source_itself", "its_folder"])
def test_the_source_is_never_overwritten(tmp_path, target):
    path = write(screen(lean=True), tmp_path / "a.h5ad")
    before = path.read_bytes()
    with pytest.raises(LazypertError):
        lp.convert(path, tmp_path / target, overwrite=True, **ROLES)
    assert path.read_bytes() == before


def test_a_store_that_holds_its_source_is_not_overwritten(tmp_path):
    _, store = converted(tmp_path, screen(lean=True))
    inside = write(screen(lean=True), store / "a.h5ad")
    with pytest.raises(LazypertError, match="or a folder"):
        lp.convert(inside, store, overwrite=True, **ROLES)
    assert inside.exists()


@pytest.mark.parametrize("target", [".", "..", "file/s.zarr", "n" * 250])
def test_an_impossible_target_is_refused(tmp_path, monkeypatch, target):
    path = write(screen(lean=True), tmp_path / "a.h5ad")
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LazypertError):
        lp.convert(path, target, **ROLES)
    assert leftovers(tmp_path, "a.h5ad", "file") == []


def test_a_symbolic_link_is_followed_and_kept(tmp_path):
    path, store = converted(tmp_path, screen(lean=True))
    link = tmp_path / "link.zarr"
    link.symlink_to("screen.zarr")
    assert lp.convert(path, link, overwrite=True, order="source", **ROLES) == link
    assert link.is_symlink()
    assert Store(store).attrs["order"] == Store(link).attrs["order"] == "source"
    assert leftovers(tmp_path, "screen.h5ad", "screen.zarr", "link.zarr") == []


def test_the_working_directory_may_change(tmp_path, monkeypatch):
    write(screen(lean=True), tmp_path / "a.h5ad")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = lp.convert("a.h5ad", "s.zarr", progress=lambda _: os.chdir(tmp_path / "elsewhere"), **ROLES)
    assert store == Path("s.zarr")
    assert leftovers(tmp_path, "a.h5ad", "s.zarr", "elsewhere") == []
    os.chdir(tmp_path)
    ds = lp.open("s.zarr")
    expected = ds.X.sum().compute()
    os.chdir(tmp_path / "elsewhere")
    assert lp.verify(tmp_path / "s.zarr") > 0
    assert ds.X.sum().compute() == expected
    assert len(ds.pert.table()) > 0


@pytest.mark.slow
def test_a_killed_conversion_leaves_no_store(tmp_path):
    write(screen(lean=True), tmp_path / "a.h5ad")
    script = (
        "import os, lazypert as lp, lazypert.conversion.convert as conversion\n"
        "conversion.write_tables = lambda *_: os.kill(os.getpid(), 9)\n"
        "lp.convert('a.h5ad', 's.zarr')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False, env=os.environ)
    assert done.returncode == -9
    assert not (tmp_path / "s.zarr").exists()
    (partial,) = [p for p in tmp_path.iterdir() if ".partial-" in p.name]
    with pytest.raises(LazypertError):
        lp.open(partial)
    with pytest.raises(LazypertError):
        lp.verify(partial)
    assert Path(lp.convert(tmp_path / "a.h5ad", tmp_path / "s.zarr")).exists()


def test_what_a_killed_worker_left_in_the_middle_of_a_file_is_not_in_the_store(tmp_path):
    """Its files have names of their own until they are complete."""
    path, left = write(screen(30), tmp_path / "a.h5ad"), []

    def leave(progress):
        folders = [] if left else sorted(tmp_path.glob("b.zarr.partial-*/**/X/data/c"))
        for folder in folders[:1]:
            left.append(folder / "0.12ab34cd")
            left[0].write_bytes(b"part")

    one, other = (
        lp.convert(path, tmp_path / f"{name}.zarr", progress=progress, **ROLES)
        for name, progress in (("a", False), ("b", leave))
    )
    assert left
    assert lp.verify(one) == lp.verify(other)
    assert not list(other.rglob("*.12ab34cd"))
