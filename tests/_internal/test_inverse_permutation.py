import numpy as np
import pytest

from lazypert._internal.inverse_permutation import inverse


@pytest.mark.parametrize("dtype", ["i4", "i8"])
def test_the_inverse_undoes_a_permutation(dtype):
    permutation = np.array([2, 0, 3, 1], dtype)
    undo = inverse(permutation)
    assert undo.dtype == dtype
    assert permutation[undo].tolist() == undo[permutation].tolist() == [0, 1, 2, 3]
    assert inverse(permutation[:0]).tolist() == []
