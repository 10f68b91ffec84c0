import math

import numpy as np
import pytest
from scipy import stats

from lazypert._internal.randomness import generator
from lazypert.simulate.sampling import log_series, sample_rows


def sample(depth, *, profile, alpha, fold=()):
    """Sample dense counts of `len(depth)` cells, (cell, gene); `fold` perturbs genes 0, 1, ... of each cell."""
    n_cells, n_genes = len(depth), len(profile)
    out = (
        np.zeros(n_cells + 1, np.int64),
        np.empty(n_cells * n_genes, np.int32),
        np.empty(n_cells * n_genes, np.float32),
        np.zeros(n_cells, np.int64),
    )
    target = np.full(n_cells, 0 if len(fold) else -1)
    sample_rows(
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
        """A chi-square test per gene, against the probabilities of scipy."""
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

    def test_fold_changes_scale_their_genes_and_are_reset_after_each_cell(self):
        counts = sample(np.full(4000, 100.0), profile=[0.1, 0.1, 0.1], alpha=[0.1] * 3, fold=[0.2, 3.0])
        assert counts.mean(axis=0) == pytest.approx([2, 30, 10], rel=0.05)

    def test_depth_scales_all_genes(self):
        counts = sample(np.repeat([10.0, 1000.0], 4000), profile=[0.1, 0.3], alpha=[0.2, 0.2])
        assert counts[:4000].mean(axis=0) == pytest.approx([1, 3], rel=0.1)
        assert counts[4000:].mean(axis=0) == pytest.approx([100, 300], rel=0.05)

    @pytest.mark.parametrize("odds", [0.05, 1.0, 30.0])
    def test_clusters_are_log_series(self, odds):
        rng, p = generator(5), odds / (1 + odds)
        drawn = np.array([log_series(rng, odds, math.log1p(odds)) for _ in range(20_000)])
        expected = stats.logser(p)
        assert drawn.mean() == pytest.approx(expected.mean(), abs=4 * expected.std() / math.sqrt(20_000))
        for size in (1, 2, 3):
            assert (drawn == size).mean() == pytest.approx(expected.pmf(size), abs=0.015)
