"""The running sum equals NumPy's, at every length and alignment; it wraps around."""

import numpy as np
import pytest

from lazypert.store.prefix_sum import add_up


@pytest.mark.parametrize("dtype", ["u2", "u4", "u8", "i4", "i8"])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 16, 23, 1_003])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_sums_equal_those_of_numpy(dtype, length, offset):
    buffer = np.random.default_rng(length).integers(0, 2**16, length + offset + 1).astype(dtype)
    expected = np.cumsum(buffer[offset:-1], dtype=dtype)
    before, after = buffer[:offset].copy(), buffer[-1]
    add_up(buffer[offset:-1])
    np.testing.assert_array_equal(buffer[offset:-1], expected)
    np.testing.assert_array_equal(buffer[:offset], before)
    assert buffer[-1] == after
