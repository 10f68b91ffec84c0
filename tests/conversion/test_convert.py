"""Conversion: the store holds exactly what the source holds, or there is no store."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import anndata
import dask
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import lazypert as lp
from lazypert.conversion.dataframe_writer import InMemoryColumn, write_column, write_frame
from lazypert.conversion.store_writer import StoreWriter
from lazypert.errors import (
    ColumnNotFoundError,
    ConfigError,
    LabelNotFoundError,
    LazypertError,
    SourceFormatError,
    StoreExistsError,
)
from lazypert.screen.labels import join_columns
from lazypert.store.format import TABLES
from lazypert.store.store import Store
from tests.support.stores import (
    ROLES,
    assert_same,
    converted,
    counts,
    dense,
    every_column,
    files,
    layers_of,
    leftovers,
    no_sync,  # noqa: F401 - a fixture for the whole module
    read_store,
    screen,
    small_blocks,
    small_grids,
    source_row,
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
    if (layout, order) != ("csr", "grouped"):  # every column once is enough
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
    keys = list(zip(*(obs[c].astype(str) for c in ("cell_type", "perturbation", "batch")), strict=True))
    runs = [key for key, _ in itertools.groupby(keys)]
    assert runs == sorted(set(keys))
    rows = source_row(store)
    inside = [np.array(rows[[k == key for k in keys]]) for key in runs]
    assert any((np.diff(r) < 0).any() for r in inside)  # shuffled within
    other = lp.convert(tmp_path / "screen.h5ad", tmp_path / "b.zarr", seed=1, **ROLES)
    assert source_row(other).tolist() != rows.tolist()
    same = lp.convert(tmp_path / "screen.h5ad", tmp_path / "c.zarr", seed=0, **ROLES)
    assert source_row(same).tolist() == rows.tolist()


def with_layer(name="lognorm"):
    adata = screen(lean=True)
    adata.layers[name] = adata.X * 2
    return adata


def test_a_layer_becomes_x_and_x_a_layer(tmp_path):
    path, store = converted(tmp_path, with_layer(), layer="lognorm")
    source, found, rows = anndata.read_h5ad(path), read_store(store), source_row(store)
    np.testing.assert_array_equal(dense(found.X), dense(source.layers["lognorm"])[rows])
    np.testing.assert_array_equal(dense(found.layers["X"]), dense(source.X)[rows])
    assert layers_of(found) == {"X"}


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
    found = read_store(store).X
    assert found.dtype == dtype
    assert found.indices.dtype == found.indptr.dtype == np.int32
    np.testing.assert_array_equal(found.toarray(), matrix.toarray())
    facts = Store(store).attrs["matrices"]["X"]
    assert facts["nnz"] == matrix.nnz
    if not np.isnan(matrix.data).any():
        assert facts["sum"] == pytest.approx(matrix.sum())
        assert (facts["minimum"], facts["maximum"]) == (matrix.min(), matrix.max())


@pytest.mark.parametrize("layout", ["csr", "csc"])
@pytest.mark.parametrize("index_dtype", ["i4", "i8", "u4"])
def test_unsorted_duplicate_and_wide_indices(tmp_path, layout, index_dtype):
    path = write(anndata.AnnData(counts(6, 6), pd.DataFrame(index=list("abcdef"))), tmp_path / "a.h5ad")
    indices = np.array([5, 0, 0, 3, 2, 1, 1, 1, 4], dtype=index_dtype)
    data, indptr = np.arange(1, 10, dtype="f4"), np.array([0, 0, 4, 4, 5, 9, 9], dtype="i8")
    with h5py.File(path, "r+") as file:
        for name, values in (("data", data), ("indices", indices), ("indptr", indptr)):
            del file[f"X/{name}"]
            file[f"X/{name}"] = values
        file["X"].attrs["encoding-type"] = f"{layout}_matrix"
    expected = getattr(sparse, f"{layout}_matrix")((data, indices.astype("i4"), indptr), shape=(6, 6)).toarray()
    found = read_store(lp.convert(path, tmp_path / "a.zarr")).X
    assert found.has_canonical_format
    np.testing.assert_array_equal(found.toarray(), expected)


@pytest.mark.parametrize("shape", [(0, 4), (5, 0), (1, 1)], ids=str)
def test_tiny_screens(tmp_path, shape):
    obs = pd.DataFrame({"perturbation": ["x"] * shape[0]}, index=[str(i) for i in range(shape[0])])
    path = write(anndata.AnnData(sparse.csr_matrix(shape, dtype="f4"), obs), tmp_path / "a.h5ad")
    try:
        store = lp.convert(path, tmp_path / "a.zarr", pert_col="perturbation")
    except SourceFormatError as error:
        assert "no cells" in str(error) or "no genes" in str(error)  # noqa: PT017 - either is a clear answer
        assert leftovers(tmp_path, "a.h5ad") == []
        return
    assert read_store(store).shape == shape
    assert lp.open(store).sizes["cell"] == shape[0]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A source and the array files of its store as the synchronous scheduler makes them."""
    folder = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch, dask.config.set(scheduler="synchronous"):
        small_grids(patch)
        path, store = converted(folder, with_layer())
    return path, files(store)


