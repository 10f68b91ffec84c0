"""A source shows what AnnData shows, cell by cell and by name."""

import os

import jax
import numpy as np
import pytest

import lazypert as lp
from lazypert import PerturbationAnnDataSource, PerturbationSourceConfig
from lazypert.errors import (
    ColumnNotFoundError,
    ConfigError,
    LabelNotFoundError,
    StoreNotFoundError,
)
from tests.support.screens import CONTROL, holey_screen, in_store_order, source_of, write_screen

LABELS = {"perturbation": "pert", "cell_type": "cell_type", "batch": "batch"}


@pytest.fixture(scope="module", params=["grouped", "source"])
def case(request, tmp_path_factory):
    """A source, and the same cells from AnnData in the order of its rows."""
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
    def test_codes_and_categories_are_anndatas(self, case):
        source, adata = case
        for column, name in LABELS.items():
            codes = getattr(source, f"get_{name}_codes")()
            categories = getattr(source, f"get_{name}_categories")()
            assert [None if c < 0 else categories[c] for c in codes] == adata.obs[column].astype(object).where(
                adata.obs[column].notna(), None
            ).tolist()
            assert categories.tolist() == sorted(set(adata.obs[column].dropna()))

    def test_control_mask_and_group_codes(self, case):
        source, adata = case
        assert source.get_control_mask().tolist() == (adata.obs["perturbation"] == CONTROL).tolist()
        perturbation, cell_type = source.get_pert_codes(), source.get_cell_type_codes()
        n = len(source.get_pert_categories())
        expected = [-1 if p < 0 or c < 0 else c * n + p for p, c in zip(perturbation, cell_type, strict=True)]
        assert source.get_group_codes().tolist() == expected

    def test_onehot_map(self, case):
        source, _ = case
        for i, (name, vector) in enumerate(source.get_onehot_map().items()):
            assert name == source.get_pert_categories()[i]
            assert isinstance(vector, jax.Array)
            assert vector.tolist() == np.eye(len(source.get_pert_categories()))[i].tolist()

    def test_sizes_and_genes(self, case):
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
        assert "40 cells x 6 genes" in repr(source)


class TestElements:
    def test_are_the_cells(self, case):
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

    def test_batches_are_elements_side_by_side(self, case):
        source, _ = case
        rows = np.array([7, 3, 3, 39, 0])
        batch = source.batch(rows)
        for place, row in enumerate(rows):
            for name, value in source.element(int(row)).items():
                assert np.array_equal(np.asarray(batch[name][place]), np.asarray(value))

    def test_negative_indices_count_from_the_end(self, case):
        source, _ = case
        assert source[-1]["barcode"] == source[39]["barcode"]
        for index in (40, -41):
            with pytest.raises(IndexError, match="out of range for a source of 40"):
                source[index]

    @pytest.mark.parametrize("row", [-1, 40])
    def test_rows_that_do_not_exist(self, case, row):
        with pytest.raises(IndexError):
            case[0].element(row)

    def test_no_rows(self, case):
        source, _ = case
        assert source.batch(np.array([], dtype=int))["counts"].shape == (0, 6)


class TestGetBatch:
    def test_draws_without_replacement(self, case):
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
    def test_sizes_out_of_range(self, case, size):
        with pytest.raises(ConfigError, match=f"batch_size: got {size}, expected .*(1 or more|40 at most)"):
            case[0].get_batch(size)


@pytest.fixture(scope="module")
def open_store(tmp_path_factory):
    """Open one store with any options."""
    store = source_of(holey_screen(), tmp_path_factory.mktemp("store"), order="grouped").store.path
    return lambda **options: PerturbationAnnDataSource(PerturbationSourceConfig(file_path=store, **options))


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
def test_output_spaces(open_store, options, expected):
    source = open_store(**options)
    values = expected(in_store_order(source, holey_screen()))
    for rows in (np.arange(40), np.array([5, 2, 2, 30]), np.array([], dtype=int)):
        features = source.read_features(rows)
        assert features.tolist() == values[rows].tolist()
        assert features.dtype == np.float32
    assert source.n_features == source.get_var_dims()["n_features"] == values.shape[1]
    assert source[3]["counts"].tolist() == values[3].tolist()


