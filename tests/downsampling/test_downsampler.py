"""Thinned reads: their distribution, shapes, dtypes and domains."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lazypert.errors import NotCountsError
from tests.support.thinning import FAST, KEY, bits, screen, thinner


@contextlib.contextmanager
def x64():
    # The context manager moved between the JAX versions that are supported.
    if hasattr(jax, "enable_x64"):
        manager = jax.enable_x64(True)
    else:
        from jax.experimental import enable_x64

        manager = enable_x64()
    with manager:
        yield


@pytest.mark.parametrize(("n", "f"), [(1, 0.1), (6, 0.7), (30, 0.5), (2_000, 0.25)])
@pytest.mark.parametrize("is_log1p_input", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["raw", "log1p"])
def test_thinning_is_binomial(n, f, is_log1p_input):
    counts = np.full((100, 1_000), n, np.float32)
    given = np.log1p(counts) if is_log1p_input else counts
    out = np.asarray(thinner(fraction=f, is_log1p_input=is_log1p_input)(given, key=KEY))
    drawn = np.rint(np.expm1(out) if is_log1p_input else out).astype(int).ravel()

    expected = stats.binom.pmf(np.arange(n + 1), n, float(np.float32(f))) * drawn.size
    observed = np.bincount(drawn, minlength=n + 1)
    common = expected >= 10
    statistic = ((observed - expected)[common] ** 2 / expected[common]).sum()
    assert stats.chi2.sf(statistic, max(common.sum() - 1, 1)) > 1e-4
    assert drawn.var() == pytest.approx(n * f * (1 - f), rel=0.03)


@pytest.mark.parametrize("f", [0.05, 0.5, 0.95])
def test_totals_scale_with_the_fraction(f):
    counts = screen((100, 1_000))
    out = np.asarray(thinner(fraction=f)(counts, key=KEY))
    assert (out <= counts).all()
    assert (out >= 0).all()
    total = counts.sum(1)
    off = (out.sum(1) - f * total) / np.sqrt(total * f * (1 - f))
    assert np.abs(off).max() < 4.5
    assert off.std() == pytest.approx(1, abs=0.35)


DTYPES = [np.float32, np.int32, np.uint16, np.int8]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_shape_and_dtype_are_kept(dtype):
    counts = np.minimum(screen(), 100).astype(dtype)
    for mode in ({"fraction": 0.5}, {"mode": "target_depth", "target_depth": 20}):
        for given in (counts, jnp.asarray(counts)):
            out = thinner(**mode, **FAST)(given, key=KEY)
            assert isinstance(out, jax.Array)
            assert out.dtype == dtype
            assert out.shape == given.shape
            assert (np.asarray(out) <= np.asarray(given)).all()


@pytest.mark.slow
def test_the_dtype_does_not_change_the_reads():
    counts = screen()
    as_float = thinner(fraction=0.4)(counts, key=KEY)
    as_int = thinner(fraction=0.4)(counts.astype(np.int32), key=KEY)
    np.testing.assert_array_equal(as_float, as_int)


@pytest.mark.parametrize("estimator", ["rounding", pytest.param("binomial", marks=pytest.mark.slow)])
@pytest.mark.parametrize("is_log1p_input", [False, True], ids=["raw", "log1p"])
def test_fraction_one_returns_the_bits(estimator, is_log1p_input):
    values = screen((20, 500))
    if is_log1p_input:
        # One ulp off, as another library's log1p may be: reads and back would lose it.
        values = np.nextafter(np.log1p(values), np.float32(np.inf))
    thin = thinner(is_log1p_input=is_log1p_input, estimator=estimator)
    traced = jax.jit(lambda f: thin(values, key=KEY, fraction=f))
    per_cell = np.linspace(0.5, 1, 20, dtype=np.float32)
    np.testing.assert_array_equal(bits(thin(values, key=KEY)), bits(values))
    np.testing.assert_array_equal(bits(traced(jnp.ones(20))), bits(values))
    if estimator == "rounding":
        np.testing.assert_array_equal(bits(thin(values, key=KEY, fraction=1.0)), bits(values))
        np.testing.assert_array_equal(bits(traced(jnp.float32(1))), bits(values))
    mixed = np.asarray(traced(jnp.asarray(per_cell)))
    np.testing.assert_array_equal(bits(mixed[-1]), bits(values[-1]))
    assert (mixed[:-1].sum(1) < values[:-1].sum(1)).all()


@pytest.mark.parametrize("is_log1p_input", [False, True], ids=["raw", "log1p"])
def test_target_depth(is_log1p_input):
    counts = screen((200, 500), seed=1)
    depth = int(np.median(counts.sum(1)))
    counts[3] = 0
    counts[4] = 0
    counts[4, :2] = depth - 5, 5
    given = np.nextafter(np.log1p(counts), np.float32(9)) if is_log1p_input else counts
    # Compiled once is enough: only the log1p domain adds anything to binomial thinning here.
    estimator = "binomial" if is_log1p_input else "rounding"
    thin = thinner(mode="target_depth", target_depth=depth, is_log1p_input=is_log1p_input, estimator=estimator)
    out = np.asarray(jax.jit(thin.__call__)(given, key=KEY))

    at_most = counts.sum(1) <= depth
    assert at_most[3:5].all()
    assert 20 < at_most.sum() < 180
    np.testing.assert_array_equal(bits(out[at_most]), bits(given[at_most]))
    reads = np.rint(np.expm1(out)) if is_log1p_input else out
    total, f = counts.sum(1)[~at_most], depth / counts.sum(1)[~at_most]
    off = (reads[~at_most].sum(1) - depth) / np.sqrt(total * f * (1 - f))
    assert np.abs(off).max() < 4.5
    if is_log1p_input:
        assert off.std() == pytest.approx(1, abs=0.3)


def test_per_cell_fractions_in_both_shapes_and_over_a_batch():
    counts = np.full((2, 3, 4_000), 10, np.float32)
    f = np.array([[0.1, 0.5, 0.9], [0.0, 1.0, 0.3]], np.float32)
    thin = thinner(**FAST)
    flat = np.asarray(thin(counts, key=KEY, fraction=f))
    np.testing.assert_array_equal(flat, thin(counts, key=KEY, fraction=jnp.asarray(f)[..., None]))
    np.testing.assert_allclose(flat.mean(-1), 10 * f, atol=0.15)
    assert (flat[1, 0] == 0).all()
    assert (flat[1, 1] == 10).all()


def test_log1p_goes_there_and_back_between_domains():
    counts = screen((30, 300))
    logged = np.log1p(counts)
    options = {"fraction": 0.3} | FAST
    raw = np.asarray(thinner(**options)(counts, key=KEY))
    to_log = thinner(**options, apply_log1p=True)(counts, key=KEY)
    from_log = thinner(**options, is_log1p_input=True, apply_log1p=False)(logged, key=KEY)
    both = thinner(**options, is_log1p_input=True)(logged, key=KEY)
    # The reads thinned are the same whole numbers in each domain, so with one key the results agree.
    np.testing.assert_array_equal(from_log, raw)
    np.testing.assert_allclose(to_log, np.log1p(raw), rtol=1e-6)
    np.testing.assert_array_equal(both, to_log)
    np.testing.assert_array_equal(
        thinner(is_log1p_input=True, apply_log1p=False, **FAST)(logged, key=KEY, fraction=1.0), counts
    )
    assert thinner(**options, apply_log1p=True)(counts.astype(np.int32), key=KEY).dtype == jnp.float32


def test_rounding_estimator_is_within_one_read_of_the_mean():
    counts = np.full((100, 1_000), 7, np.float32)
    out = np.asarray(thinner(fraction=0.33, estimator="rounding")(counts, key=KEY))
    assert set(np.unique(out)) == {2, 3}
    assert out.mean() == pytest.approx(7 * 0.33, abs=0.01)


def test_the_key_decides():
    counts = screen((20, 500))
    thin = thinner(fraction=0.5, **FAST)
    first = thin(counts, key=KEY)
    np.testing.assert_array_equal(first, thin(counts, key=jax.random.key(0)))
    np.testing.assert_array_equal(first, thin(counts, key=jax.random.PRNGKey(0)))
    assert (np.asarray(first) != np.asarray(thin(counts, key=jax.random.key(1)))).any()


@pytest.mark.parametrize(
    "options",
    [pytest.param({"fraction": 0.4}, marks=pytest.mark.slow), {"mode": "target_depth", "target_depth": 30} | FAST],
    ids=["binomial", "rounding"],
)
@pytest.mark.slow
def test_jit_vmap_and_checkpoint_change_nothing(options):
    counts = jnp.asarray(screen())
    thin = thinner(**options)

    def call(x, key):
        return thin(x, key=key)

    eager = thin(counts, key=KEY)
    np.testing.assert_array_equal(eager, jax.jit(call)(counts, KEY))
    if "estimator" in options:
        np.testing.assert_array_equal(eager, jax.jit(jax.checkpoint(call))(counts, KEY))
    keys = jax.random.split(KEY, len(counts))
    rows = jnp.stack([call(row, key) for row, key in zip(counts, keys, strict=True)])
    np.testing.assert_array_equal(rows, jax.jit(jax.vmap(call))(counts, keys))


def test_a_concrete_array_inside_jit_is_checked_there():
    good, bad = np.array([[1.0, 2.0]], np.float32), np.array([[1.0, -2.0]], np.float32)
    thin = thinner(fraction=0.5, **FAST)
    assert jax.jit(lambda key: thin(good, key=key))(KEY).shape == (1, 2)
    with pytest.raises(NotCountsError, match=r"-2\.0 at \(0, 1\)"):
        jax.jit(lambda key: thin(bad, key=key))(KEY)


@pytest.mark.slow
def test_float64_and_int64():
    with x64():
        counts = jnp.full((40, 500), 2.0**40, jnp.float64)
        out = thinner()(counts, key=KEY, fraction=0.5)
        assert out.dtype == jnp.float64
        off = (np.asarray(out) - 2.0**39) / np.sqrt(2.0**38)
        assert abs(off.mean()) < 4.5 / np.sqrt(out.size)
        assert off.std() == pytest.approx(1, abs=0.03)
        small = jnp.full((40, 500), 9.0, jnp.float64)
        few = thinner()(small, key=KEY, fraction=0.5)
        assert float(few.mean()) == pytest.approx(4.5, abs=0.05)
        assert float(few.var()) == pytest.approx(2.25, rel=0.05)
        as_int = thinner(fraction=0.5, **FAST)(np.full((40, 500), 2**40), key=KEY)
        assert as_int.dtype == jnp.int64
        assert (as_int == 2**39).all()
        mixed = thinner(fraction=0.3, **FAST)(jnp.full((2, 3), 9.0, jnp.float32), key=KEY)
        assert mixed.dtype == jnp.float32
        gradient = jax.grad(lambda x: thinner(fraction=0.3, **FAST)(x, key=KEY).sum())(small)
        np.testing.assert_allclose(gradient, 0.3, rtol=1e-12)
