"""Simulated screens can be read by AnnData, are reproducible, and contain the truth that they report."""

import ast
import math
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
from scipy import stats

import lazypert.simulate
from lazypert.errors import ConfigError
from lazypert.simulate import reference_screen, simulate_screen
from lazypert.simulate.constants import DEPTH_LOG_SD
from tests.support.simulations import small

TARGETS = ("BRCA1", "TP53", "KRAS", "MYC", "EGFR")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return anndata.read_h5ad(reference_screen(tmp_path_factory.mktemp("ref") / "ref.h5ad", seed=3))


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    """A screen of 6,000 cells, 600 genes and 5 targets, and its truth."""
    path = tmp_path_factory.mktemp("sim") / "sim.h5ad"
    config = small(n_cells=6000, n_genes=600, n_perturbations=5, nnz_per_cell=150, n_batches=3)
    truth = simulate_screen(path, config)
    return anndata.read_h5ad(path), truth


class TestReferenceScreen:
    def test_every_group_has_fifty_cells_in_two_batches(self, reference):
        assert reference.shape == (900, 200)
        groups = reference.obs.groupby(["cell_type", "perturbation"], observed=False).size()
        assert len(groups) == 18
        assert (groups == 50).all()
        batches = reference.obs.groupby(["cell_type", "perturbation", "batch"], observed=False).size()
        assert (batches == 25).all()
        assert set(reference.obs["cell_type"]) == {"Neuron", "Astrocyte", "Microglia"}
        assert set(reference.obs["perturbation"]) == {"non-targeting", *TARGETS}

    def test_columns_have_the_dtypes_that_anndata_expects(self, reference):
        for column in ("perturbation", "cell_type", "batch"):
            assert reference.obs[column].dtype == "category"
        assert reference.var["highly_variable"].dtype == bool
        assert reference.var["highly_variable"].sum() == 50
        assert reference.X.dtype == np.float32
        assert reference.X.has_sorted_indices

    def test_cells_and_genes_have_the_expected_names(self, reference):
        assert list(reference.var["gene_name"][:6]) == [*TARGETS, "Gene_0005"]
        assert reference.var_names[0] == "ENSG00000000001"
        assert reference.obs_names.is_unique
        assert set(reference.obs_names) == {f"CELL{cell:06d}-1" for cell in range(900)}

    def test_batches_alternate_by_cell_name_and_rows_are_shuffled(self, reference):
        numbers = reference.obs_names.str.slice(4, 10).astype(int)
        assert (reference.obs["batch"].to_numpy() == np.where(numbers % 2, "batch2", "batch1")).all()
        assert abs(np.corrcoef(numbers, np.arange(900))[0, 1]) < 0.15

    def test_targets_are_reduced_to_a_tenth_and_other_genes_are_not(self, reference):
        counts = reference.X.toarray()
        label = reference.obs["perturbation"].to_numpy()
        control = counts[label == "non-targeting"].mean(axis=0)
        for gene, target in enumerate(TARGETS):
            ratio = counts[label == target].mean(axis=0) / control
            # 150 cells of mean 5 and of mean 0.5: standard error of the ratio about 0.012.
            assert ratio[gene] == pytest.approx(0.1, abs=0.05)
            assert np.delete(ratio, gene) == pytest.approx(1, abs=0.2)
        assert counts[:, 5:].mean() == pytest.approx(5, abs=0.05)
        assert counts[:, 5:].var() == pytest.approx(5, abs=0.1)

    def test_pca_is_computed_from_log_counts_per_10k(self, reference):
        scores = reference.obsm["X_pca"]
        assert scores.shape == (900, 20)
        assert scores.dtype == np.float32
        counts = reference.X.toarray().astype(float)
        logged = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
        variances = np.linalg.eigvalsh(np.cov(logged.T, bias=True))[::-1][:20]
        np.testing.assert_allclose(scores.var(axis=0), variances, rtol=1e-3)
        overlap = scores.T @ scores
        np.testing.assert_allclose(overlap, np.diag(np.diag(overlap)), atol=1e-3 * overlap.max())

    def test_the_seed_determines_the_screen(self, reference, tmp_path):
        again = anndata.read_h5ad(reference_screen(tmp_path / "again.h5ad", seed=3))
        other = anndata.read_h5ad(reference_screen(tmp_path / "other.h5ad", seed=4))
        assert (again.X != reference.X).nnz == 0
        assert again.obs.equals(reference.obs)
        np.testing.assert_allclose(again.obsm["X_pca"], reference.obsm["X_pca"], atol=1e-4)
        assert (other.X != reference.X).nnz > 0
        assert list(other.obs_names) != list(reference.obs_names)


