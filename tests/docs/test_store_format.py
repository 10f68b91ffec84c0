"""docs/store-format.md describes real stores: an implementation written only from that page reads and writes them."""

import json
import math
import re
import zipfile
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import lazypert as lp
from tests.support.drug_screen import COVARIATES, drug_screen, labels_of
from tests.support.drug_screen import ROLES as DRUG_ROLES
from tests.support.spec_rules import (
    COLUMN,
    MATRIX,
    TABLES,
    astype,
    codecs,
    data_dtype,
    declared_dtype,
    entry,
    grid,
    manifest_digest,
    name_hashes,
    root_digest,
    run_table,
    subgroups,
)
from tests.support.spec_store import SpecStore
from tests.support.spec_writer import SpecWriter
from tests.support.stores import (
    ROLES,
    dense,
    screen,
    small_grids,
    write,
)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "store-format.md").read_text()


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    """A screen with every kind of column and matrix, in many small shards; and what the file holds."""
    folder = tmp_path_factory.mktemp("every_kind")
    with pytest.MonkeyPatch.context() as patch:
        small_grids(patch)
        path = write(screen(), folder / "screen.h5ad")
        return SpecStore(lp.convert(path, folder / "screen.zarr", **ROLES)), screen()


@pytest.fixture(scope="module")
def stored(reference):
    return SpecStore(reference.store)


def plain(values):
    return [None if pd.isna(value) else value for value in values]


def test_reader_gets_the_matrices_of_the_source_file(every_kind):
    store, source = every_kind
    rows = store.array(f"{TABLES}/source_row")
    assert sorted(rows.tolist()) == list(range(source.n_obs))
    np.testing.assert_array_equal(store.matrix("X"), dense(source.X)[rows])
    np.testing.assert_array_equal(store.matrix("layers/lognorm"), dense(source.layers["lognorm"])[rows])
    np.testing.assert_array_equal(store.matrix("obsm/guides"), dense(source.obsm["guides"])[rows])
    np.testing.assert_array_equal(store.dense("obsm/X_pca"), source.obsm["X_pca"][rows])
    assert list(store.ours["matrices"]) == ["X", "layers/lognorm", "obsm/guides"]


def test_reader_gets_the_matrices_of_a_compact_store(every_kind, tmp_path, monkeypatch):
    small_grids(monkeypatch)
    source = screen()
    path = lp.convert(write(source, tmp_path / "s.h5ad"), tmp_path / "s.zarr", **ROLES, compression="compact")
    compact, fast = SpecStore(path), every_kind[0]
    assert [compact.is_delta(f"X/{name}") for name in ("indices", "data", "indptr")] == [True, False, False]
    for name in compact.ours["matrices"]:
        np.testing.assert_array_equal(compact.matrix(name), fast.matrix(name))


def test_reader_gets_the_columns_of_the_source_file(every_kind):
    store, source = every_kind
    rows = store.array(f"{TABLES}/source_row")
    assert store.array("obs/_index").tolist() == source.obs_names[rows].tolist()
    assert store.array("var/_index").tolist() == source.var_names.tolist()
    assert store.attrs("obs")["column-order"] == list(source.obs)
    for name in source.obs:
        assert plain(store.column(f"obs/{name}")) == plain(source.obs[name].iloc[rows]), name
    for name in source.var:
        assert store.column(f"var/{name}") == source.var[name].tolist(), name


def test_run_table_follows_from_the_labels(every_kind):
    store, _ = every_kind
    columns = [store.column("obs/cell_type"), store.column("obs/perturbation"), ["all"] * store.ours["n_obs"]]
    keys, hashes = list(zip(*columns, strict=True)), store.array(f"{TABLES}/name_hash").tolist()
    ordered, runs = run_table(keys, hashes)
    assert ordered == list(range(store.ours["n_obs"]))
    assert store.runs() == [tuple(run) for run in runs]