def assert_same_files(store, expected):
    found = files(store)
    assert found.keys() == expected.keys()
    # The manifest sums up zarr.json files, which hold no time or path either.
    assert [key for key in found if found[key] != expected[key]] == []
    assert sum(key.startswith("X/data/c/") for key in found) > 2


@pytest.mark.parametrize("size", [1, 400, 10**6])
def test_blocks_do_not_change_the_bytes(tmp_path, monkeypatch, reference, size):
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
    with dask.config.set(scheduler="processes", num_workers=2):
        assert_same_files(lp.convert(path, tmp_path / "two.zarr", **ROLES), expected)


@pytest.mark.slow
def test_a_cluster_does_not_change_the_bytes(tmp_path, monkeypatch, reference):
    distributed = pytest.importorskip("distributed")
    small_grids(monkeypatch)
    small_blocks(monkeypatch, 2_000)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        assert_same_files(lp.convert(reference[0], tmp_path / "s.zarr", **ROLES), reference[1])


def test_progress_counts_to_the_end(tmp_path, monkeypatch):
    small_blocks(monkeypatch, 700)
    seen = []
    converted(tmp_path, screen(lean=True), progress=seen.append)
    phases = list(dict.fromkeys(event.phase for event in seen))
    assert phases[:2] == ["X: reading and sorting", "X: writing shards"]
    for phase in phases:
        events = [event for event in seen if event.phase == phase]
        assert [event.done for event in events] == list(range(events[-1].total + 1))
        sizes = [event.n_bytes for event in events]
        assert sizes[0] == 0 < sizes[-1]
        assert sizes == sorted(sizes)