class TestSimulatedFile:
    def test_has_the_documented_columns_and_dtypes(self, screen):
        data, truth = screen
        assert data.shape == (6000, 600)
        assert list(data.obs) == ["perturbation", "guide", "cell_type", "batch", "n_umis"]
        assert list(data.var) == ["gene_name", "highly_variable"]
        assert data.var["highly_variable"].sum() == 120
        assert [str(data.obs[name].dtype) for name in data.obs] == ["category"] * 4 + ["int32"]
        assert (data.X.dtype, data.X.indices.dtype, data.X.indptr.dtype) == (np.float32, np.int32, np.int32)
        assert list(data.obs["perturbation"].cat.categories) == list(truth.perturbations)
        assert data.obs_names.is_unique
        assert data.obs_names[17] == "CELL000017-1"
        data[::7].X.sum()  # scipy refuses rows of a matrix whose index types differ

    def test_rows_are_sorted_positive_integers_that_sum_to_n_umis(self, screen):
        data, truth = screen
        X = data.X
        inside = np.ones(X.nnz - 1, dtype=bool)
        inside[X.indptr[1:-1] - 1] = False
        assert (np.diff(X.indices)[inside] > 0).all()
        assert (X.data >= 1).all()
        assert (X.data == np.round(X.data)).all()
        np.testing.assert_array_equal(np.asarray(X.sum(axis=1)).ravel(), data.obs["n_umis"])
        assert (truth.nnz, truth.n_umis) == (X.nnz, data.obs["n_umis"].sum())

    def test_guides_belong_to_their_targets(self, screen):
        data, truth = screen
        pairs = data.obs[["perturbation", "guide"]].astype(str).drop_duplicates()
        for label, guide in pairs.itertuples(index=False):
            assert guide == "unassigned" == label or guide.rpartition("_g")[0] == label
        sizes = pairs.groupby("perturbation").size()
        assert sizes[list(truth.targets)].isin([3, 4]).all()
        assert sizes["unassigned"] == 1


class TestReproducibility:
    @pytest.mark.parametrize("order", ["random", "grouped"])
    def test_block_size_and_threads_do_not_change_the_screen(self, tmp_path, order):
        variants = [(128, 1), (256, 3), (4096, 2)]
        screens = []
        for block_cells, threads in variants:
            path = tmp_path / f"{block_cells}.h5ad"
            simulate_screen(path, small(order=order, block_cells=block_cells), threads=threads)
            screens.append(anndata.read_h5ad(path))
        for other in screens[1:]:
            np.testing.assert_array_equal(screens[0].X.indptr, other.X.indptr)
            np.testing.assert_array_equal(screens[0].X.indices, other.X.indices)
            np.testing.assert_array_equal(screens[0].X.data, other.X.data)
            assert screens[0].obs.equals(other.obs)
            assert screens[0].var.equals(other.var)

    def test_seeds_and_streams_give_different_cells(self, tmp_path):
        for seed in (0, 1):
            simulate_screen(tmp_path / f"{seed}.h5ad", small(seed=seed, n_cells=256))
        first, second = (anndata.read_h5ad(tmp_path / f"{seed}.h5ad").X.toarray() for seed in (0, 1))
        assert not np.array_equal(first, second)
        assert not np.array_equal(first[:128], first[128:])


class TestDesign:
    def test_grouped_order_is_sorted_and_complete(self, tmp_path):
        truth = simulate_screen(tmp_path / "a.h5ad", small(order="grouped"))
        obs = anndata.read_h5ad(tmp_path / "a.h5ad").obs
        labels = list(zip(obs["cell_type"], obs["perturbation"], strict=True))
        assert labels == sorted(labels)
        assert truth.group_cells.sum() == 900

    def test_random_order_mixes_the_groups(self, screen):
        control = (screen[0].obs["perturbation"] == "non-targeting").to_numpy()
        halves = control[:3000].mean(), control[3000:].mean()
        assert halves == pytest.approx((0.11, 0.11), abs=0.025)

    def test_group_cells_count_the_cells_of_the_file(self, screen):
        data, truth = screen
        counted = data.obs.groupby(["cell_type", "perturbation"], observed=False).size()
        for row, cell_type in enumerate(truth.cell_types):
            for column, label in enumerate(truth.perturbations):
                assert truth.group_cells[row, column] == counted[cell_type, label]

    @pytest.mark.parametrize(("label", "share"), [("non-targeting", 0.11), ("unassigned", 0.05)])
    def test_control_and_unassigned_shares_are_as_requested(self, screen, label, share):
        standard_error = math.sqrt(share * (1 - share) / 6000)
        seen = (screen[0].obs["perturbation"] == label).mean()
        assert seen == pytest.approx(share, abs=4 * standard_error)

    def test_batches_are_equally_likely(self, screen):
        shares = screen[0].obs["batch"].value_counts(normalize=True)
        assert list(shares.index.sort_values()) == ["batch1", "batch2", "batch3"]
        assert shares.to_numpy() == pytest.approx(1 / 3, abs=0.03)

    def test_labels_with_a_share_of_zero_are_not_categories(self, tmp_path):
        config = small(control_fraction=0.0, unassigned_fraction=0.0)
        assert (
            simulate_screen(tmp_path / "a.h5ad", config).perturbations
            == simulate_screen(tmp_path / "b.h5ad", config).targets
        )


