"""Several files become one store: every value of every file reads back equal, whatever the others hold."""

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import lazypert as lp
from lazypert.errors import ConfigError, SourceFormatError
from lazypert.screen.labels import join_columns
from lazypert.store.store import Store
from tests.support.screens import make_screen, write_screen
from tests.support.stores import dense, no_sync, read_store, write  # noqa: F401 - no_sync is a fixture for the whole module


def screen(name, matrix=((1, 2), (0, 3)), *, obs=None, var=None, obsm=None, genes=("g0", "g1")):
    matrix = np.asarray(matrix)
    frame = pd.DataFrame(obs or {}, index=[f"{name}{i}" for i in range(len(matrix))])
    table = pd.DataFrame(var or {}, index=list(genes))
    return anndata.AnnData(sparse.csr_matrix(matrix), frame, table, obsm=obsm)


def joined(folder, *screens, **options):
    paths = [write(adata, folder / f"f{i}.h5ad") for i, adata in enumerate(screens)]
    return lp.convert(paths, folder / "s.zarr", overwrite=True, **options)


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(
        st.tuples(st.permutations("abcd"), st.integers(1, 4), st.lists(st.integers(-1, 3), max_size=6)),
        min_size=2,
        max_size=3,
    )
)
def test_categories_in_any_order_keep_their_cells(parts):
    columns = [
        pd.Categorical.from_codes([min(code, n - 1) for code in codes], categories=list(order[:n]))
        for order, n, codes in parts
    ]
    found = join_columns(columns, [len(column) for column in columns])
    expected = [None if pd.isna(value) else value for column in columns for value in column]
    assert [None if pd.isna(value) else value for value in found] == expected


@pytest.mark.parametrize(
    ("left", "right"), [(["x", "y", "w"], ["w", "x", "y"]), (["T"], ["B", "T"]), (["a", "c"], ["a", "b", "c"])]
)
def test_a_store_of_two_files_has_the_labels_of_both(tmp_path, left, right):
    a = screen("a", np.ones((len(left), 2)), obs={"c": pd.Categorical(left, categories=left)})
    b = screen("b", np.ones((len(right), 2)), obs={"c": pd.Categorical(right, categories=right)})
    found = read_store(joined(tmp_path, a, b, order="source"))
    assert found.obs["c"].tolist() == [*left, *right]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.array([[1, 2], [3, 4]], "i4"), np.array([[0.1, 0.2], [0.3, -4.9]])),
        (np.array([[1, 2], [3, 4]], "i1"), np.array([[300, 2], [1, 0]], "i2")),
        (np.ones((2, 2), "f4"), np.full((2, 2), 1 / 3)),
    ],
)
def test_embeddings_keep_their_values(tmp_path, first, second):
    store = joined(tmp_path, screen("a", obsm={"E": first}), screen("b", obsm={"E": second}), order="source")
    np.testing.assert_array_equal(read_store(store).obsm["E"], np.concatenate([first, second]))


def test_fractions_in_one_file_and_large_integers_in_the_other(tmp_path):
    store = joined(
        tmp_path,
        screen("a", np.array([[0.5, 1]], "f4")),
        screen("b", np.array([[16_777_217, 3]], "i4")),
        order="source",
    )
    np.testing.assert_array_equal(dense(read_store(store).X), [[0.5, 1], [16_777_217, 3]])
    with pytest.raises(SourceFormatError, match="fractions and integers beyond 2"):
        joined(tmp_path, screen("a", np.array([[0.5, 1]])), screen("b", np.array([[2**53 + 1, 3]], "i8")))


def test_what_only_a_later_file_has_is_named(tmp_path):
    a = screen("a", var={"symbol": ["A", "B"]})
    b = screen("b", var={"symbol": ["A", "C"], "length": [1, 2]}, obsm={"Q": np.ones((2, 3))})
    said = "\n".join(Store(joined(tmp_path, a, b)).attrs["warnings"])
    assert "obsm/Q: not in every file" in said
    assert "f1.h5ad: var column 'length' is not in the first file" in said
    assert "f1.h5ad: var column 'symbol' differs from the first file's" in said


def test_var_columns_of_an_outer_join_stay_what_they_are(tmp_path):
    a = screen("a", var={"hvg": [True, False], "n": [2**53 + 1, 1]}, genes=("g0", "g1"))
    b = screen("b", var={"hvg": [True, True]}, genes=("g1", "g2"))
    var = Store(joined(tmp_path, a, b, join="outer")).var
    assert var.loc[["g0", "g1", "g2"], "hvg"].tolist() == [True, False, True]
    assert var["hvg"].dtype == bool
    assert var.loc["g0", "n"] == 2**53 + 1
    assert pd.isna(var.loc["g2", "n"])


def test_duplicates_add_up_beyond_their_type(tmp_path):
    matrix = sparse.csr_matrix((np.array([200, 100, 7], "u1"), np.array([1, 1, 0]), np.array([0, 2, 3])), (2, 2))
    adata = screen("a")
    adata.X = matrix
    path = write(adata, tmp_path / "a.h5ad")
    assert dense(read_store(lp.convert(path, tmp_path / "s.zarr")).X).tolist() == [[0, 300], [7, 0]]


def test_cells_that_occur_twice_have_no_knockdown(tmp_path):
    obs = {"perturbation": ["g0", "ctrl", "ctrl"] * 10, "cell_type": ["T"] * 30}
    path = write_screen(make_screen(obs), tmp_path / "a.h5ad")
    store = lp.convert(
        path, tmp_path / "a.zarr", pert_col="perturbation", control_pert="ctrl", cell_type_col="cell_type"
    )
    ds = lp.open(store)
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="more than once"):
        ds.isel(cell=np.sort(rng.integers(0, 30, 30))).pert.knockdown(min_cells=1)
    mixed = ds.isel(cell=rng.permutation(30)).pert.knockdown(min_cells=1).table
    pd.testing.assert_frame_equal(mixed, ds.pert.knockdown(min_cells=1).table)
