"""Simulated screens: AnnData reads them, they are reproducible, and they hold the truth they report."""

import ast
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
from scipy import stats

import lazypert.simulate
from lazypert._internal.randomness import generator
from lazypert.errors import ConfigError, LazypertError, StoreExistsError, StoreNotFoundError
from lazypert.simulate import SimulationConfig, reference_screen, sampling, simulate_screen
from lazypert.simulate.model import _draw_effects
from lazypert.simulate.parameters import DEPTH_LOG_SD
from lazypert.simulate.sampling import _log_series, _sample_rows

TARGETS = ("BRCA1", "TP53", "KRAS", "MYC", "EGFR")


def small(**options):
    """A config that samples in a fraction of a second, with 25 groups' worth of structure."""
    return SimulationConfig(
        **({"n_cells": 900, "n_genes": 200, "n_perturbations": 4, "seed": 7, "block_cells": 256} | options)
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return anndata.read_h5ad(reference_screen(tmp_path_factory.mktemp("ref") / "ref.h5ad", seed=3))


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    """6,000 cells of 600 genes with 5 targets, and its truth."""
    path = tmp_path_factory.mktemp("sim") / "sim.h5ad"
    config = small(n_cells=6000, n_genes=600, n_perturbations=5, nnz_per_cell=150, n_batches=3)
    truth = simulate_screen(path, config)
    return anndata.read_h5ad(path), truth


class TestReferenceScreen:
    def test_has_fifty_cells_of_every_group_in_both_batches(self, reference):
        assert reference.shape == (900, 200)
        groups = reference.obs.groupby(["cell_type", "perturbation"], observed=False).size()
        assert len(groups) == 18
        assert (groups == 50).all()
        batches = reference.obs.groupby(["cell_type", "perturbation", "batch"], observed=False).size()
        assert (batches == 25).all()
        assert set(reference.obs["cell_type"]) == {"Neuron", "Astrocyte", "Microglia"}
        assert set(reference.obs["perturbation"]) == {"non-targeting", *TARGETS}

    def test_columns_have_the_types_that_anndata_gives(self, reference):
        for column in ("perturbation", "cell_type", "batch"):
            assert reference.obs[column].dtype == "category"
        assert reference.var["highly_variable"].dtype == bool
        assert reference.var["highly_variable"].sum() == 50
        assert reference.X.dtype == np.float32
        assert reference.X.has_sorted_indices

    def test_names(self, reference):
        assert list(reference.var["gene_name"][:6]) == [*TARGETS, "Gene_0005"]
        assert reference.var_names[0] == "ENSG00000000001"
        assert reference.obs_names.is_unique
        assert set(reference.obs_names) == {f"CELL{cell:06d}-1" for cell in range(900)}

    def test_batches_alternate_by_name_and_the_file_order_is_shuffled(self, reference):
        numbers = reference.obs_names.str.slice(4, 10).astype(int)
        assert (reference.obs["batch"].to_numpy() == np.where(numbers % 2, "batch2", "batch1")).all()
        assert abs(np.corrcoef(numbers, np.arange(900))[0, 1]) < 0.15

    def test_each_target_is_cut_to_a_tenth_and_other_genes_are_not(self, reference):
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

    def test_pca_is_that_of_log_counts_per_10k(self, reference):
        scores = reference.obsm["X_pca"]
        assert scores.shape == (900, 20)
        assert scores.dtype == np.float32
        counts = reference.X.toarray().astype(float)
        logged = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
        variances = np.linalg.eigvalsh(np.cov(logged.T, bias=True))[::-1][:20]
        np.testing.assert_allclose(scores.var(axis=0), variances, rtol=1e-3)
        overlap = scores.T @ scores
        np.testing.assert_allclose(overlap, np.diag(np.diag(overlap)), atol=1e-3 * overlap.max())

    def test_the_seed_decides_everything(self, reference, tmp_path):
        again = anndata.read_h5ad(reference_screen(tmp_path / "again.h5ad", seed=3))
        other = anndata.read_h5ad(reference_screen(tmp_path / "other.h5ad", seed=4))
        assert (again.X != reference.X).nnz == 0
        assert again.obs.equals(reference.obs)
        np.testing.assert_allclose(again.obsm["X_pca"], reference.obsm["X_pca"], atol=1e-4)
        assert (other.X != reference.X).nnz > 0
        assert list(other.obs_names) != list(reference.obs_names)


class TestFile:
    def test_frame_and_dtypes(self, screen):
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

    def test_rows_are_sorted_positive_whole_counts_that_sum_to_n_umis(self, screen):
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

    def test_gzip_holds_the_same_screen_in_less(self, tmp_path):
        simulate_screen(tmp_path / "plain.h5ad", small())
        simulate_screen(tmp_path / "gzip.h5ad", small(compression="gzip"))
        plain, gzip = (anndata.read_h5ad(tmp_path / name) for name in ("plain.h5ad", "gzip.h5ad"))
        assert (plain.X != gzip.X).nnz == 0
        assert plain.obs.equals(gzip.obs)
        assert (tmp_path / "gzip.h5ad").stat().st_size < 0.6 * (tmp_path / "plain.h5ad").stat().st_size

    def test_a_single_cell_and_more_labels_than_int8_holds(self, tmp_path):
        truth = simulate_screen(tmp_path / "a.h5ad", small(n_cells=1, n_perturbations=180))
        data = anndata.read_h5ad(tmp_path / "a.h5ad")
        assert data.shape == (1, 200)
        assert len(data.obs["perturbation"].cat.categories) == 182
        assert truth.group_cells.sum() == 1


class TestReproducible:
    @pytest.mark.parametrize("order", ["random", "grouped"])
    def test_block_size_and_threads_change_nothing(self, tmp_path, order):
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

    def test_seeds_and_streams_differ(self, tmp_path):
        for seed in (0, 1):
            simulate_screen(tmp_path / f"{seed}.h5ad", small(seed=seed, n_cells=256))
        first, second = (anndata.read_h5ad(tmp_path / f"{seed}.h5ad").X.toarray() for seed in (0, 1))
        assert not np.array_equal(first, second)
        assert not np.array_equal(first[:128], first[128:])


class TestDesign:
    def test_grouped_order_is_sorted_and_holds_every_cell(self, tmp_path):
        truth = simulate_screen(tmp_path / "a.h5ad", small(order="grouped"))
        obs = anndata.read_h5ad(tmp_path / "a.h5ad").obs
        labels = list(zip(obs["cell_type"], obs["perturbation"], strict=True))
        assert labels == sorted(labels)
        assert truth.group_cells.sum() == 900

    def test_random_order_mixes_the_groups(self, screen):
        control = (screen[0].obs["perturbation"] == "non-targeting").to_numpy()
        halves = control[:3000].mean(), control[3000:].mean()
        assert halves == pytest.approx((0.11, 0.11), abs=0.025)

    def test_group_cells_are_those_of_the_file(self, screen):
        data, truth = screen
        counted = data.obs.groupby(["cell_type", "perturbation"], observed=False).size()
        for row, cell_type in enumerate(truth.cell_types):
            for column, label in enumerate(truth.perturbations):
                assert truth.group_cells[row, column] == counted[cell_type, label]

    @pytest.mark.parametrize(("label", "share"), [("non-targeting", 0.11), ("unassigned", 0.05)])
    def test_shares(self, screen, label, share):
        standard_error = math.sqrt(share * (1 - share) / 6000)
        seen = (screen[0].obs["perturbation"] == label).mean()
        assert seen == pytest.approx(share, abs=4 * standard_error)

    def test_batches_are_equally_likely(self, screen):
        shares = screen[0].obs["batch"].value_counts(normalize=True)
        assert list(shares.index.sort_values()) == ["batch1", "batch2", "batch3"]
        assert shares.to_numpy() == pytest.approx(1 / 3, abs=0.03)

    def test_labels_without_cells_are_no_categories(self, tmp_path):
        config = small(control_fraction=0.0, unassigned_fraction=0.0)
        assert (
            simulate_screen(tmp_path / "a.h5ad", config).perturbations
            == simulate_screen(tmp_path / "b.h5ad", config).targets
        )

    @pytest.mark.parametrize(
        ("options", "targets"),
        [
            ({"n_perturbations": 12}, 12),
            ({"n_perturbations": None, "n_cells": 100_000}, 126),  # 84,000 cells / 190 a guide / 3.5 guides
            ({"n_perturbations": None, "n_cells": 8400, "cells_per_guide": 84}, 24),
            ({"n_perturbations": None, "n_cells": 100}, 1),
        ],
        ids=["given", "default guide size", "guide size", "few cells"],
    )
    def test_number_of_targets(self, options, targets):
        assert small(**({"n_genes": 2000} | options)).n_targets == targets


class TestTruth:
    @pytest.mark.parametrize("nnz", [None, 20, 350], ids=["a fifth", "sparse", "dense"])
    def test_a_cell_shows_the_number_of_genes_asked_for(self, tmp_path, nnz):
        truth = simulate_screen(tmp_path / "a.h5ad", small(n_cells=2000, n_genes=500, nnz_per_cell=nnz))
        assert truth.nnz / 2000 == pytest.approx(nnz or 100, rel=0.1)

    def test_depth_is_lognormal(self, screen):
        # The reads of a cell scatter about its depth, by less than a tenth of the depth's own spread here.
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
            ours, control = own[label == target], own[label == "non-targeting"]
            ratio = ours.mean() / control.mean()
            error = ratio * math.hypot(stats.sem(ours) / ours.mean(), stats.sem(control) / control.mean())
            assert ratio == pytest.approx(residual, abs=4 * error)
            strong += error < 0.15 * ratio
        assert strong >= 2, "no target is expressed well enough for the test to say anything"

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

    def test_a_fifth_of_targets_shifts_about_a_tenth_of_genes(self):
        targets = np.arange(1000)
        start, gene, fold = _draw_effects(generator(1), targets, np.full(1000, -2.0), 2000)
        share = (np.diff(start) - 1) / 2000
        strong = share > 0.05
        assert strong.mean() == pytest.approx(0.2, abs=0.05)
        assert ((share[strong] > 0.068) & (share[strong] < 0.122)).all()
        assert (share[~strong] <= 0.01).all()
        np.testing.assert_array_equal(gene[start[:-1]], targets)
        np.testing.assert_array_equal(fold[start[:-1]], np.float32(0.25))
        assert all(len(set(gene[a:b])) == b - a for a, b in itertools.pairwise(start))


def sample(depth, *, profile, alpha, fold=()):
    """Dense counts of `len(depth)` cells, (cell, gene); `fold` perturbs genes 0, 1, ... of every cell."""
    n_cells, n_genes = len(depth), len(profile)
    out = (
        np.zeros(n_cells + 1, np.int64),
        np.empty(n_cells * n_genes, np.int32),
        np.empty(n_cells * n_genes, np.float32),
        np.zeros(n_cells, np.int64),
    )
    target = np.full(n_cells, 0 if len(fold) else -1)
    _sample_rows(
        generator(11),
        np.asarray(depth, float),
        (np.zeros(n_cells, np.int64), np.zeros(n_cells, np.int64), target),
        (np.float32([profile]), np.ones((1, n_genes), np.float32), np.float32(alpha)),
        (np.array([0, len(fold)]), np.arange(len(fold), dtype=np.int32), np.float32(fold)),
        out,
    )
    dense = np.zeros((n_cells, n_genes), np.int64)
    rows = np.repeat(np.arange(n_cells), np.diff(out[0]))
    dense[rows, out[1][: len(rows)]] = out[2][: len(rows)]
    return dense


class TestKernel:
    def test_counts_are_negative_binomial(self):
        """Against scipy's probabilities, in a chi-square test of each gene."""
        mean, alpha = np.array([0.05, 0.5, 3.0, 20.0]), np.array([2.0, 0.5, 0.3, 1.0])
        counts = sample(np.full(20_000, 100.0), profile=mean / 100, alpha=alpha)
        for gene in range(4):
            expected = stats.nbinom(1 / alpha[gene], 1 / (1 + alpha[gene] * mean[gene]))
            edges = np.unique(expected.ppf(np.linspace(0.05, 0.95, 12)))
            shares = np.diff(np.concatenate([[0], expected.cdf(edges), [1]]))
            bins = np.bincount(np.searchsorted(edges, counts[:, gene]), minlength=len(shares))
            keep = shares > 0
            assert stats.chisquare(bins[keep], shares[keep] * 20_000).pvalue > 1e-4
        together = np.corrcoef(counts.T)
        assert np.abs(together - np.eye(4)).max() < 0.04, "genes are independent given the depth"

    def test_folds_scale_the_mean_of_their_genes_and_are_undone_for_the_next_cell(self):
        counts = sample(np.full(4000, 100.0), profile=[0.1, 0.1, 0.1], alpha=[0.1] * 3, fold=[0.2, 3.0])
        assert counts.mean(axis=0) == pytest.approx([2, 30, 10], rel=0.05)

    def test_depth_scales_every_gene(self):
        counts = sample(np.repeat([10.0, 1000.0], 4000), profile=[0.1, 0.3], alpha=[0.2, 0.2])
        assert counts[:4000].mean(axis=0) == pytest.approx([1, 3], rel=0.1)
        assert counts[4000:].mean(axis=0) == pytest.approx([100, 300], rel=0.05)

    @pytest.mark.parametrize("odds", [0.05, 1.0, 30.0])
    def test_clusters_are_log_series(self, odds):
        rng, p = generator(5), odds / (1 + odds)
        drawn = np.array([_log_series(rng, odds, math.log1p(odds)) for _ in range(20_000)])
        expected = stats.logser(p)
        assert drawn.mean() == pytest.approx(expected.mean(), abs=4 * expected.std() / math.sqrt(20_000))
        for size in (1, 2, 3):
            assert (drawn == size).mean() == pytest.approx(expected.pmf(size), abs=0.015)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"n_cells": 0}, "n_cells"),
            ({"n_cells": 10.5}, "n_cells"),
            ({"n_genes": 1}, "n_genes"),
            ({"n_batches": 0}, "n_batches"),
            ({"seed": -1}, "seed"),
            ({"block_cells": 0}, "block_cells"),
            ({"block_cells": 100}, "block_cells"),
            ({"control_fraction": 1.0}, "control_fraction"),
            ({"control_fraction": float("nan")}, "control_fraction"),
            ({"unassigned_fraction": -0.1}, "unassigned_fraction"),
            ({"control_fraction": 0.6, "unassigned_fraction": 0.4}, "control_fraction"),
            ({"cell_types": ()}, "cell_types"),
            ({"cell_types": "Neuron"}, "cell_types"),
            ({"cell_types": ("a", "a")}, "cell_types"),
            ({"control_pert": "unassigned"}, "control_pert"),
            ({"order": "sorted"}, "order"),
            ({"compression": "lzf"}, "compression"),
            ({"nnz_per_cell": 0}, "nnz_per_cell"),
            ({"nnz_per_cell": 161}, "nnz_per_cell"),
            ({"n_perturbations": 0}, "n_perturbations"),
            ({"n_perturbations": 201}, "n_perturbations"),
            ({"cells_per_guide": 100}, "cells_per_guide"),
            ({"n_perturbations": None, "cells_per_guide": 0}, "cells_per_guide"),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else "",
    )
    def test_a_config_that_cannot_be(self, options, named):
        with pytest.raises(ConfigError, match=rf"^{named}: got .*, expected "):
            small(**options)

    def test_threads_and_a_control_named_like_a_gene(self, tmp_path):
        with pytest.raises(ConfigError, match="threads"):
            simulate_screen(tmp_path / "a.h5ad", small(), threads=0)
        with pytest.raises(ConfigError, match="control_pert"):
            simulate_screen(tmp_path / "a.h5ad", small(control_pert="Gene_0007"))
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("write", [reference_screen, lambda p, **k: simulate_screen(p, small(), **k)])
    def test_an_existing_file_stays_unless_overwrite(self, tmp_path, write):
        path = tmp_path / "a.h5ad"
        path.write_bytes(b"precious")
        with pytest.raises(StoreExistsError, match="overwrite=True") as caught:
            write(path)
        assert isinstance(caught.value, FileExistsError)
        assert path.read_bytes() == b"precious"
        write(path, overwrite=True)
        assert anndata.read_h5ad(path).n_obs == 900
        assert list(tmp_path.iterdir()) == [path]

    def test_a_missing_folder(self, tmp_path):
        with pytest.raises(StoreNotFoundError, match="nowhere"):
            reference_screen(tmp_path / "nowhere" / "a.h5ad")

    def test_a_failure_leaves_nothing_and_keeps_the_old_file(self, tmp_path, monkeypatch):
        path = reference_screen(tmp_path / "a.h5ad")
        before = path.read_bytes()

        sample_block = sampling._sample_block

        def failing(model, config, first):
            if first:
                raise LazypertError("the second block fails")
            return sample_block(model, config, first)

        monkeypatch.setattr(sampling, "_sample_block", failing)
        with pytest.raises(LazypertError, match="second block"):
            simulate_screen(path, small(), overwrite=True)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_the_whole_file_is_on_disk_before_it_takes_the_name(self, tmp_path, monkeypatch):
        path, synced = tmp_path / "a.h5ad", []

        def fsync(descriptor):
            (partial,) = tmp_path.iterdir()
            assert os.path.samestat(os.fstat(descriptor), partial.stat())
            synced.append(partial.read_bytes())

        monkeypatch.setattr(os, "fsync", fsync)
        reference_screen(path)
        assert synced == [path.read_bytes()]