def test_conditions_follow_from_the_covariates(tmp_path):
    made = drug_screen(200)
    path = lp.convert(write(made, tmp_path / "s.h5ad"), tmp_path / "s.zarr", **DRUG_ROLES, covariates=COVARIATES)
    store = SpecStore(path)
    assert store.ours["roles"]["covariates"] == list(COVARIATES)
    conditions, of_run = store.conditions()
    labels = labels_of(made.obs, COVARIATES)
    assert conditions == sorted(set(labels))
    assert store.ours["summary"]["n_conditions"] == len(conditions)
    axes = (plain(made.obs[name].astype(object)) for name in ("cell_type", "drug"))
    keys = [(a, b, condition, "all") for a, b, condition in zip(*axes, labels, strict=True)]
    hashes = name_hashes(made.obs_names, keys)
    ordered, runs = run_table(keys, hashes)
    assert store.array(f"{TABLES}/source_row").tolist() == ordered
    found = [
        [start, stop, (cell_type, perturbation, conditions[number], dataset)]
        for (start, stop, (cell_type, perturbation, dataset)), number in zip(store.runs(), of_run, strict=True)
    ]
    assert found == runs


def test_without_covariates_there_are_no_conditions(every_kind):
    store, _ = every_kind
    assert store.conditions() is None


def test_batches_are_by_row_and_counted_by_run(every_kind):
    store, _ = every_kind
    labels = [*store.array(f"{TABLES}/labels/batch").tolist(), None]
    batch = [labels[code] for code in store.array(f"{TABLES}/batch")]
    assert batch == store.column("obs/batch")
    run, of_batch, n_cells = (
        store.array(f"{TABLES}/subgroups/{name}").tolist() for name in ("run", "batch", "n_cells")
    )
    found = list(zip(run, (labels[code] for code in of_batch), n_cells, strict=True))
    assert found == subgroups(store.runs(), batch)


def test_cells_without_a_label_come_last(tmp_path):
    made = screen(60, 7, lean=True)
    labels = made.obs["perturbation"].astype(object)
    labels.iloc[::5] = None
    made.obs["perturbation"] = pd.Categorical(labels)
    store = SpecStore(lp.convert(write(made, tmp_path / "s.h5ad"), tmp_path / "s.zarr", **ROLES))
    runs = store.runs()
    of_type = [labels[1] for _, _, labels in runs if labels[0] == "Neuron"]
    assert None in of_type
    assert of_type == sorted([label for label in of_type if label is not None]) + [None] * of_type.count(None)
    unlabelled = sum(stop - start for start, stop, labels in runs if None in labels[:2])
    assert unlabelled == store.ours["summary"]["n_unlabelled"] == 12


@pytest.mark.parametrize("is_sorted", [False, True], ids=["scattered", "sorted"])
def test_source_order_keeps_rows_and_maps_positions_to_them(tmp_path, is_sorted):
    made = screen(60, 7, lean=True)
    if is_sorted:
        obs = made.obs[["cell_type", "perturbation"]].astype(str)
        made = made[run_table([*obs.itertuples(index=False)], name_hashes(made.obs_names, [0] * 60))[0]].copy()
    store = SpecStore(lp.convert(write(made, tmp_path / "s.h5ad"), tmp_path / "s.zarr", order="source", **ROLES))
    assert store.array(f"{TABLES}/source_row").tolist() == list(range(60))
    assert store.exists(f"{TABLES}/order") == (not is_sorted)
    order = np.arange(60) if is_sorted else store.array(f"{TABLES}/order")
    hashes = store.array(f"{TABLES}/name_hash")
    for start, stop, (cell_type, perturbation, _) in store.runs():
        assert (np.diff(hashes[order[start:stop]].astype(float)) > 0).all()
        found = made.obs.iloc[order[start:stop]]
        assert (found[["cell_type", "perturbation"]] == [cell_type, perturbation]).all().all()


def test_order_follows_from_labels_and_names(every_kind):
    store, source = every_kind
    keys = source.obs[["cell_type", "perturbation"]].astype(str).agg(tuple, axis=1).tolist()
    hashes = name_hashes(source.obs_names, keys)
    expected = run_table(keys, hashes)[0]
    assert store.array(f"{TABLES}/source_row").tolist() == expected
    assert store.array(f"{TABLES}/name_hash").tolist() == [hashes[row] for row in expected]