class TestSeveralFiles:
    @pytest.fixture
    def two(self, tmp_path):
        a = screen(30, seed=0, genes=["g1", "g2", "g3"], lean=True)
        b = screen(20, seed=1, genes=["g3", "g4", "g1"], lean=True)
        a.obsm["X_pca"], b.obsm["X_pca"] = np.ones((30, 2)), np.arange(40.0).reshape(20, 2)
        b.obs["perturbation"] = b.obs["perturbation"].cat.rename_categories({"KRAS": "MYC"})
        b.obs["perturbation"] = b.obs["perturbation"].astype(str)
        a.obs["only_a"], b.obs["only_b"] = np.arange(30), [f"t{i}" for i in range(20)]
        a.obs["dataset"] = "mine"
        return write(a, tmp_path / "a.h5ad"), write(b, tmp_path / "b.x.h5ad"), a, b

    @pytest.mark.parametrize("layout", ["csr", "csc"])
    @pytest.mark.parametrize("join", ["inner", "outer"])
    def test_genes_are_aligned_and_labels_united(self, tmp_path, monkeypatch, two, join, layout):
        small_blocks(monkeypatch, 60)
        path_a, path_b, a, b = two
        if layout == "csc":
            b.X = b.X.tocsc()
            write(b, path_b)
        store = lp.convert([path_a, path_b], tmp_path / "s.zarr", join=join, **ROLES)
        lp.verify(store)
        found = read_store(store)
        genes = ["g1", "g3"] if join == "inner" else ["g1", "g2", "g3", "g4"]
        assert sorted(found.var_names) == genes
        assert found.X.has_canonical_format
        for name, source in (("a", a), ("b", b)):
            part = found[found.obs["dataset"] == name]
            assert sorted(part.obs_names) == sorted(source.obs_names)
            original = source[part.obs_names].to_df()
            for gene in genes:
                expected = original[gene].to_numpy() if gene in original else np.zeros(len(part))
                np.testing.assert_array_equal(part.to_df()[gene].to_numpy(), expected)
                if join == "outer":
                    assert found.var.loc[gene, f"measured_in_{name}"] == (gene in source.var_names)
            np.testing.assert_array_equal(
                part.obs["perturbation"].astype(str), source[part.obs_names].obs["perturbation"]
            )
            shared = [gene for gene in genes if gene in source.var_names]
            assert found.var.loc[shared, "gene_name"].tolist() == [f"{gene}-name" for gene in shared]
            np.testing.assert_array_equal(dense(part.obsm["X_pca"]), source[part.obs_names].obsm["X_pca"])
        groups = Store(store).groups
        assert set(groups.labels["perturbation"]) == {"TP53", "non-targeting", "BRCA1", "KRAS", "MYC"}
        assert set(groups.labels["dataset"]) == {"a", "b"}

    def test_columns_that_only_some_files_have_are_missing_elsewhere(self, tmp_path, two):
        store = lp.convert(two[:2], tmp_path / "s.zarr", **ROLES)
        obs = read_store(store).obs
        in_a = (obs["dataset"] == "a").to_numpy()
        assert obs["only_a"].isna().tolist() == (~in_a).tolist()
        assert obs["only_b"].isna().tolist() == in_a.tolist()
        assert sorted(obs["only_a"][in_a].astype(int)) == list(range(30))
        assert sorted(obs["only_b"][~in_a]) == sorted(f"t{i}" for i in range(20))
        assert set(obs["dataset_in_file"][in_a]) == {"mine"}
        assert obs["dataset_in_file"][~in_a].isna().all()

    def test_all_columns_of_both_files_come_back(self, tmp_path, two):
        path_a, path_b, a, b = two
        a.obs, b.obs = every_column(30, 0), every_column(20, 1)
        write(a, path_a)
        write(b, path_b)
        found = read_store(lp.convert([path_a, path_b], tmp_path / "s.zarr", **ROLES)).obs
        for source in (a, b):
            for name in every_column(1).columns:
                ours, theirs = found.loc[source.obs_names, name], source.obs[name]
                assert ours.isna().tolist() == theirs.isna().tolist(), name
                kept = theirs.notna().to_numpy()
                assert ours[kept].tolist() == theirs[kept].tolist(), name

    def test_controls_do_not_mix_between_files(self, tmp_path, two):
        ds = lp.open(lp.convert(two[:2], tmp_path / "s.zarr", **ROLES))
        dataset = ds.dataset.to_numpy()
        for strategy in ("random", "batch"):
            mapping = ds.pert.match_controls(strategy=strategy, n_basal_samples=3)
            mapped = np.flatnonzero(ds.perturbation.to_numpy() != "non-targeting")
            assert (dataset[mapping] == dataset[mapped][:, None]).all()
            assert (ds.cell_type.to_numpy()[mapping] == ds.cell_type.to_numpy()[mapped][:, None]).all()

    def test_a_role_column_called_dataset_keeps_its_meaning(self, tmp_path, two):
        path_a, path_b, _, b = two
        b.obs["dataset"] = np.where(np.arange(20) % 2, "mine", "theirs")
        write(b, path_b)
        roles = ROLES | {"batch_col": "dataset"}
        store = lp.convert([path_a, path_b], tmp_path / "s.zarr", **roles)
        assert set(Store(store).groups.labels["batch"]) == {"mine", "theirs"}
        assert Store(store).roles.batch_col == "dataset_in_file"
        part = lp.open(store).isel(cell=slice(1, None))
        assert set(part.pert.groups.labels["batch"]) == {"mine", "theirs"}
        assert (part.pert.select(batch="theirs")["dataset_in_file"] == "theirs").all()

    def test_files_of_one_name_are_told_apart(self, tmp_path):
        (tmp_path / "x").mkdir()
        paths = [write(screen(10, seed=i, lean=True), tmp_path / d / "s.h5ad") for i, d in enumerate((".", "x"))]
        obs = read_store(lp.convert(paths, tmp_path / "s.zarr")).obs
        assert obs["dataset"].value_counts().to_dict() == {"s": 10, "s_2": 10}

    def test_files_without_common_genes_are_refused(self, tmp_path):
        paths = [
            write(screen(9, seed=i, genes=[f"{i}g1", f"{i}g2"], lean=True), tmp_path / f"{i}.h5ad") for i in range(2)
        ]
        with pytest.raises(SourceFormatError, match="share no gene names"):
            lp.convert(paths, tmp_path / "s.zarr")
        assert leftovers(tmp_path, "0.h5ad", "1.h5ad") == []


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"pert_col": "perturbatoin"}, ColumnNotFoundError, "Did you mean 'perturbation'"),
        ({"cell_type_col": "celltype"}, ColumnNotFoundError, "Did you mean 'cell_type'"),
        ({"batch_col": "zzz"}, ColumnNotFoundError, "There are 3: 'perturbation'"),
        ({"control_pert": "non_targeting"}, LabelNotFoundError, "Did you mean 'non-targeting'"),
        ({"control_pert": "zzz"}, LabelNotFoundError, "There are 4"),
        ({"layer": "lognrom"}, ColumnNotFoundError, "Did you mean 'lognorm'"),
        ({"order": "random"}, ConfigError, "'grouped' or 'source'"),
        ({"join": "left"}, ConfigError, "'inner' or 'outer'"),
        ({"memory_limit": "1MB"}, ConfigError, "too small"),
        ({"memory_limit": "much"}, ConfigError, "'256MiB'"),
        ({"source": []}, ConfigError, "empty list"),
    ],
    ids=lambda v: "-".join(f"{k}={x}" for k, x in v.items()) if isinstance(v, dict) else "",
)
def test_wrong_options_leave_nothing(tmp_path, options, error, says):
    path = write(with_layer(), tmp_path / "a.h5ad")
    options = {"source": path, **ROLES, **options}
    with pytest.raises(error, match=says):
        lp.convert(options.pop("source"), tmp_path / "s.zarr", **options)
    assert leftovers(tmp_path, "a.h5ad") == []


