"""Row transforms equal NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert.sparse.transforms import scale_log1p, total


@pytest.mark.parametrize("dtype", ["u2", "i4", "f4", "f8"])
@given(values=st.lists(st.integers(0, 60_000), max_size=50))
@settings(max_examples=20, deadline=None)
def test_totals_of_counts_are_exact(dtype, values):
    assert total(np.array(values, dtype)) == sum(values)


@pytest.mark.parametrize("dtype", ["u2", "f4"])
@given(values=st.lists(st.integers(0, 60_000), max_size=50), scale=st.sampled_from([0.0, 0.37, 1.0, 25.0]))
@settings(max_examples=30, deadline=None)
def test_scale_log1p_equals_numpy(dtype, values, scale):
    out = np.full(len(values), -1, np.float32)
    scale_log1p(np.array(values, dtype), scale, out)
    np.testing.assert_allclose(out, np.log1p(np.array(values, float) * scale), rtol=1e-6)


def test_scale_log1p_takes_fractions_negative_values_and_its_own_input():
    values = np.array([0.5, 31.5, -0.25, 32.0], np.float32)
    expected = np.log1p(values * 2.0)
    scale_log1p(values, 2.0, values)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