def test_cells_of_the_same_name_get_different_hashes(tmp_path):
    made = screen(60, 7, lean=True)
    made.obs_names = ["same"] * 40 + [f"cell{i}" for i in range(20)]
    store = SpecStore(lp.convert(write(made, tmp_path / "s.h5ad"), tmp_path / "s.zarr", **ROLES))
    keys = made.obs[["cell_type", "perturbation"]].astype(str).agg(tuple, axis=1).tolist()
    hashes = name_hashes(made.obs_names, keys)
    assert store.array(f"{TABLES}/source_row").tolist() == run_table(keys, hashes)[0]


def test_cell_statistics_follow_from_x(stored, reference):
    base, x, genes = f"{TABLES}/facts", stored.matrix("X").astype("f8"), stored.column("var/gene_name")
    assert stored.attrs(base) == {"gene_col": "gene_name"}
    labels = stored.array(f"{TABLES}/labels/perturbation").tolist()
    target = [genes.index(name) if name in genes else -1 for name in labels]
    assert stored.array(f"{base}/target").tolist() == target
    np.testing.assert_array_equal(stored.array(f"{base}/total"), x.sum(axis=1))
    np.testing.assert_array_equal(stored.array(f"{base}/n_genes"), (x != 0).sum(axis=1))
    own = [labels.index(name) for name in stored.column("obs/perturbation")]
    expected = [np.nan if target[code] < 0 else x[row, target[code]] for row, code in enumerate(own)]
    np.testing.assert_array_equal(stored.array(f"{base}/own_target"), expected)
    batch = stored.column("obs/batch")
    controls = [
        [row for row in range(*stored.runs()[run][:2]) if batch[row] == label]
        for run, label, _ in subgroups(stored.runs(), batch)
        if stored.runs()[run][2][1] == "non-targeting"
    ]
    assert stored.array(f"{base}/control_row").tolist() == [rows[0] for rows in controls]
    sums = [[0 if t < 0 else x[rows, t].sum() for t in target] for rows in controls]
    np.testing.assert_array_equal(stored.array(f"{base}/control_sum").reshape(len(controls), -1), sums)


def test_digests_follow_from_the_files(every_kind):
    store, _ = every_kind
    assert root_digest(store.metadata) == store.ours["root_digest"]
    found = sorted(entry(store.root, path) for path in store.root.rglob("*") if path.is_file())
    listed, own = store.manifest(), store.ours["manifest_files"]
    assert sorted([*listed, *own]) == [line for line in found if line[0] != "zarr.json"]
    assert listed == sorted(listed)
    assert {key.rsplit("/manifest/")[1].split("/")[0] for key, _, _ in own} == {"key", "size", "crc32"}
    assert manifest_digest(listed) == store.ours["manifest_digest"]


def test_arrays_have_the_specified_codecs_and_grids(stored):
    n_arrays = 0
    for path in stored.root.rglob("zarr.json"):
        node, name = json.loads(path.read_text()), path.parent.relative_to(stored.root).as_posix()
        if node["node_type"] != "array":
            continue
        n_arrays += 1
        dtype, chain = np.dtype("O" if node["data_type"] == "string" else node["data_type"]), []
        if name == "X/data":  # counts up to 18
            assert dtype == "f4"
            dtype, chain = np.dtype("u2"), [astype("u2", "f4")]
        if name == "X/indices":  # far fewer columns than 65,536
            assert dtype == "i4"
            dtype, chain = np.dtype("u2"), [astype("u2", "i4")]
        chain += codecs(dtype, is_matrix_data=name == "X/data", is_narrow_index=name == "X/indices")
        chunks = node["chunk_grid"]["configuration"]["chunk_shape"]
        if name == "obsm/X_pca":
            assert chunks == [900, 20]
            assert node["codecs"] == chain
            continue
        chunk, shard = grid(node["shape"][0], MATRIX if name in ("X/data", "X/indices") else COLUMN)
        (sharding,) = node["codecs"]
        inner = sharding["configuration"]["codecs"]
        assert (chunks, sharding["configuration"]["chunk_shape"]) == ([shard], [chunk]), name
        assert [{k: v for k, v in codec.items() if v} for codec in inner] == chain, name
        assert sharding["configuration"]["index_location"] == "end"
        assert node["fill_value"] in (0, "", False)
    assert n_arrays > 25