def test_an_existing_target_is_refused_and_untouched(tmp_path):
    path, store = converted(tmp_path, screen(lean=True))
    before = files(store)
    with pytest.raises(StoreExistsError, match="overwrite=True"):
        lp.convert(path, store, **ROLES)
    assert files(store) == before
    lp.convert(path, store, overwrite=True, seed=3, **ROLES)
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
    with pytest.raises(LazypertError, match="inside"):
        lp.convert(inside, store, overwrite=True, **ROLES)
    assert inside.exists()


def test_no_x_asks_for_a_layer(tmp_path):
    adata = with_layer()
    adata.X = None
    path = write(adata, tmp_path / "a.h5ad")
    with pytest.raises(SourceFormatError, match=r"has no X.*layer=.*lognorm"):
        lp.convert(path, tmp_path / "s.zarr", **ROLES)
    assert leftovers(tmp_path, "a.h5ad") == []
    found = read_store(lp.convert(path, tmp_path / "s.zarr", layer="lognorm", **ROLES))
    assert layers_of(found) == set()


def test_a_layer_named_x_is_not_lost(tmp_path):
    adata = with_layer()
    adata.layers["X"] = adata.X * 2
    path = write(adata, tmp_path / "a.h5ad")
    with pytest.raises(SourceFormatError, match="layers/X"):
        lp.convert(path, tmp_path / "s.zarr", layer="lognorm", **ROLES)
    found = read_store(lp.convert(path, tmp_path / "s.zarr", layer="X", **ROLES))
    np.testing.assert_array_equal(dense(found.X), 2 * dense(found.layers["X"]))