class TestOptions:
    def test_controls_can_be_left_out(self, open_store):
        source = open_store(should_yield_controls=False, include_barcodes=True)
        names = source.obs_names(np.arange(40))
        wanted = names[~source.get_control_mask()].tolist()
        assert [element["barcode"] for element in source] == wanted
        assert len(source) == len(wanted) < source.n_rows == 40
        assert not source.get_batch(len(wanted))["is_control"].any()
        assert source[-1]["barcode"] == wanted[-1]

    def test_columns_may_be_absent(self, open_store):
        source = open_store(cell_type_col=None, batch_col=None)
        assert source.get_cell_type_categories().tolist() == ["all"]
        assert set(source.get_batch_codes()) == {0}

    @pytest.mark.parametrize("name", ["features.csv", "features.npz"])
    def test_features_from_a_file(self, open_store, tmp_path, name):
        if name.endswith("csv"):
            (tmp_path / name).write_text("name,x,y\nB,3,4\nA,1,2\n")
        else:
            np.savez(tmp_path / name, A=[1, 2], B=[3, 4])
        source = open_store(perturbation_features_file=tmp_path / name)
        wanted = {"A": [1, 2], "B": [3, 4], CONTROL: [0, 0]}
        assert {key: vector.tolist() for key, vector in source.get_onehot_map().items()} == wanted
        for row in range(40):
            assert source[row]["pert_emb"].tolist() == wanted.get(source[row]["pert_name"], [0, 0])

    def test_other_columns_than_the_stores_own(self, open_store):
        other = open_store(pert_col="donor", control_pert="x", batch_col=None)
        adata = in_store_order(other, holey_screen())
        assert other.get_control_mask().tolist() == (adata.obs["donor"] == "x").tolist()
        assert other.get_pert_categories().tolist() == ["x", "y"]


class TestCache:
    def config(self, path, **options):
        return PerturbationSourceConfig(file_path=path, **options)

    def test_lies_beside_the_file_and_is_reused(self, tmp_path):
        path = write_screen(holey_screen(), tmp_path / "s.h5ad")
        PerturbationAnnDataSource(self.config(path))
        cache = tmp_path / "s.lazypert.zarr"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["s.h5ad", "s.lazypert.zarr"]
        made = (cache / "zarr.json").stat().st_mtime_ns, (cache / "zarr.json").stat().st_ino
        PerturbationAnnDataSource(self.config(path))
        assert made == ((cache / "zarr.json").stat().st_mtime_ns, (cache / "zarr.json").stat().st_ino)

    def test_is_remade_when_the_file_changes(self, tmp_path):
        path = write_screen(holey_screen(seed=0), tmp_path / "s.h5ad")
        PerturbationAnnDataSource(self.config(path))
        write_screen(holey_screen(seed=1), path)
        source = PerturbationAnnDataSource(self.config(path))
        assert (
            source.matrix.read_rows(np.arange(40)).to_dense()
            == in_store_order(source, holey_screen(seed=1)).X.toarray()
        ).all()

    def test_is_remade_when_only_the_time_changes(self, tmp_path):
        path = write_screen(holey_screen(), tmp_path / "s.h5ad")
        PerturbationAnnDataSource(self.config(path))
        inode = (tmp_path / "s.lazypert.zarr").stat().st_ino
        os.utime(path, ns=(1, 1))
        PerturbationAnnDataSource(self.config(path))
        assert (tmp_path / "s.lazypert.zarr").stat().st_ino != inode

    def test_goes_into_a_given_folder(self, tmp_path):
        path = write_screen(holey_screen(), tmp_path / "data" / "s.h5ad")
        cache = tmp_path / "new" / "cache"
        PerturbationAnnDataSource(self.config(path, cache_dir=cache))
        assert [p.name for p in path.parent.iterdir()] == ["s.h5ad"]
        assert len(list(cache.glob("s*.lazypert.zarr"))) == 1
        inode = next(cache.iterdir()).stat().st_ino
        PerturbationAnnDataSource(self.config(path, cache_dir=cache))
        assert [p.stat().st_ino for p in cache.iterdir()] == [inode]

    def test_files_of_one_name_do_not_share_a_store(self, tmp_path):
        """With one cache folder, the second conversion replaced the first source's store under it."""
        sources = []
        for seed, folder in enumerate(("a", "b")):
            path = write_screen(holey_screen(seed=seed), tmp_path / folder / "s.h5ad")
            sources.append(PerturbationAnnDataSource(self.config(path, cache_dir=tmp_path / "cache")))
        for seed, source in enumerate(sources):
            adata = in_store_order(source, holey_screen(seed=seed))
            assert (source.matrix.read_rows(np.arange(40)).to_dense() == adata.X.toarray()).all()

    def test_a_store_is_used_as_it_is(self, tmp_path):
        path = write_screen(holey_screen(), tmp_path / "s.h5ad")
        store = lp.convert(
            path, tmp_path / "s.zarr", pert_col="perturbation", cell_type_col="cell_type", batch_col="batch"
        )
        path.unlink()
        assert PerturbationAnnDataSource(self.config(store)).n_rows == 40
        assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    path = write_screen(holey_screen(), tmp_path_factory.mktemp("errors") / "s.h5ad")
    return {"file": path, "store": lp.convert(path, path.with_name("s.zarr"))}


