"""What is not a count or a fraction is refused, or gives NaN where it cannot be checked."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lazypert.errors import ConfigError, NotCountsError
from tests.support.thinning import FAST, KEY, screen, thinner


@pytest.mark.parametrize(
    ("value", "cure"),
    [(-1.0, "nothing subtracted"), (np.nan, "missing"), (1.5, "is_log1p_input=True"), (np.inf, "missing")],
)
@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_what_is_not_a_count_is_refused(value, cure, as_array):
    counts = screen()
    counts[2, 7] = value
    with pytest.raises(NotCountsError, match=rf"{value} at \(2, 7\) \(invalid values: 1 of.*{cure}"):
        thinner(fraction=0.5)(as_array(counts), key=KEY)


@pytest.mark.parametrize("value", [-0.9, np.nan, 1e4, np.inf])
def test_what_is_not_a_log1p_count_is_refused(value):
    logged = np.log1p(screen())
    logged[0, 0] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(NotCountsError, match=r"at \(0, 0\).*log1p\(reads\)"):
            thinner(is_log1p_input=True)(logged, key=KEY)


@pytest.mark.parametrize("largest", [1, 2, 10, 300])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_counts_declared_as_log1p_are_refused(largest, dtype, as_array):
    counts = np.minimum(screen((20, 50)), largest).astype(dtype)
    with pytest.raises(NotCountsError, match=r"expected log1p\(reads\).* pass is_log1p_input=False"):
        thinner(is_log1p_input=True, fraction=0.5)(as_array(counts), key=KEY)


def test_log1p_of_normalised_expression_is_refused():
    counts = screen((20, 50)) + 1
    logged = np.log1p(counts * (1e4 / counts.sum(1, keepdims=True)))
    with pytest.raises(NotCountsError, match="normalised expression"):
        thinner(is_log1p_input=True, fraction=0.5)(logged, key=KEY)
    out = thinner(is_log1p_input=True, fraction=1.0, check_counts=False)(logged, key=KEY)
    np.testing.assert_array_equal(out, logged.astype("f4"))


@pytest.mark.parametrize("log1p", [np.log1p, lambda reads: np.log1p(reads.astype("f8")), jnp.log1p])
def test_every_whole_number_of_reads_has_a_log1p(log1p):
    reads = np.arange(600_000, dtype="f4")[None]
    out = thinner(is_log1p_input=True, apply_log1p=False, fraction=1.0)(log1p(reads), key=KEY)
    np.testing.assert_array_equal(out, reads)


@pytest.mark.parametrize("counts", [np.array([[2**40]]), np.array([[-3]]), np.array([[2.0**25]], np.float32)])
def test_counts_that_float32_cannot_hold_are_refused(counts):
    with pytest.raises(NotCountsError, match="below 16,777,216"):
        thinner(fraction=0.5)(counts, key=KEY)


@pytest.mark.parametrize("dtype", [bool, np.float16, complex, jnp.bfloat16])
def test_dtypes_that_hold_no_counts_are_refused(dtype):
    with pytest.raises(NotCountsError, match="expected float32, float64 or an integer"):
        thinner()(jnp.ones((2, 2)).astype(dtype), key=KEY)


def test_integers_are_not_log1p_and_scalars_have_no_genes():
    with pytest.raises(NotCountsError, match="not whole numbers"):
        thinner(is_log1p_input=True)(np.array([[1]]), key=KEY)
    with pytest.raises(NotCountsError, match=r"shape \(\)"):
        thinner()(np.float32(3), key=KEY)


def test_unchecked_values_come_back_as_nan_and_alone():
    counts = np.array([[4.0, -1.0, 2.5, np.nan, np.inf, 6.0], [1, 2, 3, 4, 5, 6]], np.float32)
    for out in (
        thinner(fraction=0.5, check_counts=False, **FAST)(counts, key=KEY),
        jax.jit(lambda x: thinner(fraction=0.5, **FAST)(x, key=KEY))(counts),
    ):
        assert np.isnan(np.asarray(out)).tolist() == [[False, True, True, True, True, False], [False] * 6]
    deep = thinner(mode="target_depth", target_depth=3, check_counts=False, **FAST)(counts, key=KEY)
    assert np.isnan(np.asarray(deep)).tolist() == [[True] * 6, [False] * 6]
    ints = thinner(fraction=0.5, check_counts=False, **FAST)(jnp.array([[-7, 0]]), key=KEY)
    assert ints.tolist() == [[-1, 0]]


def test_traced_fractions_outside_the_range_give_nan():
    counts = jnp.ones((4, 3))
    f = jnp.array([-0.1, 1.5, jnp.nan, 1.0])
    out = np.asarray(jax.jit(lambda f: thinner(**FAST)(counts, key=KEY, fraction=f))(f))
    assert np.isnan(out[:3]).all()
    assert (out[3] == 1).all()


@pytest.mark.parametrize("fraction", [-0.1, 1.1, np.nan, np.array([0.5, 2, 0.5])])
def test_concrete_fractions_outside_the_range_are_refused(fraction):
    with pytest.raises(ConfigError, match="from 0 to 1"):
        thinner()(np.ones((3, 2), np.float32), key=KEY, fraction=fraction)


@pytest.mark.parametrize("shape", [(2,), (3, 2), (1, 3), (3, 1, 1)])
def test_fractions_of_another_shape_are_refused(shape):
    with pytest.raises(ConfigError, match=r"expected a scalar, \(3,\) or \(3, 1\)"):
        thinner()(np.ones((3, 2), np.float32), key=KEY, fraction=np.full(shape, 0.5))


def test_no_nan_for_nothing():
    zeros = jnp.zeros((3, 4))
    for is_log1p_input in (False, True):
        thin = thinner(mode="target_depth", target_depth=5, **FAST, is_log1p_input=is_log1p_input)
        out, tangent = jax.jvp(lambda x, thin=thin: thin(x, key=KEY), (zeros,), (zeros + 1,))
        assert (np.asarray(out) == 0).all()
        assert (np.asarray(tangent) == 1).all()
    for shape in ((0, 4), (3, 0), (0,)):
        assert thinner(fraction=0.3)(jnp.zeros(shape), key=KEY).shape == shape
