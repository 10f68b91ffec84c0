import itertools

import numpy as np
import pytest

from lazypert._internal.randomness import generator
from lazypert.simulate.model import draw_effects


def test_a_fifth_of_the_targets_shift_about_a_tenth_of_the_genes():
    targets = np.arange(1000)
    start, gene, fold = draw_effects(generator(1), targets, np.full(1000, -2.0), 2000)
    share = (np.diff(start) - 1) / 2000
    strong = share > 0.05
    assert strong.mean() == pytest.approx(0.2, abs=0.05)
    assert ((share[strong] > 0.068) & (share[strong] < 0.122)).all()
    assert (share[~strong] <= 0.01).all()
    np.testing.assert_array_equal(gene[start[:-1]], targets)
    np.testing.assert_array_equal(fold[start[:-1]], np.float32(0.25))
    assert all(len(set(gene[a:b])) == b - a for a, b in itertools.pairwise(start))