class TestErrors:
    @pytest.mark.parametrize("kind", ["file", "store"])
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"pert_col": "pertubation"}, ColumnNotFoundError, "Did you mean 'perturbation'"),
            ({"cell_type_col": "celltype"}, ColumnNotFoundError, "'cell_type'.*cell_type_col=None"),
            ({"batch_col": "gem"}, ColumnNotFoundError, "batch_col=None"),
            ({"control_pert": "non_targeting"}, LabelNotFoundError, f"Did you mean '{CONTROL}'"),
            ({"additional_obs": ("dept",)}, ColumnNotFoundError, "Did you mean 'depth'"),
            ({"output_space": "gene", "hvg_col": "hvgs"}, ColumnNotFoundError, "Did you mean 'hvg'"),
            (
                {"output_space": "embedding", "embedding_key": "X_umap"},
                ColumnNotFoundError,
                "embedding_key: got 'X_umap'",
            ),
            ({"layer": "thrice"}, ColumnNotFoundError, "layer: got 'thrice'"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_unknown_names(self, places, tmp_path, kind, options, error, message):
        config = PerturbationSourceConfig(file_path=places[kind], cache_dir=tmp_path, **options)
        with pytest.raises(error, match=message):
            PerturbationAnnDataSource(config)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"output_space": "genes"}, "output_space: got 'genes'"),
            ({"output_space": "gene"}, "hvg_col: got None"),
            ({"output_space": "embedding"}, "embedding_key: got None"),
            ({"additional_obs": ("a", "a")}, "each column once"),
            ({"memory_limit": "lots"}, "got 'lots'"),
            ({"memory_limit": "1MiB"}, "too small"),
        ],
        ids=str,
    )
    def test_options_are_checked_when_made(self, options, message):
        with pytest.raises(ConfigError, match=message):
            PerturbationSourceConfig(file_path="s.h5ad", **options)

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(lp.LazypertError, match=r"none\.h5ad"):
            PerturbationAnnDataSource(PerturbationSourceConfig(file_path=tmp_path / "none.h5ad"))
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_is_no_store(self, tmp_path):
        with pytest.raises(StoreNotFoundError):
            PerturbationAnnDataSource(PerturbationSourceConfig(file_path=tmp_path))