def first_cells(number):
    """Names in the first column of the tables of a section."""
    section = PAGE[PAGE.index(f"\n## {number}. ") : PAGE.index(f"\n## {number + 1}. ")]
    cells = re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_every_node_of_a_store_is_specified(every_kind):
    store, _ = every_kind
    own = [f"{TABLES}/{path}" for path in first_cells(5)]
    matrices = [path.replace("<matrix>", "(X|layers/<name>|obsm/<name>)") for path in first_cells(3) if "/" in path]
    patterns = [re.sub(r"<\w+>", "[^/]+", path) for path in [*first_cells(1), *own, *matrices]]
    columns = r"(obs|var)/\w+/(codes|categories|values|mask)"
    groups = [f"{TABLES}/(labels|runs|subgroups|manifest)", r"\."]
    nodes = [path.parent.relative_to(store.root).as_posix() for path in store.root.rglob("zarr.json")]
    assert [n for n in nodes if not any(re.fullmatch(p, n) for p in [*patterns, columns, *groups])] == []


def test_every_specified_table_exists(tmp_path):
    path = write(drug_screen(100), tmp_path / "s.h5ad")
    store = SpecStore(lp.convert(path, tmp_path / "s.zarr", **DRUG_ROLES, covariates=COVARIATES))
    paths = [path.replace("<axis>", "dataset").replace("<k>", "1") for path in first_cells(5)]
    assert len(paths) > 14
    assert [path for path in paths if not store.exists(f"{TABLES}/{path}")] == ["order"]


def test_root_attributes_are_specified(stored):
    section = PAGE[PAGE.index("## 7. ") : PAGE.index("## 8. ")]
    assert set(first_cells(7)) == set(stored.ours)
    for key in ("roles", "summary"):
        (values,) = re.findall(rf"^\| `{key}` \| ([^|]+) \|", section, re.MULTILINE)
        optional = {"covariates", "n_conditions", "rename_perturbations"}
        assert [name for name in re.findall(r"`(\w+)`", values) if name not in optional] == list(stored.ours[key])
    assert set(re.findall(r"`(\w+)`", section)) >= set(stored.ours["matrices"]["X"]) | set(stored.ours["sources"][0])


@pytest.mark.parametrize(
    ("values", "dtype", "declared"),
    [
        ([0.0, 65_535.0], "u2", "f4"),
        ([65_536.0], "u4", "f4"),
        ([2.0**24], "u4", "f4"),
        ([2.0**24 + 1], "u4", "f8"),
        ([-1.0, 70_000.0], "i4", "f4"),
        ([-(2.0**24) - 1], "i4", "f8"),
        ([2.0**32], "i8", "f8"),
        ([-(2.0**31) - 1], "i8", "f8"),
        ([2.0**53], "i8", "f8"),
        ([0.5], "f4", "f4"),
        ([0.1], "f8", "f8"),
        ([2.0**54], "f4", "f4"),
        ([np.nan, 1.0], "f4", "f4"),
        ([np.inf, 0.1], "f8", "f8"),
        ([], "u2", "f4"),
    ],
)
def test_values_get_the_specified_dtypes(tmp_path, values, dtype, declared):
    x = np.zeros((2, 12))
    x[0, : len(values)] = values
    assert data_dtype(np.array(values)) == dtype
    assert declared_dtype(dtype, min(values, default=0), max(values, default=0)) == declared
    made = anndata.AnnData(x, pd.DataFrame(index=["a", "b"]), pd.DataFrame(index=[f"g{j}" for j in range(12)]))
    store = SpecStore(lp.convert(write(made, tmp_path / "s.h5ad"), tmp_path / "s.zarr"))
    assert store.stored_dtype("X/data") == dtype
    assert store.array("X/data").dtype == store.node("X/data")["data_type"] == np.dtype(declared).name
    np.testing.assert_array_equal(store.matrix("X"), x)


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1], ids=["above", "below"])
def test_integers_that_no_float_represents_stay_integers(tmp_path, value):
    made = anndata.AnnData(sparse.csr_matrix(np.array([[value, 0], [3, 0]])), pd.DataFrame(index=["a", "b"]))
    store = SpecStore(lp.convert(write(made, tmp_path / "s.h5ad"), tmp_path / "s.zarr"))
    assert declared_dtype("i8", min(value, 0), max(value, 3)) == store.stored_dtype("X/data") == "i8"
    assert store.array("X/data").tolist() == [value, 3]


