"""A downsampling sweep measures what binomial thinning predicts, and is drawn."""

from dataclasses import replace

import numpy as np
import pytest

from lazypert.errors import ConfigError, NotCountsError
from lazypert.plots import downsampling_sweep, plot_downsampling
from tests.support.figures import n_colours


@pytest.mark.slow
def test_a_sweep_measures_binomial_thinning():
    import jax

    # This is the shape in test_demo, for which JAX may have compiled already.
    counts = np.random.default_rng(0).poisson(6, (150, 200)).astype(np.float32)
    sweep = downsampling_sweep(counts, (1.0, 0.5, 0.1), key=jax.random.key(0))
    assert sweep.total == counts.sum()
    np.testing.assert_allclose(sweep.reads / sweep.total, [1, 0.5, 0.1], atol=0.02)
    assert sweep.reads[0] == sweep.total
    assert repr(sweep) == f"DownsamplingSweep({counts.sum():,.0f} reads of 150 cells to fractions 1, 0.5, 0.1)"
    assert (sweep.genes[0] == (counts > 0).sum(axis=1)).all()
    assert (np.diff(sweep.genes, axis=0) <= 0).mean() > 0.99
    assert (sweep.observed_variance[0] == 0).all()
    np.testing.assert_allclose(sweep.observed_variance[1:], sweep.expected_variance[1:], rtol=0.35)
    figure = plot_downsampling(sweep)
    assert len(figure.axes) == 3
    assert n_colours(figure) > 20
    without_thinning = replace(
        sweep, observed_variance=0 * sweep.observed_variance, expected_variance=0 * sweep.expected_variance
    )
    assert n_colours(plot_downsampling(without_thinning)) > 1


def test_a_sweep_needs_counts_and_fractions():
    import jax

    with pytest.raises(NotCountsError):
        downsampling_sweep(np.full((2, 3), 0.5, np.float32), (0.5,), key=jax.random.key(0))
    with pytest.raises(ConfigError, match="expected at least one of each"):
        downsampling_sweep(np.zeros((0, 3), np.float32), (0.5,), key=jax.random.key(0))
