"""Columns of other tables join obs by cell name, whatever the format of the source."""

import pickle
import warnings

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import lazypert as lp
from lazypert.conversion.joined_obs import join_obs
from lazypert.converter import open_source
from lazypert.errors import ConfigError, NotCopiedWarning, SourceFormatError
from lazypert.store.store import Store
from tests.support.mtx import folder
from tests.support.stores import counts

N = 40
NAMES = [f"CELL-{i}" for i in range(N)]


@pytest.fixture
def calls():
    """Calls of all cells but the last three, in another order, and of two barcodes without a cell."""
    rng = np.random.default_rng(0)
    order = rng.permutation(N - 3)
    frame = pd.DataFrame(
        {
            "num_features": rng.integers(1, 3, N - 3),
            "feature_call": np.array(["NTC", "g1", "g1|g2"])[rng.integers(0, 3, N - 3)],
            "ok": rng.random(N - 3) < 0.5,
        },
        index=pd.Index([NAMES[i] for i in order], name="cell_barcode"),
    )
    return pd.concat([frame, frame.iloc[:2].set_axis(["no-1", "no-2"])])


def write(path, kind):
    X = counts(N, 5, dtype="i4")
    if kind == "mtx":
        return folder(path / "mtx", X)
    if kind == "10x_h5":
        with h5py.File(path / "counts.h5", "w") as file:
            group = file.create_group("matrix")
            group["barcodes"] = np.array(NAMES, dtype="S")
            group["data"], group["indices"], group["indptr"] = X.data, X.indices, X.indptr
            group["shape"] = np.array([5, N])
            for name, values in (("id", "E"), ("name", "gene")):
                group[f"features/{name}"] = np.array([f"{values}{j}" for j in range(5)], dtype="S")
            group["features/feature_type"] = np.array(["Gene Expression"] * 5, dtype="S")
            group["features/genome"] = np.array(["GRCh38"] * 5, dtype="S")
        return path / "counts.h5"
    adata = anndata.AnnData(X, pd.DataFrame({"lane": ["a", "b"] * (N // 2)}, index=NAMES))
    adata.var_names = [f"gene{j}" for j in range(5)]
    adata.write_h5ad(path / "screen.h5ad")
    return path / "screen.h5ad"


@pytest.mark.parametrize("kind", ["h5ad", "mtx", "10x_h5"])
def test_columns_join_by_name_and_can_be_roles(tmp_path, kind, calls):
    source = write(tmp_path, kind)
    path = calls.rename_axis("cell_barcode").to_csv(tmp_path / "calls.csv") or tmp_path / "calls.csv"
    with pytest.warns(NotCopiedWarning, match="calls.csv: 2 of 39 rows were not copied"):
        lp.convert(source, tmp_path / "s.zarr", obs=path, pert_col="feature_call", control_pert="NTC")
    found = anndata.read_zarr(tmp_path / "s.zarr")
    expected = calls.reindex(found.obs_names)
    assert found.n_obs == N
    for name in calls:
        missing = expected[name].isna().to_numpy()
        assert missing.sum() == 3
        np.testing.assert_array_equal(found.obs[name].isna(), missing)
        assert list(found.obs[name][~missing]) == list(expected[name][~missing])
    assert found.obs["num_features"].dtype == "Int64"
    assert found.obs["ok"].dtype == "boolean"
    store = Store(tmp_path / "s.zarr")
    assert "calls.csv: 3 of 40 cells have no row, and missing values in its columns" in store.attrs["warnings"]
    labels = list(store.groups.labels["perturbation"])
    assert labels == ["NTC", "g1", "g1|g2"]
    lp.verify(tmp_path / "s.zarr")
    assert set(lp.open(tmp_path / "s.zarr").pert.obs()) >= set(calls)


def test_a_complete_table_keeps_its_dtypes(tmp_path):
    source = write(tmp_path, "h5ad")
    table = pd.DataFrame({"n": np.arange(N, dtype="i4"), "x": np.arange(N) / 7}, index=NAMES[::-1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lp.convert(source, tmp_path / "s.zarr", obs=table, progress=False)
    found = anndata.read_zarr(tmp_path / "s.zarr").obs
    assert found["n"].dtype == np.int32
    pd.testing.assert_frame_equal(found[["n", "x"]], table.loc[found.index], check_names=False)


def test_several_sources(tmp_path):
    for name in ("one", "two"):
        adata = anndata.AnnData(sparse.csr_matrix(np.eye(4, dtype="f4")))
        adata.obs_names = [f"{name}-{i}" for i in range(4)]
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    files = [tmp_path / "one.h5ad", tmp_path / "two.h5ad"]
    tables = {
        name: pd.DataFrame({"guide": ["a", "b"], "n": [1, 2]}, index=[f"{name}-0", f"{name}-3"])
        for name in ("one", "two")
    }
    lp.convert(files, tmp_path / "stacked.zarr", obs=list(tables.values()))
    lp.convert(files, tmp_path / "each.zarr", obs=tables)
    for path in ("stacked.zarr", "each.zarr"):
        obs = anndata.read_zarr(tmp_path / path).obs
        found = obs[obs["guide"].notna()]
        assert sorted(zip(found.index, found["guide"], found["n"], strict=True)) == [
            ("one-0", "a", 1),
            ("one-3", "b", 2),
            ("two-0", "a", 1),
            ("two-3", "b", 2),
        ]
    with pytest.raises(ConfigError, match="got tables for 'three', expected the name of a source"):
        lp.convert(files, tmp_path / "no.zarr", obs={"three": tables["one"]})


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_the_same_barcode_in_two_sources_needs_a_table_for_each(tmp_path):
    for name in ("one", "two"):
        adata = anndata.AnnData(sparse.csr_matrix(np.eye(4, dtype="f4")))
        adata.obs_names = list("abcd")
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    files = [tmp_path / "one.h5ad", tmp_path / "two.h5ad"]
    table = pd.DataFrame({"guide": ["x", "y"]}, index=["a", "b"])
    with pytest.raises(SourceFormatError, match=r"'a' is the name of several cells.*Pass a dict"):
        lp.convert(files, tmp_path / "s.zarr", obs=table)
    other = pd.DataFrame({"guide": ["z"]}, index=["a"])
    lp.convert(files, tmp_path / "s.zarr", obs={"one": table, "two": other})
    obs = anndata.read_zarr(tmp_path / "s.zarr").obs
    found = obs[obs["guide"].notna()]
    assert sorted(zip(found["dataset"], found["guide"], strict=True)) == [("one", "x"), ("one", "y"), ("two", "z")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [f"{name}-1" for name in NAMES],
            "no barcode is the name of a cell.*40 are if the number at",
        ),
        (["x"] + [f"y{i}" for i in range(N - 1)], "the table has 'x', and the cells have 'CELL-0'"),
    ],
)
def test_no_match_is_an_error(tmp_path, names, message):
    adata = anndata.AnnData(counts(N, 5), pd.DataFrame(index=[name.replace("-", "_") for name in NAMES]))
    adata.obs_names = [name.replace("-", "_") for name in NAMES] if names[0] != "x" else NAMES
    adata.write_h5ad(tmp_path / "screen.h5ad")
    table = pd.DataFrame({"guide": ["x"] * N}, index=[name.replace("CELL-", "CELL_") for name in names])
    with pytest.raises(SourceFormatError, match=message):
        lp.convert(tmp_path / "screen.h5ad", tmp_path / "s.zarr", obs=table)
    assert not (tmp_path / "s.zarr").exists()


def test_a_column_of_the_file_is_never_replaced(tmp_path):
    source = write(tmp_path, "h5ad")
    table = pd.DataFrame({"lane": ["x"]}, index=NAMES[:1])
    with pytest.raises(ConfigError, match="already has an obs column"):
        lp.convert(source, tmp_path / "s.zarr", obs=table)


def test_readers_with_joined_columns_can_be_pickled(tmp_path):
    readers = [open_source(write(tmp_path, "h5ad"))]
    table = pd.DataFrame({"guide": ["x", "y"]}, index=NAMES[:2])
    (reader,) = join_obs(readers, ["screen"], table).readers
    copied = pickle.loads(pickle.dumps(reader))
    assert copied.obs_columns == ("lane", "guide")
    assert list(copied.obs_column("guide", 0, 2)) == ["x", "y"]
    assert copied.n_obs == N


def test_another_table_starts_the_conversion_over(tmp_path):
    readers = [open_source(write(tmp_path, "h5ad"))]
    table = pd.DataFrame({"guide": ["x", "y"]}, index=NAMES[:2])
    digests = {
        join_obs(readers, ["screen"], frame).digest
        for frame in (None, table, table.iloc[:1], table.assign(guide=["x", "x"]), table.rename(columns={"guide": "g"}))
    }
    assert len(digests) == 5
    assert join_obs(readers, ["screen"], table.copy()).digest in digests


def test_command_line(tmp_path, calls, capsys):
    from lazypert._cli import main

    source = write(tmp_path, "h5ad")
    calls.rename_axis("cell_barcode").to_csv(tmp_path / "calls.csv")
    options = ["--obs", str(tmp_path / "calls.csv"), "--pert-col", "feature_call", "--control-pert", "NTC"]
    assert main(["convert", str(source), str(tmp_path / "s.zarr"), *options]) in (0, None)
    assert "rows were not copied" in capsys.readouterr().out
    assert "feature_call" in anndata.read_zarr(tmp_path / "s.zarr").obs