def test_duplicates_are_summed_and_explicit_zeros_are_kept(tmp_path):
    values = sparse.csr_matrix(([1.0, 2.0, 0.0, 5.0], [2, 2, 0, 1], [0, 3, 4]), shape=(2, 3))
    made = anndata.AnnData(values, pd.DataFrame(index=["a", "b"]), pd.DataFrame(index=list("xyz")))
    path = write(made, tmp_path / "s.h5ad")
    with h5py.File(path, "r+") as file:  # AnnData sums duplicates too
        del file["X/data"], file["X/indices"], file["X/indptr"]
        file["X/data"], file["X/indices"], file["X/indptr"] = [1.0, 2.0, 0.0, 5.0], [2, 2, 0, 1], [0, 3, 4]
    store = SpecStore(lp.convert(path, tmp_path / "s.zarr"))
    found = {name: store.array(f"X/{name}").tolist() for name in ("data", "indices", "indptr")}
    assert found == {"data": [0, 3, 5], "indices": [0, 2, 1], "indptr": [0, 2, 3]}


def test_several_files_share_labels_and_row_numbers(tmp_path):
    one, two = screen(40, 7, lean=True), screen(30, 7, seed=1, lean=True)
    folders = [tmp_path / name for name in ("first", "second")]
    for folder, made in zip(folders, (one, two), strict=True):
        folder.mkdir()
        write(made, folder / "a.h5ad")
    store = SpecStore(lp.convert([folder / "a.h5ad" for folder in folders], tmp_path / "s.zarr", **ROLES))
    assert [source["name"] for source in store.ours["sources"]] == ["a", "a_2"]
    assert store.array(f"{TABLES}/labels/dataset").tolist() == ["a", "a_2"]
    rows = store.array(f"{TABLES}/source_row")
    assert store.column("obs/dataset") == ["a_2" if row >= 40 else "a" for row in rows]
    np.testing.assert_array_equal(store.matrix("X"), np.concatenate([dense(one.X), dense(two.X)])[rows])


def test_x_moves_to_the_layers_if_a_layer_becomes_x(tmp_path):
    made = screen(20, 7)
    store = SpecStore(lp.convert(write(made, tmp_path / "s.h5ad"), tmp_path / "s.zarr", layer="lognorm", **ROLES))
    rows = store.array(f"{TABLES}/source_row")
    assert store.ours["layer"] == "lognorm"
    np.testing.assert_array_equal(store.matrix("X"), dense(made.layers["lognorm"])[rows])
    np.testing.assert_array_equal(store.matrix("layers/X"), dense(made.X)[rows])