class TestTruth:
    @pytest.mark.parametrize("nnz", [None, 20, 350], ids=["a fifth", "sparse", "dense"])
    def test_cells_have_the_requested_number_of_detected_genes(self, tmp_path, nnz):
        truth = simulate_screen(tmp_path / "a.h5ad", small(n_cells=2000, n_genes=500, nnz_per_cell=nnz))
        assert truth.nnz / 2000 == pytest.approx(nnz or 100, rel=0.1)

    def test_depth_is_lognormal(self, screen):
        # Reads vary around the depth of a cell by less than a tenth of the spread of the depth.
        logs = np.log(screen[0].obs["n_umis"].to_numpy())
        assert logs.std() == pytest.approx(DEPTH_LOG_SD, rel=0.1)
        assert abs(stats.skew(logs)) < 0.2

    def test_knockdown_is_recovered(self, screen):
        data, truth = screen
        label, names = data.obs["perturbation"].to_numpy(), list(data.var["gene_name"])
        assert ((truth.log2_fold_change > -3.5) & (truth.log2_fold_change < -0.3)).all()
        strong = 0
        for target, residual in zip(truth.targets, truth.residual, strict=True):
            own = data.X[:, names.index(target)].toarray().ravel().astype(float)
            perturbed, control = own[label == target], own[label == "non-targeting"]
            ratio = perturbed.mean() / control.mean()
            error = ratio * math.hypot(stats.sem(perturbed) / perturbed.mean(), stats.sem(control) / control.mean())
            assert ratio == pytest.approx(residual, abs=4 * error)
            strong += error < 0.15 * ratio
        assert strong >= 2, "too few targets are expressed well enough for this test"

    def test_expressed_genes_are_overdispersed(self, screen):
        data, _ = screen
        control = data[(data.obs["perturbation"] == "non-targeting") & (data.obs["cell_type"] == "Neuron")]
        counts = control.X.toarray()
        expressed = counts.mean(axis=0) > 1
        assert expressed.sum() > 50
        assert (counts.var(axis=0) > counts.mean(axis=0))[expressed].all()

    def test_cell_types_and_batches_differ_in_expression(self, screen):
        data, _ = screen
        share = data.X.multiply(1 / data.obs["n_umis"].to_numpy()[:, None]).tocsr()
        spread = {}
        for column in ("cell_type", "batch"):
            labels = data.obs[column].to_numpy()
            first, second = sorted(set(labels))[:2]
            means = [np.asarray(share[labels == label].mean(axis=0)).ravel() for label in (first, second)]
            high = means[0] > 1 / 600
            spread[column] = np.log(means[0][high] / means[1][high]).std()
        assert spread["cell_type"] > 0.3 > spread["batch"] > 0.08


class TestErrors:
    def test_zero_threads_and_a_control_label_that_is_a_gene_are_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="threads"):
            simulate_screen(tmp_path / "a.h5ad", small(), threads=0)
        with pytest.raises(ConfigError, match="control_pert"):
            simulate_screen(tmp_path / "a.h5ad", small(control_pert="Gene_0007"))
        assert list(tmp_path.iterdir()) == []


MODULES = ("constants", "config", "model", "h5ad", "sampling", "screens", "null_screen", "__init__")


def test_modules_import_only_downwards():
    package = Path(lazypert.simulate.__file__).parent
    assert {path.stem for path in package.glob("*.py")} == set(MODULES)
    for level, name in enumerate(MODULES):
        tree = ast.parse((package / f"{name}.py").read_text())
        named = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        below = {f"lazypert.simulate.{module}" for module in MODULES[:level]}
        assert {module for module in named if module.startswith("lazypert.simulate")} <= below, name


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_does_not_grow_with_the_screen(tmp_path):
    """Compare a screen of 240 MB with one of a few blocks."""
    code = (
        "import re, sys; from lazypert.simulate import *\n"
        "config = SimulationConfig(n_cells=int(sys.argv[1]), n_genes=6000, nnz_per_cell=1000)\n"
        "simulate_screen(sys.argv[2], config, threads=2, overwrite=True)\n"
        # ru_maxrss would include the peak of the parent process.
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )

    def peak(n_cells):
        command = [sys.executable, "-c", code, str(n_cells), str(tmp_path / "a.h5ad")]
        return 1024 * int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    peak(256)  # the first run may compile, which takes additional memory
    short, long = peak(3000), peak(30_000)
    assert (tmp_path / "a.h5ad").stat().st_size > 220e6
    assert long - short < 40e6
    assert long < 500e6
