"""Value statistics choose the smallest dtype that represents every value exactly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lazypert.errors import SourceFormatError
from lazypert.sparse.value_stats import ValueStats, value_stats


def naive_dtype(values):
    """Smallest dtype of the format that represents every value exactly."""
    values = np.asarray(values)
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if len(finite) == len(values) and all(float(v).is_integer() and abs(v) <= 2**53 for v in finite):
        exact = [int(v) for v in finite]
        for name in ("u2", "u4", "i4", "i8"):
            if all(np.iinfo(name).min <= v <= np.iinfo(name).max for v in exact):
                return np.dtype(name)
    return np.dtype("f4" if all(float(np.float32(v)) == v for v in finite) else "f8")


@given(
    hnp.arrays(
        "f8",
        st.integers(0, 12),
        elements=st.one_of(
            st.integers(-5, 5).map(float),
            st.sampled_from([0.0, -0.0, 65535.0, 65536.0, 2.0**31, 2.0**32 - 1, 2.0**32, 2.0**53, 2.0**53 + 2]),
            st.sampled_from([0.5, 0.1, -(2.0**31), -(2.0**31) - 1, np.nan, np.inf, -np.inf, 5e-324, 1e-45]),
        ),
    )
)
@settings(max_examples=300, deadline=None)
def test_statistics_choose_the_smallest_exact_dtype(values):
    with np.errstate(over="ignore"):
        expected = naive_dtype(values)
    stats = value_stats(values)
    assert stats.dtype() == expected
    np.testing.assert_array_equal(values.astype(expected), values)  # -0.0 equals 0.0, NaN is NaN
    assert stats.n_nonfinite == (~np.isfinite(values)).sum()
    finite = [*values[np.isfinite(values)].tolist(), 0.0]
    assert (stats.minimum, stats.maximum) == (min(finite), max(finite))


INT64_MAX = 2**63 - 1


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        pytest.param(np.array([], "f4"), "u2", id="empty"),
        pytest.param(np.array([0, 65535], "i8"), "u2", id="u2_max"),
        pytest.param(np.r_[np.ones(5000), 70000].astype("f4"), "u4", id="last_value_70000"),
        pytest.param(np.array([2**24 + 1], "f8"), "u4", id="2^24+1"),
        pytest.param(np.r_[np.ones(5000), -1].astype("f4"), "i4", id="last_value_negative"),
        pytest.param(np.r_[np.ones(5000), 0.5].astype("f4"), "f4", id="last_value_fraction"),
        pytest.param(np.array([1.0, 2.0**53 + 2], "f8"), "f8", id="2^53+2_as_float"),
        pytest.param(np.array([2**53 + 1], "i8"), "i8", id="2^53+1_as_int"),
        pytest.param(np.array([INT64_MAX], "i8"), "i8", id="int64_max"),
        pytest.param(np.array([INT64_MAX], "u8"), "i8", id="int64_max_unsigned"),
        pytest.param(np.array([-(2**63)], "i8"), "i8", id="int64_min"),
        pytest.param(np.array([-1, 2**31], "i8"), "i8", id="negative_and_large"),
        pytest.param(np.array([1, np.nan], "f4"), "f4", id="nan"),
        pytest.param(np.array([1, np.inf], "f8"), "f4", id="inf"),
        pytest.param(np.array([0.1], "f8"), "f8", id="float64"),
        pytest.param(np.array([-0.0]), "u2", id="negative_zero"),
        pytest.param(np.array([True, False]), "u2", id="bool"),
        pytest.param(np.array([7], "u1"), "u2", id="never_one_byte"),
    ],
)
def test_dtype_of_edge_values(values, dtype):
    chosen = value_stats(values).dtype()
    assert chosen == dtype
    np.testing.assert_array_equal(values.astype(chosen), values)


def test_integers_beyond_int64_raise():
    with pytest.raises(SourceFormatError, match="9223372036854775807"):
        value_stats(np.array([2**63], "u8")).dtype()


def test_fractions_and_large_integers_together_raise():
    stats = value_stats(np.array([0.5])).merge(value_stats(np.array([2**53 + 1], "i8")))
    with pytest.raises(SourceFormatError, match="fractions and integers beyond 2"):
        stats.dtype()


values = st.lists(
    st.one_of(st.integers(-3, 70_000).map(float), st.sampled_from([0.5, 0.1, np.nan, 2.0**40])), max_size=8
)


@given(values, values)
@settings(max_examples=80, deadline=None)
def test_merged_statistics_are_those_of_all_values(left, right):
    together = value_stats(np.array(left + right, dtype="f8"))
    merged = value_stats(np.array(left, dtype="f8")).merge(value_stats(np.array(right, dtype="f8")))
    assert merged == together


def test_statistics_of_no_values_are_neutral():
    stats = value_stats(np.array([-2.5]))
    assert stats.merge(ValueStats()) == ValueStats().merge(stats) == stats
