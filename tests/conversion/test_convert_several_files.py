"""`convert` with several files: every value of every file reads back equal, whatever the other files hold."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import lazypert as lp
from lazypert.errors import SourceFormatError
from lazypert.store.group_by_columns import group_by_columns
from lazypert.store.store import Store
from tests.support.stores import ROLES, dense, every_column, read_store, small_blocks, write
from tests.support.stores import screen as full_screen


def screen(name, matrix=((1, 2), (0, 3)), *, obs=None, var=None, obsm=None, genes=("g0", "g1")):
    matrix = np.asarray(matrix)
    frame = pd.DataFrame(obs or {}, index=[f"{name}{i}" for i in range(len(matrix))])
    table = pd.DataFrame(var or {}, index=list(genes))
    return anndata.AnnData(sparse.csr_matrix(matrix), frame, table, obsm=obsm)


def convert_all(folder, *screens, **options):
    paths = [write(adata, folder / f"f{i}.h5ad") for i, adata in enumerate(screens)]
    return lp.convert(paths, folder / "s.zarr", overwrite=True, **options)


@pytest.fixture
def two_files(tmp_path):
    a = full_screen(30, seed=0, genes=["g1", "g2", "g3"], lean=True)
    b = full_screen(20, seed=1, genes=["g3", "g4", "g1"], lean=True)
    a.obsm["X_pca"], b.obsm["X_pca"] = np.ones((30, 2)), np.arange(40.0).reshape(20, 2)
    b.obs["perturbation"] = b.obs["perturbation"].cat.rename_categories({"KRAS": "MYC"})
    b.obs["perturbation"] = b.obs["perturbation"].astype(str)
    a.obs["only_a"], b.obs["only_b"] = np.arange(30), [f"t{i}" for i in range(20)]
    a.obs["dataset"] = "mine"
    return write(a, tmp_path / "a.h5ad"), write(b, tmp_path / "b.x.h5ad"), a, b


@pytest.mark.parametrize("layout", ["csr", "csc"])
@pytest.mark.parametrize("join", ["inner", "outer"])
def test_genes_are_aligned_and_labels_are_merged(tmp_path, monkeypatch, two_files, join, layout):
    small_blocks(monkeypatch, 60)
    path_a, path_b, a, b = two_files
    if layout == "csc":
        b.X = b.X.tocsc()
        write(b, path_b)
    store = lp.convert([path_a, path_b], tmp_path / "s.zarr", join=join, **ROLES)
    lp.verify(store)
    result = read_store(store)
    genes = ["g1", "g3"] if join == "inner" else ["g1", "g2", "g3", "g4"]
    assert sorted(result.var_names) == genes
    assert result.X.has_canonical_format
    for name, source in (("a", a), ("b", b)):
        cells = result[result.obs["dataset"] == name]
        assert sorted(cells.obs_names) == sorted(source.obs_names)
        original = source[cells.obs_names].to_df()
        for gene in genes:
            expected = original[gene].to_numpy() if gene in original else np.zeros(len(cells))
            np.testing.assert_array_equal(cells.to_df()[gene].to_numpy(), expected)
            if join == "outer":
                assert result.var.loc[gene, f"measured_in_{name}"] == (gene in source.var_names)
        perturbation = source[cells.obs_names].obs["perturbation"]
        np.testing.assert_array_equal(cells.obs["perturbation"].astype(str), perturbation)
        shared = [gene for gene in genes if gene in source.var_names]
        assert result.var.loc[shared, "gene_name"].tolist() == [f"{gene}-name" for gene in shared]
        np.testing.assert_array_equal(dense(cells.obsm["X_pca"]), source[cells.obs_names].obsm["X_pca"])
    groups = Store(store).groups
    assert set(groups.labels["perturbation"]) == {"TP53", "non-targeting", "BRCA1", "KRAS", "MYC"}
    assert set(groups.labels["dataset"]) == {"a", "b"}


def test_columns_of_some_files_are_missing_in_the_others(tmp_path, two_files):
    store = lp.convert(two_files[:2], tmp_path / "s.zarr", **ROLES)
    obs = read_store(store).obs
    in_a = (obs["dataset"] == "a").to_numpy()
    assert obs["only_a"].isna().tolist() == (~in_a).tolist()
    assert obs["only_b"].isna().tolist() == in_a.tolist()
    assert sorted(obs["only_a"][in_a].astype(int)) == list(range(30))
    assert sorted(obs["only_b"][~in_a]) == sorted(f"t{i}" for i in range(20))
    assert set(obs["dataset_in_file"][in_a]) == {"mine"}
    assert obs["dataset_in_file"][~in_a].isna().all()


def test_all_columns_of_both_files_read_back_equal(tmp_path, two_files):
    path_a, path_b, a, b = two_files
    a.obs, b.obs = every_column(30, 0), every_column(20, 1)
    write(a, path_a)
    write(b, path_b)
    result = read_store(lp.convert([path_a, path_b], tmp_path / "s.zarr", **ROLES)).obs
    for source in (a, b):
        for name in every_column(1).columns:
            stored, original = result.loc[source.obs_names, name], source.obs[name]
            assert stored.isna().tolist() == original.isna().tolist(), name
            present = original.notna().to_numpy()
            assert stored[present].tolist() == original[present].tolist(), name


def test_controls_come_from_the_same_file(tmp_path, two_files):
    ds = lp.open(lp.convert(two_files[:2], tmp_path / "s.zarr", **ROLES))
    dataset = ds.dataset.to_numpy()
    for strategy in ("random", "batch"):
        mapping = ds.pert.match_controls(strategy=strategy, n_basal_samples=3)
        mapped = np.flatnonzero(ds.perturbation.to_numpy() != "non-targeting")
        assert (dataset[mapping] == dataset[mapped][:, None]).all()
        assert (ds.cell_type.to_numpy()[mapping] == ds.cell_type.to_numpy()[mapped][:, None]).all()


def test_a_role_column_named_dataset_keeps_its_role(tmp_path, two_files):
    path_a, path_b, _, b = two_files
    b.obs["dataset"] = np.where(np.arange(20) % 2, "mine", "theirs")
    write(b, path_b)
    roles = ROLES | {"batch_col": "dataset"}
    store = lp.convert([path_a, path_b], tmp_path / "s.zarr", **roles)
    assert set(Store(store).groups.labels["batch"]) == {"mine", "theirs"}
    assert Store(store).roles.batch_col == "dataset_in_file"
    cells = lp.open(store).isel(cell=slice(1, None))
    assert set(cells.pert.groups.labels["batch"]) == {"mine", "theirs"}
    assert (cells.pert.select(batch="theirs")["dataset_in_file"] == "theirs").all()


@pytest.mark.parametrize(
    ("left", "right"), [(["x", "y", "w"], ["w", "x", "y"]), (["T"], ["B", "T"]), (["a", "c"], ["a", "b", "c"])]
)
def test_a_store_of_two_files_keeps_the_labels_of_both(tmp_path, left, right):
    a = screen("a", np.ones((len(left), 2)), obs={"c": pd.Categorical(left, categories=left)})
    b = screen("b", np.ones((len(right), 2)), obs={"c": pd.Categorical(right, categories=right)})
    result = read_store(convert_all(tmp_path, a, b, order="source"))
    assert result.obs["c"].tolist() == [*left, *right]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (np.array([1.0, 2.5]), np.array(["1", "2.5"], dtype=object)),
        (pd.Categorical([1.0, 2.5]), pd.Categorical(["1", "2.5"])),
    ],
    ids=["columns", "categories"],
)
def test_a_number_is_the_same_label_as_its_text_in_another_file(tmp_path, left, right):
    a, b = (screen(name, np.ones((2, 2)), obs={"p": values}) for name, values in (("a", left), ("b", right)))
    store = Store(convert_all(tmp_path, a, b, pert_col="p", control_pert=1))
    regrouped = group_by_columns(store, store.roles)  # reads the column again
    assert store.groups.labels["perturbation"].tolist() == ["1", "2.5"]
    assert regrouped.table().equals(store.groups.table())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.array([[1, 2], [3, 4]], "i4"), np.array([[0.1, 0.2], [0.3, -4.9]])),
        (np.array([[1, 2], [3, 4]], "i1"), np.array([[300, 2], [1, 0]], "i2")),
        (np.ones((2, 2), "f4"), np.full((2, 2), 1 / 3)),
    ],
)
def test_embeddings_of_different_dtypes_keep_their_values(tmp_path, first, second):
    store = convert_all(tmp_path, screen("a", obsm={"E": first}), screen("b", obsm={"E": second}), order="source")
    np.testing.assert_array_equal(read_store(store).obsm["E"], np.concatenate([first, second]))


def test_fractions_and_large_integers_must_fit_one_dtype(tmp_path):
    store = convert_all(
        tmp_path,
        screen("a", np.array([[0.5, 1]], "f4")),
        screen("b", np.array([[16_777_217, 3]], "i4")),
        order="source",
    )
    np.testing.assert_array_equal(dense(read_store(store).X), [[0.5, 1], [16_777_217, 3]])
    with pytest.raises(SourceFormatError, match="fractions and integers beyond 2"):
        convert_all(tmp_path, screen("a", np.array([[0.5, 1]])), screen("b", np.array([[2**53 + 1, 3]], "i8")))


def test_what_only_a_later_file_has_is_listed_in_the_warnings(tmp_path):
    a = screen("a", var={"symbol": ["A", "B"]})
    b = screen("b", var={"symbol": ["A", "C"], "length": [1, 2]}, obsm={"Q": np.ones((2, 3))})
    warnings = "\n".join(Store(convert_all(tmp_path, a, b)).attrs["warnings"])
    assert "obsm/Q was not copied: not in every file" in warnings
    assert "f1.h5ad: var column 'length' is not in the first file" in warnings
    assert "f1.h5ad: var column 'symbol' was not copied: it differs from the first file's" in warnings


def test_var_columns_of_an_outer_join_keep_their_dtypes(tmp_path):
    a = screen("a", var={"hvg": [True, False], "n": [2**53 + 1, 1]}, genes=("g0", "g1"))
    b = screen("b", var={"hvg": [True, True]}, genes=("g1", "g2"))
    var = Store(convert_all(tmp_path, a, b, join="outer")).var
    assert var.loc[["g0", "g1", "g2"], "hvg"].tolist() == [True, False, True]
    assert var["hvg"].dtype == bool
    assert var.loc["g0", "n"] == 2**53 + 1
    assert pd.isna(var.loc["g2", "n"])
