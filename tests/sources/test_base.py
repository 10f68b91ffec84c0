"""Cells, labels, features and sizes of a source equal what AnnData shows."""

import jax
import numpy as np
import pytest

from lazypert.errors import ConfigError
from tests.support.screens import CONTROL, holey_screen, in_store_order, source_of

LABELS = {"perturbation": "pert", "cell_type": "cell_type", "batch": "batch"}


@pytest.fixture(scope="module", params=["grouped", "source"])
def case(request, tmp_path_factory):
    """A source, and the same cells from AnnData in store order."""
    adata = holey_screen()
    source = source_of(
        adata,
        tmp_path_factory.mktemp("source"),
        order=request.param,
        hvg_col="hvg",
        additional_obs=("depth", "donor"),
        include_barcodes=True,
    )
    return source, in_store_order(source, adata)


class TestLabels:
    def test_codes_and_categories_equal_anndatas(self, case):
        source, adata = case
        for column, name in LABELS.items():
            codes = getattr(source, f"get_{name}_codes")()
            categories = getattr(source, f"get_{name}_categories")()
            assert [None if c < 0 else categories[c] for c in codes] == adata.obs[column].astype(object).where(
                adata.obs[column].notna(), None
            ).tolist()
            assert categories.tolist() == sorted(set(adata.obs[column].dropna()))

    def test_control_mask_and_group_codes_equal_anndatas(self, case):
        source, adata = case
        assert source.get_control_mask().tolist() == (adata.obs["perturbation"] == CONTROL).tolist()
        perturbation, cell_type = source.get_pert_codes(), source.get_cell_type_codes()
        n = len(source.get_pert_categories())
        expected = [-1 if p < 0 or c < 0 else c * n + p for p, c in zip(perturbation, cell_type, strict=True)]
        assert source.get_group_codes().tolist() == expected

    def test_the_onehot_map_has_a_vector_for_each_perturbation(self, case):
        source, _ = case
        for i, (name, vector) in enumerate(source.get_onehot_map().items()):
            assert name == source.get_pert_categories()[i]
            assert isinstance(vector, jax.Array)
            assert vector.tolist() == np.eye(len(source.get_pert_categories()))[i].tolist()

    def test_sizes_and_gene_names_equal_anndatas(self, case):
        source, adata = case
        assert source.get_gene_names() == list(adata.var_names)
        assert source.get_gene_names("gene") == ["g1", "g3", "g5"]
        assert source.get_n_genes() == 6
        assert source.get_var_dims() == {
            "n_genes": 6,
            "n_features": 6,
            "n_cells": 40,
            "n_perts": 3,
            "n_cell_types": 2,
            "n_batches": 3,
        }


class TestElements:
    def test_they_equal_the_cells_of_the_file(self, case):
        source, adata = case
        dense = adata.X.toarray()
        assert len(source) == len(list(source)) == 40
        for i in range(40):
            element = source[i]
            assert element["counts"].tolist() == dense[i].tolist()
            assert element["barcode"] == adata.obs_names[i]
            assert element["depth"] == adata.obs["depth"].iloc[i]
            donor = adata.obs["donor"].iloc[i]
            assert element["donor"] == (donor if isinstance(donor, str) else None)
            assert bool(element["is_control"]) is (adata.obs["perturbation"].iloc[i] == CONTROL)
            for column, name in LABELS.items():
                label = adata.obs[column].iloc[i]
                label = label if isinstance(label, str) else ""
                categories = getattr(source, f"get_{name}_categories")().tolist()
                code = categories.index(label) if label else -1
                onehot = element["pert_emb" if name == "pert" else f"{name}_onehot"]
                assert element[f"{name}_code"] == code
                assert element[f"{name}_name"] == label
                assert onehot.tolist() == [float(k == code) for k in range(len(categories))]

    def test_a_batch_stacks_elements(self, case):
        source, _ = case
        rows = np.array([7, 3, 3, 39, 0])
        batch = source.batch(rows)
        for position, row in enumerate(rows):
            for name, value in source.element(int(row)).items():
                assert np.array_equal(np.asarray(batch[name][position]), np.asarray(value))

    def test_negative_indices_count_from_the_end(self, case):
        source, _ = case
        assert source[-1]["barcode"] == source[39]["barcode"]
        for index in (40, -41):
            with pytest.raises(IndexError, match="out of range for a source of 40"):
                source[index]

    @pytest.mark.parametrize("row", [-1, 40])
    def test_a_row_that_does_not_exist_raises(self, case, row):
        with pytest.raises(IndexError):
            case[0].element(row)

    def test_a_batch_of_no_rows_is_empty(self, case):
        source, _ = case
        assert source.batch(np.array([], dtype=int))["counts"].shape == (0, 6)