def test_what_a_store_cannot_hold_is_noted(tmp_path):
    adata = screen(lean=True)
    adata.uns["note"] = "x"
    adata.obsp["near"] = sparse.eye(90, format="csr")
    _, store = converted(tmp_path, adata)
    assert sorted(w.partition(": ")[2].partition(":")[0] for w in Store(store).attrs["warnings"]) == [
        "obsp/near",
        "uns/note",
    ]


def test_cells_without_a_label_are_in_no_group(tmp_path):
    adata = screen(lean=True)
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(object).where(np.arange(90) % 5 > 0, None)
    adata.obs["perturbation"] = pd.Categorical(adata.obs["perturbation"])
    path, store = converted(tmp_path, adata)
    assert_same(store, anndata.read_h5ad(path))
    assert Store(store).groups.n_unlabelled == 18
    assert lp.open(store).pert.table()["n_cells"].sum() == 72


def test_the_tables_say_where_the_groups_are(tmp_path):
    _, store = converted(tmp_path, screen(lean=True))
    opened = Store(store)
    obs = read_store(store).obs
    start, stop = opened.table(f"{TABLES}/runs/start"), opened.table(f"{TABLES}/runs/stop")
    for a, b in zip(start, stop, strict=True):
        assert all(obs.iloc[a:b][c].nunique() == 1 for c in ("perturbation", "cell_type", "batch"))
    table = lp.open(store).pert.table()
    naive = obs.groupby(["cell_type", "perturbation"], observed=True).size()
    assert dict(zip(zip(table["cell_type"], table["perturbation"], strict=True), table["n_cells"], strict=True)) == (
        naive.to_dict()
    )


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


class TestJoinedColumns:
    kinds = tuple(every_column(1).columns)

    @staticmethod
    def assert_joined(found, parts, lengths):
        """Missing where it was missing or absent; every other value equal, or printed alike."""
        expected = [v for p, n in zip(parts, lengths, strict=True) for v in ([None] * n if p is None else list(p))]
        assert [bool(m) for m in pd.isna(found)] == [bool(pd.isna(v)) for v in expected]
        for ours, theirs in zip(np.asarray(found, dtype=object), expected, strict=True):
            assert (
                pd.isna(theirs) or ours in (theirs, str(theirs)) or (isinstance(ours, float) and ours == float(theirs))
            )

    @pytest.mark.parametrize("left", kinds)
    def test_columns_of_any_two_kinds_join(self, left):
        a, b = every_column(8, 0), every_column(9, 1)
        for right in self.kinds:
            self.assert_joined(join_columns([a[left].array, b[right].array], [8, 9]), [a[left], b[right]], [8, 9])

    def test_joined_columns_are_stored(self, tmp_path):
        a, b = every_column(8, 0), every_column(9, 1)
        pairs = [(a[left], b[right]) for left, right in zip(self.kinds, self.kinds[5:] + self.kinds[:5], strict=True)]
        with StoreWriter(tmp_path / "s.zarr") as writer:
            write_frame(writer, "obs", InMemoryColumn(np.array(["x"] * 17, dtype=object)), [left.name for left, _ in pairs])
            for left, right in pairs:
                write_column(writer, "obs", left.name, InMemoryColumn(join_columns([left.array, right.array], [8, 9])))
            writer.finalise({"n_obs": 17, "roles": {}, "matrices": {}})
        store = Store(tmp_path / "s.zarr")
        for left, right in pairs:
            self.assert_joined(store.column(f"obs/{left.name}"), [left, right], [8, 9])

    @pytest.mark.parametrize("kind", kinds)
    def test_a_column_that_a_file_lacks_is_missing_there(self, kind):
        values = every_column(8)[kind]
        for parts, lengths in (([None, values.array], [3, 8]), ([values.array, None], [8, 3])):
            found = join_columns(parts, lengths)
            self.assert_joined(found, parts, lengths)
        if isinstance(values.dtype, pd.CategoricalDtype):
            assert found.dtype == values.dtype


