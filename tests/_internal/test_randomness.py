"""Random numbers depend only on their key and counter."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import stats

from lazypert._internal.randomness import counter_hash, draw_distinct, generator, permute_index

words = st.tuples(st.integers(0, 2**31), st.integers(0, 1000))


def splitmix(key, counter):
    """SplitMix64 with Python's integers."""
    mask = 2**64 - 1
    z = (counter * 0x9E3779B97F4A7C15 + key) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def floyd(draws, size):
    """Floyd's sample of ``len(draws)`` distinct numbers below `size`."""
    taken = []
    for j, draw in enumerate(draws):
        last = size - len(draws) + j
        t = draw % (last + 1)
        taken.append(last if t in taken else t)
    return taken


class TestGenerator:
    def test_equal_seeds_give_equal_numbers(self):
        assert (generator(1, 2).random(5) == generator(1, 2).random(5)).all()

    @pytest.mark.parametrize("other", [(1, 3), (2, 1), (3,), (1, 2, 1)], ids=str)
    def test_other_seeds_give_other_numbers(self, other):
        assert not (generator(1, 2).random(5) == generator(*other).random(5)).any()

    def test_does_not_change_the_global_state(self):
        before = np.random.get_state()[1].copy()  # noqa: NPY002 - the state under test
        generator(1).random(10)
        counter_hash((1,), np.arange(10))
        assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


class TestCounterHash:
    @given(words, st.lists(st.integers(0, 2**62), min_size=1, max_size=20))
    @settings(max_examples=30, deadline=None)
    def test_is_splitmix64(self, key_words, counters):
        key = int(np.random.SeedSequence(key_words).generate_state(1, np.uint64)[0])
        assert counter_hash(key_words, np.array(counters)).tolist() == [splitmix(key, c) for c in counters]

    @pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3)], ids=str)
    def test_returns_the_shape_of_the_counter(self, shape):
        assert counter_hash((1,), np.ones(shape, dtype=np.int64)).shape == shape

    @pytest.mark.parametrize("dtype", ["i4", "i8", "u4", "u8"])
    def test_is_independent_of_the_dtype_of_the_counter(self, dtype):
        assert (counter_hash((5,), np.arange(9, dtype=dtype)) == counter_hash((5,), np.arange(9))).all()

    def test_is_uniform_and_independent_between_keys(self):
        one, other = (counter_hash((7, k), np.arange(40_000)) for k in (0, 1))
        for bins in (one % 16, one >> np.uint64(60), (one ^ other) % 16):
            assert stats.chisquare(np.bincount(bins.astype(int), minlength=16)).pvalue > 1e-4


class TestDrawDistinct:
    @given(
        words,
        npst.arrays(np.int64, st.integers(1, 20), elements=st.integers(1, 12)),
        st.integers(1, 6),
    )
    @settings(max_examples=50, deadline=None)
    def test_equals_floyds_algorithm_where_there_are_enough_numbers(self, key, sizes, n):
        counter = np.arange(len(sizes)) * 17
        drawn = draw_distinct(key, counter, sizes, n)
        raw = np.stack([counter_hash((*key, j), counter) for j in range(n)], axis=1)
        for row, size, raw_row in zip(drawn.tolist(), sizes.tolist(), raw.tolist(), strict=True):
            if size >= n:
                assert row == floyd(raw_row, size)
                assert len(set(row)) == n
            else:
                assert row == [value % size for value in raw_row]
            assert all(0 <= value < size for value in row)

    def test_draws_of_one_counter_do_not_depend_on_the_others(self):
        counter, sizes = np.arange(50), np.arange(50) + 3
        drawn = draw_distinct((1, 2), counter, sizes, 3)
        subset = np.array([40, 3, 17])
        assert (draw_distinct((1, 2), counter[subset], sizes[subset], 3) == drawn[subset]).all()

    def test_every_subset_is_equally_likely(self):
        drawn = np.sort(draw_distinct((3,), np.arange(30_000), np.full(30_000, 5), 2), axis=1)
        counted = [np.sum((drawn == pair).all(axis=1)) for pair in itertools.combinations(range(5), 2)]
        assert sum(counted) == 30_000
        assert stats.chisquare(counted).pvalue > 1e-4

    def test_draws_with_replacement_are_uniform(self):
        drawn = draw_distinct((3,), np.arange(20_000), np.full(20_000, 3), 4)
        for column in drawn.T:
            assert stats.chisquare(np.bincount(column, minlength=3)).pvalue > 1e-4


class TestPermuteIndex:
    @given(words, st.integers(1, 3000), st.integers(0, 50))
    @settings(max_examples=30, deadline=None)
    def test_is_a_permutation_of_any_size(self, key, size, which):
        values = permute_index(key, np.int64(which), np.arange(size), np.int64(size))
        assert np.sort(values).tolist() == list(range(size))

    def test_an_element_does_not_depend_on_the_others(self):
        which, index, size = np.arange(60) % 3, np.arange(60) % 50, np.where(np.arange(60) % 2, 50, 5000)
        values = permute_index((4,), which, index, size)
        for i in (0, 17, 58):
            assert permute_index((4,), which[i], index[i], size[i]) == values[i]

    def test_an_empty_permutation_gives_minus_one(self):
        assert permute_index((1,), np.int64(0), np.zeros(2, np.int64), np.int64(0)).tolist() == [-1, -1]

    def test_elements_of_one_permutation_may_be_far_apart(self):
        which, index = np.divmod(np.arange(200 * 60), 60)
        expected = permute_index((3,), which, index, np.int64(60))
        order = np.random.default_rng(0).permutation(len(which))
        np.testing.assert_array_equal(permute_index((3,), which[order], index[order], np.int64(60)), expected[order])

    @pytest.mark.parametrize("size", [4, 1500], ids=["shuffled", "computed"])
    def test_every_value_is_equally_likely(self, size):
        values = permute_index((2,), np.arange(20_000), np.int64(1), np.int64(size))
        assert stats.chisquare(np.bincount(4 * values // size, minlength=4)).pvalue > 1e-4