class TestGetBatch:
    def test_it_draws_without_replacement(self, case):
        source, adata = case
        batch = source.get_batch(40)
        assert sorted(batch["barcode"]) == sorted(adata.obs_names)

    def test_the_key_decides(self, case):
        source, _ = case
        one, again, other = (list(source.get_batch(8, jax.random.key(k))["barcode"]) for k in (1, 1, 2))
        assert one == again
        assert one != other
        assert list(source.get_batch(8)["barcode"]) == list(source.get_batch(8)["barcode"])
        assert list(source.get_batch(8, jax.random.PRNGKey(1))["barcode"]) == one

    @pytest.mark.parametrize("size", [0, -1, 41])
    def test_a_size_out_of_range_raises(self, case, size):
        with pytest.raises(ConfigError, match=f"batch_size: got {size}, expected .*(1 or more|at most 40)"):
            case[0].get_batch(size)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"output_space": "all"}, lambda adata: adata.X.toarray()),
        ({"output_space": "gene", "hvg_col": "hvg"}, lambda adata: adata.X.toarray()[:, [1, 3, 5]]),
        ({"output_space": "embedding", "embedding_key": "X_pca"}, lambda adata: adata.obsm["X_pca"]),
        ({"layer": "twice"}, lambda adata: 2 * adata.X.toarray()),
    ],
    ids=["all", "gene", "embedding", "layer"],
)
def test_features_are_those_of_the_output_space(open_store, options, expected):
    source = open_store(**options)
    values = expected(in_store_order(source, holey_screen()))
    for rows in (np.arange(40), np.array([5, 2, 2, 30]), np.array([], dtype=int)):
        features = source.read_features(rows)
        assert features.tolist() == values[rows].tolist()
        assert features.dtype == np.float32
    assert source.n_features == source.get_var_dims()["n_features"] == values.shape[1]
    assert source[3]["counts"].tolist() == values[3].tolist()


def test_controls_can_be_left_out(open_store):
    source = open_store(should_yield_controls=False, include_barcodes=True)
    names = source.obs_names(np.arange(40))
    wanted = names[~source.get_control_mask()].tolist()
    assert [element["barcode"] for element in source] == wanted
    assert len(source) == len(wanted) < source.n_rows == 40
    assert not source.get_batch(len(wanted))["is_control"].any()
    assert source[-1]["barcode"] == wanted[-1]


def test_a_screen_without_cell_types_and_batches_has_one_of_each(open_store):
    source = open_store(cell_type_col=None, batch_col=None)
    assert source.get_cell_type_categories().tolist() == ["all"]
    assert set(source.get_batch_codes()) == {0}


@pytest.mark.parametrize("name", ["features.csv", "features.npz"])
def test_perturbation_features_come_from_a_file(open_store, tmp_path, name):
    if name.endswith("csv"):
        (tmp_path / name).write_text("name,x,y\nB,3,4\nA,1,2\n")
    else:
        np.savez(tmp_path / name, A=[1, 2], B=[3, 4])
    source = open_store(perturbation_features_file=tmp_path / name)
    wanted = {"A": [1, 2], "B": [3, 4], CONTROL: [0, 0]}
    assert {key: vector.tolist() for key, vector in source.get_onehot_map().items()} == wanted
    for row in range(40):
        assert source[row]["pert_emb"].tolist() == wanted.get(source[row]["pert_name"], [0, 0])


def test_roles_can_differ_from_the_stores_own(open_store):
    other = open_store(pert_col="donor", control_pert="x", batch_col=None)
    adata = in_store_order(other, holey_screen())
    assert other.get_control_mask().tolist() == (adata.obs["donor"] == "x").tolist()
    assert other.get_pert_categories().tolist() == ["x", "y"]