class TestOddCalls:
    @pytest.mark.parametrize(
        ("options", "error", "says"),
        [
            ({"control_pert": 0}, LabelNotFoundError, "'0' is not a perturbation"),
            ({"pert_col": 3}, ConfigError, "pert_col: got 3, expected text"),
            ({"seed": -1}, ConfigError, "seed: got -1"),
            ({"memory_limit": 1.0}, ConfigError, "memory_limit is too small"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
    )
    def test_an_option_that_makes_no_sense(self, tmp_path, options, error, says):
        path = write(screen(lean=True), tmp_path / "a.h5ad")
        with pytest.raises(error, match=says):
            lp.convert(path, tmp_path / "s.zarr", **(ROLES | options))
        assert leftovers(tmp_path, "a.h5ad") == []

    def test_numbers_of_numpy_are_numbers(self, tmp_path):
        path = write(screen(lean=True), tmp_path / "a.h5ad")
        store = lp.convert(path, tmp_path / "s.zarr", seed=np.int64(3), memory_limit=np.float64(1e9), **ROLES)
        assert Store(store).attrs["seed"] == 3

    @pytest.mark.parametrize("target", [".", "..", "file/s.zarr", "n" * 250])
    def test_a_target_that_cannot_be(self, tmp_path, monkeypatch, target):
        path = write(screen(lean=True), tmp_path / "a.h5ad")
        (tmp_path / "file").write_text("mine")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(LazypertError):
            lp.convert(path, target, **ROLES)
        assert leftovers(tmp_path, "a.h5ad", "file") == []

    def test_no_cell_has_a_perturbation(self, tmp_path):
        adata = screen(lean=True)
        adata.obs["perturbation"] = pd.Categorical([None] * adata.n_obs, categories=["never"])
        path = write(adata, tmp_path / "a.h5ad")
        store = lp.convert(path, tmp_path / "s.zarr", pert_col="perturbation", cell_type_col="cell_type")
        assert Store(store).attrs["summary"]["n_unlabelled"] == adata.n_obs

    def test_a_screen_without_genes_or_controls_has_notes_too(self, tmp_path):
        path = write(screen(lean=True)[:, :0].copy(), tmp_path / "a.h5ad")
        store = lp.convert(path, tmp_path / "s.zarr", pert_col="perturbation")
        assert Store(store).cell_stats.control_sum.shape == (0, 4)
        store = lp.convert(path, tmp_path / "s.zarr", overwrite=True, **ROLES)
        assert set(lp.open(store).pert.knockdown().table["reason"]) == {"target gene not measured"}

    def test_a_layer_whose_name_no_array_can_have(self, tmp_path):
        path = write(with_layer("fine"), tmp_path / "a.h5ad")
        with h5py.File(path, "r+") as file:
            file.move("layers/fine", "layers/zarr.json")
        with pytest.raises(SourceFormatError, match="cannot be the name of a Zarr array"):
            lp.convert(path, tmp_path / "s.zarr", **ROLES)
        assert leftovers(tmp_path, "a.h5ad") == []

    def test_a_link_is_followed_and_stays(self, tmp_path):
        path, store = converted(tmp_path, screen(lean=True))
        link = tmp_path / "link.zarr"
        link.symlink_to("screen.zarr")
        assert lp.convert(path, link, overwrite=True, seed=7, **ROLES) == link
        assert link.is_symlink()
        assert Store(store).attrs["seed"] == Store(link).attrs["seed"] == 7
        assert leftovers(tmp_path, "screen.h5ad", "screen.zarr", "link.zarr") == []

    def test_the_working_folder_may_change(self, tmp_path, monkeypatch):
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

    def test_notes_of_another_kind_are_no_notes(self, tmp_path, monkeypatch):
        path = write(screen(lean=True), tmp_path / "a.h5ad")

        def fail(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("lazypert.conversion.convert.write_tables", fail)
            with pytest.raises(KeyboardInterrupt):
                lp.convert(path, tmp_path / "s.zarr", **ROLES)
        (kept,) = tmp_path.glob("s.zarr.partial-*")
        for note in kept.rglob("work/*/*.json"):
            note.write_text("{}")
        (kept / "store/X/data/c/77").write_text("junk")
        store = lp.convert(path, tmp_path / "s.zarr", **ROLES)
        assert not (store / "X/data/c/77").exists()
        assert_same(store, anndata.read_h5ad(path))