MODULES = ("parameters", "config", "model", "h5ad", "sampling", "screens", "__init__")


def test_modules_import_only_downwards():
    package = Path(lazypert.simulate.__file__).parent
    assert {path.stem for path in package.glob("*.py")} == set(MODULES)
    for level, name in enumerate(MODULES):
        tree = ast.parse((package / f"{name}.py").read_text())
        named = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        below = {f"lazypert.simulate.{module}" for module in MODULES[:level]}
        assert {module for module in named if module.startswith("lazypert.simulate")} <= below, name


def test_importing_is_light():
    heavy = "{'jax', 'matplotlib', 'anndata', 'h5py'}"
    code = f"import sys, lazypert.simulate; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_does_not_grow_with_the_screen(tmp_path):
    """A 240 MB screen, against one of a single round of blocks."""
    code = (
        "import re, sys; from lazypert.simulate import *\n"
        "config = SimulationConfig(n_cells=int(sys.argv[1]), n_genes=6000, nnz_per_cell=1000)\n"
        "simulate_screen(sys.argv[2], config, threads=2, overwrite=True)\n"
        # Not ru_maxrss: a child starts with the peak of the process it was forked from.
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )

    def peak(n_cells):
        command = [sys.executable, "-c", code, str(n_cells), str(tmp_path / "a.h5ad")]
        return 1024 * int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    peak(256)  # the first run may have to compile, which takes memory of its own
    short, long = peak(3000), peak(30_000)
    assert (tmp_path / "a.h5ad").stat().st_size > 220e6
    assert long - short < 40e6
    assert long < 500e6
