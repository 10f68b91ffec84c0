"""Randomness depends on its key and counter, and on nothing else."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import stats

from lazypert._internal.randomness import counter_hash, draw_distinct, generator

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
    def test_the_words_decide(self):
        assert (generator(1, 2).random(5) == generator(1, 2).random(5)).all()

    @pytest.mark.parametrize("other", [(1, 3), (2, 1), (3,), (1, 2, 1)], ids=str)
    def test_other_words_give_other_numbers(self, other):
        assert not (generator(1, 2).random(5) == generator(*other).random(5)).any()

    def test_leaves_the_global_state_alone(self):
        before = np.random.get_state()[1].copy()  # noqa: NPY002 - the state under test
        generator(1).random(10)
        counter_hash((1,), np.arange(10))
        assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


class TestHashed:
    @given(words, st.lists(st.integers(0, 2**62), min_size=1, max_size=20))
    @settings(max_examples=30, deadline=None)
    def test_is_splitmix64(self, key_words, counters):
        key = int(np.random.SeedSequence(key_words).generate_state(1, np.uint64)[0])
        assert counter_hash(key_words, np.array(counters)).tolist() == [splitmix(key, c) for c in counters]

    @pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3)], ids=str)
    def test_keeps_the_shape(self, shape):
        assert counter_hash((1,), np.ones(shape, dtype=np.int64)).shape == shape

    @pytest.mark.parametrize("dtype", ["i4", "i8", "u4", "u8"])
    def test_the_dtype_of_the_counter_does_not_matter(self, dtype):
        assert (counter_hash((5,), np.arange(9, dtype=dtype)) == counter_hash((5,), np.arange(9))).all()

    def test_is_uniform_and_keys_are_unrelated(self):
        one, other = (counter_hash((7, k), np.arange(40_000)) for k in (0, 1))
        for bins in (one % 16, one >> np.uint64(60), (one ^ other) % 16):
            assert stats.chisquare(np.bincount(bins.astype(int), minlength=16)).pvalue > 1e-4


class TestDistinctDraws:
    @given(
        words,
        npst.arrays(np.int64, st.integers(1, 20), elements=st.integers(1, 12)),
        st.integers(1, 6),
    )
    @settings(max_examples=50, deadline=None)
    def test_is_floyds_algorithm_where_there_is_enough(self, key, sizes, n):
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

    def test_one_counter_needs_no_others(self):
        counter, sizes = np.arange(50), np.arange(50) + 3
        whole = draw_distinct((1, 2), counter, sizes, 3)
        some = np.array([40, 3, 17])
        assert (draw_distinct((1, 2), counter[some], sizes[some], 3) == whole[some]).all()

    def test_every_subset_is_equally_likely(self):
        drawn = np.sort(draw_distinct((3,), np.arange(30_000), np.full(30_000, 5), 2), axis=1)
        counted = [np.sum((drawn == pair).all(axis=1)) for pair in itertools.combinations(range(5), 2)]
        assert sum(counted) == 30_000
        assert stats.chisquare(counted).pvalue > 1e-4

    def test_with_too_few_each_draw_is_uniform(self):
        drawn = draw_distinct((3,), np.arange(20_000), np.full(20_000, 3), 4)
        for column in drawn.T:
            assert stats.chisquare(np.bincount(column, minlength=3)).pvalue > 1e-4
