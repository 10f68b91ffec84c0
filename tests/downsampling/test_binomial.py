from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lazypert.downsampling import binomial
from lazypert.downsampling.binomial import sample_binomial

pytestmark = pytest.mark.slow  # with the compiling they need; CI runs them


# One shape and dtype for most tests, so that the sampler compiles once.
N_DRAWS = 200_000


def draw(n, p, seed=0):
    n_array = jnp.full(N_DRAWS, n, jnp.float32)
    return np.asarray(sample_binomial(jax.random.key(seed), n_array, jnp.full(N_DRAWS, p, jnp.float32))).astype(int)


_invert = jax.jit(binomial._invert)


def chi_square_p(drawn, n, p):
    """The p-value of the draws under scipy's distribution, bins of fewer than 10 expected draws pooled."""
    k = np.arange(n + 1)
    expected = stats.binom.pmf(k, n, p) * len(drawn)
    observed = np.bincount(drawn, minlength=n + 1)
    common = expected >= 10
    pooled = np.append(expected[common], expected[~common].sum())
    counted = np.append(observed[common], observed[~common].sum())
    used = pooled > 1e-3
    assert counted[~used].sum() == 0
    statistic = ((counted - pooled)[used] ** 2 / pooled[used]).sum()
    return stats.chi2.sf(statistic, used.sum() - 1)


CASES = [(1, 1e-4), (3, 0.3), (20, 0.5), (100, 0.7), (100_000, 9.9e-5), (100_000, 0.3), (1_000_000, 0.4)]
MORE_CASES = [
    *[(1, 0.5), (1, 0.9999), (12, 0.05), (19, 0.5), (21, 0.5), (100, 0.0999), (100, 0.1)],
    *[(1_000, 0.009), (1_000, 0.5), (3_000, 0.97), (100_000, 1e-4), (100_000, 0.999)],
]


@pytest.mark.parametrize(("n", "p"), CASES + [pytest.param(*case, marks=pytest.mark.slow) for case in MORE_CASES])
@pytest.mark.slow
def test_draws_follow_the_binomial_distribution(n, p):
    drawn = draw(n, p)
    p = float(np.float32(p))

    assert drawn.min() >= 0
    assert drawn.max() <= n
    assert chi_square_p(drawn, n, p) > 1e-4
    spread = np.sqrt(n * p * (1 - p))
    assert abs(drawn.mean() - n * p) < 4.5 * spread / np.sqrt(N_DRAWS)
    # The variance of a sample variance: kurtosis and all.
    kurtosis = float(stats.binom.stats(n, p, moments="k"))
    assert abs(drawn.var() / spread**2 - 1) < 4.5 * np.sqrt((kurtosis + 2) / N_DRAWS) + 1e-3


def test_the_chi_square_test_would_notice_the_older_rounding():
    rng = np.random.default_rng(0)
    assert chi_square_p(np.floor(20 * 0.33 + rng.random(N_DRAWS)).astype(int), 20, 0.33) < 1e-12


@pytest.mark.parametrize(("n", "p"), [(1, 1e-4), (19, 0.5), (100_000, 9.9e-5)])
def test_inversion_has_the_right_distribution_function_to_a_millionth(n, p):
    # Not random: every point of a grid of 2**21 stands for its share of the unit interval.
    size = 2**21
    grid = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
    drawn = np.asarray(_invert(jnp.full(size, n, jnp.float32), jnp.full(size, p, jnp.float32), grid))
    k = np.arange(60)
    tail = np.array([(drawn > value).mean() for value in k])
    np.testing.assert_allclose(tail, stats.binom.sf(k, n, float(np.float32(p))), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("n", "p"), [(25, 0.4), (1_000, 0.5), (100_000, 0.2), (10_000_000, 0.3)])
def test_log_pmf_ratio_agrees_with_scipy(n, p):
    p = float(np.float32(p))
    mode = np.floor((n + 1) * p)
    offset = np.unique(np.round(np.linspace(-4, 4, 41) * np.sqrt(n * p * (1 - p))))
    offset = offset[(mode + offset >= 0) & (mode + offset <= n)]
    ratio = binomial._log_pmf_ratio(*(jnp.asarray(value, jnp.float32) for value in (n, p, mode, offset)))
    expected = stats.binom.logpmf(mode + offset, n, p) - stats.binom.logpmf(mode, n, p)
    np.testing.assert_allclose(ratio, expected, rtol=0, atol=2e-3)


def test_certain_outcomes_are_certain_and_never_nan():
    n = jnp.array([0, 0, 0, 1, 7, 19, 20, 21, 100, 5_000, 2**24 - 1], jnp.float32)
    for seed in range(5):
        key = jax.random.key(seed)
        np.testing.assert_array_equal(sample_binomial(key, n, jnp.zeros_like(n)), 0)
        np.testing.assert_array_equal(sample_binomial(key, n, jnp.ones_like(n)), n)
        for p in (1e-7, 1e-4, 0.5, 1 - 2**-24):
            drawn = np.asarray(sample_binomial(key, n, jnp.full_like(n, p)))
            assert np.isfinite(drawn).all()
            assert (drawn >= 0).all()
            assert (drawn <= n).all()
            np.testing.assert_array_equal(drawn, np.round(drawn))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (2, 70_001)])
@pytest.mark.slow
def test_shapes_that_do_not_fill_blocks(shape):
    n = jnp.full(shape, 40, jnp.float32)
    drawn = np.asarray(sample_binomial(jax.random.key(1), n, jnp.full((*shape[:-1], 1), 0.5, jnp.float32)))
    assert drawn.shape == shape
    if n.size > 1_000:
        assert abs(drawn.mean() - 20) < 0.1
        # Blocks must not repeat one another's draws.
        assert abs(np.corrcoef(drawn[0], drawn[1])[0, 1]) < 0.03


@pytest.mark.slow
def test_entries_are_independent_within_and_between_blocks(monkeypatch):
    monkeypatch.setattr(binomial, "_BLOCK", 256)
    monkeypatch.setattr(binomial, "_LARGE_BLOCK", 32)
    n = jnp.tile(jnp.array([3.0, 400.0, 0.0, 90.0], jnp.float32), 4_096)
    p = jnp.full(n.shape, 0.3, jnp.float32)
    # Not the jitted function, which may have been traced with the usual block sizes.
    drawn = np.asarray(jax.jit(sample_binomial.__wrapped__)(jax.random.key(2), n, p)).reshape(-1, 4)
    assert (drawn[:, 2] == 0).all()
    for column, count in ((0, 3), (1, 400), (3, 90)):
        assert abs(drawn[:, column].mean() - 0.3 * count) < 4.5 * np.sqrt(0.21 * count / len(drawn))
        assert drawn[:, column].var() == pytest.approx(0.21 * count, rel=0.1)
        for lag in (1, 8, 16, 32, 64, 128):
            assert abs(np.corrcoef(drawn[lag:, column], drawn[:-lag, column])[0, 1]) < 0.07
    assert abs(np.corrcoef(drawn[:, 1], drawn[:, 3])[0, 1]) < 0.07


@pytest.mark.slow
def test_under_vmap_each_row_equals_its_own_call():
    n = jnp.asarray(np.random.default_rng(0).choice([0, 1, 5, 60, 900], (4, 50)), jnp.float32)
    p = jnp.array([[0.1], [0.5], [0.9], [0.3]], jnp.float32)
    keys = jax.random.split(jax.random.key(3), 4)
    together = jax.vmap(sample_binomial)(keys, n, p)
    for row in range(4):
        np.testing.assert_array_equal(together[row], sample_binomial(keys[row], n[row], p[row]))