def test_raw_is_a_matrix_with_its_own_genes(tmp_path):
    made = screen(20, 7, lean=True)
    made.raw = made
    made = made[:, :3].copy()
    store = SpecStore(lp.convert(write(made, tmp_path / "s.h5ad"), tmp_path / "s.zarr", **ROLES))
    rows = store.array(f"{TABLES}/source_row")
    np.testing.assert_array_equal(store.matrix("raw/X"), dense(made.raw.X)[rows])
    assert store.array("raw/var/_index").tolist() == made.raw.var_names.tolist()
    assert store.attrs("raw")["encoding-type"] == "raw"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_reader_reads_every_version(tmp_path, version):
    with zipfile.ZipFile(ROOT / "tests" / "data" / f"golden_v{version}.zip") as archive:
        archive.extractall(tmp_path)
    store = SpecStore(tmp_path / "golden.zarr")
    assert store.ours["format_version"] == version
    assert store.exists(f"{TABLES}/facts") == (version > 1)
    cell = store.array(f"{TABLES}/source_row")[:, None]
    gene = np.arange(12)[None, :]
    counts = (cell * 7 + gene * 13) % 11 * ((cell + gene) % 3 == 0)
    counts[cell[:, 0] == 59, 11] = 70_000
    np.testing.assert_array_equal(store.matrix("X"), counts)
    np.testing.assert_array_equal(store.matrix("layers/half"), counts / 2)
    assert store.column("obs/n") == cell[:, 0].tolist()
    assert [stop - start for start, stop, _ in store.runs()] == ([5] * 12 if version < 3 else [10] * 6)


@pytest.fixture(scope="module")
def rewritten(reference, stored, tmp_path_factory):
    """The reference screen, written by the other implementation from the file."""
    return rewrite(reference, stored, tmp_path_factory.mktemp("rewritten") / "screen.zarr")


def rewrite(reference, stored, path, *, is_compact=False):
    source = reference.adata
    SpecWriter(path, is_compact=is_compact).write(
        dense(source.X),
        source.obs_names.tolist(),
        {name: source.obs[name].astype(str).tolist() for name in source.obs},
        source.var["gene_name"].astype(str).tolist(),
        stored.ours["roles"],
        stored.ours["sources"],
    )
    return path


@pytest.mark.parametrize("compression", ["fast", "compact"])
def test_writer_writes_the_same_bytes(rewritten, reference, stored, tmp_path, compression):
    """lazypert makes the same shards from a file with this X, obs and var index, bit for bit."""
    if compression == "compact":
        rewritten = rewrite(reference, stored, tmp_path / "rewritten.zarr", is_compact=True)
    source = anndata.AnnData(reference.adata.X, reference.adata.obs)
    source.var_names = reference.adata.var["gene_name"].astype(str).tolist()
    options = {**ROLES, "compression": compression}
    store = lp.convert(write(source, tmp_path / "screen.h5ad"), tmp_path / "screen.zarr", **options)
    ours, theirs = SpecStore(store), SpecStore(rewritten)
    for path in ("X/indices", "X/data"):
        (chain, other_chain) = (spec.node(path)["codecs"][0]["configuration"]["codecs"] for spec in (ours, theirs))
        assert [{k: v for k, v in codec.items() if v} for codec in chain] == other_chain
    shards = {p.relative_to(store): p.read_bytes() for p in store.rglob("c/*") if p.is_file()}
    other = {p.relative_to(rewritten): p.read_bytes() for p in rewritten.rglob("c/*") if p.is_file()}
    assert shards.keys() == other.keys()
    differ = [key.as_posix() for key in shards if shards[key] != other[key]]
    assert [key for key in differ if "manifest" not in key] == []  # sizes of zarr.json differ by their spaces
    for key in ("roles", "order", "layer", "n_obs", "n_vars", "matrices", "summary", "warnings"):
        assert ours.ours[key] == theirs.ours[key], key


def test_lazypert_and_anndata_read_what_the_writer_wrote(rewritten, reference):
    assert lp.verify(rewritten) > 40
    ds, expected = lp.open(rewritten), lp.open(reference.store)
    pd.testing.assert_frame_equal(ds.pert.table(), expected.pert.table())
    np.testing.assert_array_equal(ds.X.values, expected.X.values)
    found = ds.pert.knockdown().table
    pd.testing.assert_frame_equal(found, expected.pert.knockdown(var_gene_col="gene_name").table)
    read = anndata.read_zarr(rewritten)
    np.testing.assert_array_equal(dense(read.X), ds.X.values)
    assert math.isclose(float(ds.total_counts.sum()), float(ds.X.sum()))
    assert set(read.obs) == {"perturbation", "cell_type", "batch"}
