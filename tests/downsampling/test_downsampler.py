from __future__ import annotations

import contextlib
import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lazypert.downsampling.config import DownsamplingConfig
from lazypert.downsampling.downsampler import ReadDownsampler
from lazypert.errors import ColumnNotFoundError, ConfigError, NotCountsError

KEY = jax.random.key(0)
# For what does not depend on the estimator: it compiles in a fifth of the time.
FAST = {"estimator": "rounding"}


@pytest.fixture(autouse=True, scope="module")
def _quick_compilation():
    # Most of the time here goes into compiling; the results do not depend on it.
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


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


def screen(shape=(6, 40), seed=0, dtype=np.float32):
    """Counts as a screen has them: mostly zeros, a few large."""
    rng = np.random.default_rng(seed)
    return rng.negative_binomial(0.4, 0.4 / (0.4 + np.exp(rng.normal(0, 2.5, shape)))).astype(dtype)


def thinner(**options):
    return ReadDownsampler(DownsamplingConfig(**options))


def bits(array):
    array = np.asarray(array)
    return array.view(f"u{array.dtype.itemsize}")


# -- forward ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "f"), [(1, 0.1), (6, 0.7), (30, 0.5), (2_000, 0.25)])
@pytest.mark.parametrize("is_log1p_input", [False, True], ids=["raw", "log1p"])
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
    call = lambda x, key: thin(x, key=key)  # noqa: E731
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


# -- backward ---------------------------------------------------------------------------------------


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
    call = lambda x: thin(x, key=KEY).sum()  # noqa: E731
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


# -- x64 --------------------------------------------------------------------------------------------


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


# -- bad input --------------------------------------------------------------------------------------


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


# -- config and batches -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "depth"}, "mode: got 'depth', expected 'fraction' or 'target_depth'"),
        ({"mode": "fractions"}, "Did you mean 'fraction'"),
        ({"estimator": "poisson"}, "'binomial' or 'rounding'"),
        ({"fraction": 0.0}, "above 0 and at most 1"),
        ({"fraction": 5_000}, "target_depth"),
        ({"fraction": float("nan")}, "expected a number"),
        ({"fraction": "half"}, "expected a number"),
        ({"target_depth": 100}, "mode='target_depth'"),
        ({"mode": "target_depth"}, "target_depth=5_000"),
        ({"mode": "target_depth", "target_depth": 0}, "an integer, 1 or more"),
        ({"mode": "target_depth", "target_depth": 10.5}, "an integer, 1 or more"),
        (
            {"mode": "target_depth", "target_depth": 10, "fraction": 0.5},
            "fraction: got 0.5 with mode=.target_depth.*Leave out fraction",
        ),
        ({"is_log1p_input": None}, "True or False"),
        ({"apply_log1p": 1}, "True or False"),
    ],
)
def test_options_without_meaning_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DownsamplingConfig(**options)


def test_the_config_is_frozen_and_keyword_only():
    config = DownsamplingConfig(mode="target_depth", target_depth=np.int64(7))
    assert type(config.target_depth) is int
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.fraction = 0.5
    with pytest.raises(TypeError):
        DownsamplingConfig("fraction")
    with pytest.raises(ConfigError, match="DownsamplingConfig"):
        ReadDownsampler(0.5)


def test_a_fraction_beside_a_target_depth_is_refused():
    with pytest.raises(ConfigError, match=r"the target depth determines each cell.s fraction"):
        thinner(mode="target_depth", target_depth=5)(np.ones((1, 2), np.float32), key=KEY, fraction=0.5)


def test_apply_replaces_counts_and_nothing_else():
    batch = {"counts": jnp.asarray(screen()), "pert": "TP53"}
    out = thinner(fraction=0.5).apply(batch, key=KEY)
    assert out["pert"] == "TP53"
    np.testing.assert_array_equal(out["counts"], thinner(fraction=0.5)(batch["counts"], key=KEY))
    assert out is not batch
    assert (np.asarray(batch["counts"]) == screen()).all()
    with pytest.raises(ColumnNotFoundError, match="Did you mean 'count'"):
        thinner().apply({"count": 1}, key=KEY)
