"""Gradients through thinning."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lazypert.errors import ConfigError
from tests.support.thinning import FAST, KEY, screen, thinner


@pytest.mark.parametrize("estimator", ["rounding", pytest.param("binomial", marks=pytest.mark.slow)])
def test_gradients_are_those_of_the_expected_count(estimator):
    counts = jnp.asarray(screen())
    weights = jnp.asarray(np.random.default_rng(1).normal(size=counts.shape), jnp.float32)
    thin = thinner(estimator=estimator)

    def loss(x, f):
        return jnp.sum(weights * thin(x, key=KEY, fraction=f))

    f = jnp.linspace(0.1, 1, len(counts))
    by_counts, by_fraction = jax.grad(loss, (0, 1))(counts, f)
    np.testing.assert_allclose(by_counts, weights * f[:, None], rtol=1e-6)
    np.testing.assert_allclose(by_fraction, (weights * counts).sum(1), rtol=1e-4, atol=1e-3)
    if estimator == "rounding":
        scalar = jax.grad(loss, 1)(counts, 0.3)
        np.testing.assert_allclose(scalar, (weights * counts).sum(), rtol=1e-4)


def test_gradients_in_the_log1p_domain():
    counts = screen()
    x = jnp.asarray(np.log1p(counts))
    thin = thinner(is_log1p_input=True, **FAST)
    f = 0.3
    by_x, by_f = jax.grad(lambda x, f: thin(x, key=KEY, fraction=f).sum(), (0, 1))(x, f)
    np.testing.assert_allclose(by_x, f * (counts + 1) / (1 + f * counts), rtol=1e-4)
    np.testing.assert_allclose(by_f, (counts / (1 + f * counts)).sum(), rtol=1e-4)


def test_gradients_at_a_target_depth_follow_the_total_too():
    counts = jnp.array([[30.0, 50.0, 20.0], [4.0, 3.0, 0.0], [10.0, 20.0, 10.0], [0.0, 0.0, 0.0]])
    weights = jnp.array([1.0, -2.0, 3.0])
    thin = thinner(mode="target_depth", target_depth=40, **FAST)
    got = jax.grad(lambda x: jnp.sum(weights * thin(x, key=KEY)))(counts)
    # d/dx_j of sum_i w_i x_i depth / total
    x, w, depth = np.asarray(counts[0]), np.asarray(weights), 40
    deep = depth * (w * x.sum() - (w * x).sum()) / x.sum() ** 2
    np.testing.assert_allclose(got[0], deep, rtol=1e-5)
    # Cells below, at the target exactly, and without reads are passed on, and so are their gradients.
    np.testing.assert_array_equal(got[1:], np.broadcast_to(w, (3, 3)))


@pytest.mark.slow
def test_gradients_pass_through_vmap_checkpoint_and_forward_mode():
    counts = jnp.asarray(screen())
    thin = thinner(fraction=0.25, **FAST)

    def call(x):
        return thin(x, key=KEY).sum()

    for wrapped in (jax.jit(call), jax.checkpoint(call)):
        np.testing.assert_allclose(jax.grad(wrapped)(counts), 0.25, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(call))(counts), 0.25, rtol=1e-6)
    out, tangent = jax.jvp(lambda x: thin(x, key=KEY), (counts,), (jnp.ones_like(counts),))
    np.testing.assert_array_equal(out, thin(counts, key=KEY))
    np.testing.assert_allclose(tangent, 0.25, rtol=1e-6)


def test_the_value_beside_a_gradient_is_whole():
    counts = jnp.full((4, 1_000), 100_001.0)
    value, _ = jax.value_and_grad(
        lambda f: (y := thinner(**FAST)(counts, key=KEY, fraction=f)).sum() * 0 + jnp.abs(y - jnp.round(y)).max()
    )(0.123)
    assert value == 0


def test_integer_counts_and_the_gradient_of_the_fraction():
    counts = jnp.asarray(screen(dtype=np.int32))
    by_f = jax.grad(lambda f: thinner(apply_log1p=True, **FAST)(counts, key=KEY, fraction=f).sum())(0.5)
    reads = np.asarray(counts, np.float64)
    np.testing.assert_allclose(by_f, (reads / (1 + 0.5 * reads)).sum(), rtol=1e-4)
    as_float = jax.grad(lambda f: thinner(**FAST)(counts.astype(jnp.float32), key=KEY, fraction=f).sum())(0.5)
    np.testing.assert_allclose(as_float, counts.sum(), rtol=1e-6)
    with pytest.raises(ConfigError, match=r"int32.*carry no gradient.*astype\('float32'\)"):
        jax.grad(lambda f: thinner(**FAST)(counts, key=KEY, fraction=f).astype(jnp.float32).sum())(0.5)
