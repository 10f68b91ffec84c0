"""Measures of mixing, against brute force and known arrangements."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import mixing


def brute_comebacks(batches):
    every = np.concatenate(batches).tolist()
    chance = np.mean([a == b for a, b in itertools.permutations(every, 2)])
    pairs = [a == b for early, late in zip(batches, batches[2:], strict=False) for a in early for b in late]
    return np.mean(pairs) / chance


def brute_meetings(first, second, n):
    def pairs(sentences):
        return {pair for sentence in sentences for pair in itertools.permutations(set(sentence.tolist()), 2)}

    early, late = pairs(first), pairs(second)
    return len(early & late) / len(early) / (len(late) / (n * (n - 1)))


@given(st.integers(0, 1000))
def test_comebacks_and_meetings_agree_with_brute_force(seed):
    rng = np.random.default_rng(seed)
    batches = [rng.integers(0, 3, size) for size in (4, 4, 4, 4, 2)]
    assert mixing.comebacks(batches) == pytest.approx(brute_comebacks(batches))
    first, second = (np.split(rng.permutation(12), 3) for _ in range(2))
    second[0] = np.append(second[0], second[0][:2])  # padding repeats cells
    assert mixing.meetings(first, second, 12) == pytest.approx(brute_meetings(first, second, 12))


def test_random_order_is_1():
    rng = np.random.default_rng(0)
    order = rng.permutation(np.repeat(np.arange(400), 20))
    batches = np.split(order, 500)
    assert mixing.distinct_groups(batches) == pytest.approx(1, abs=0.02)
    assert mixing.comebacks(batches) == pytest.approx(1, abs=0.2)
    first, second = (np.split(rng.permutation(2000), 100) for _ in range(2))
    assert mixing.meetings(first, second, 2000) == pytest.approx(1, abs=0.15)


def test_groups_that_stay_together_are_noticed():
    batches = np.split(np.repeat(np.arange(400), 20), 500)
    assert mixing.distinct_groups(batches) < 0.2
    assert mixing.comebacks(batches) < 0.1
    alternating = [np.full(16, number % 2) for number in range(100)]
    assert mixing.comebacks(alternating) == pytest.approx(2, rel=0.01)


def test_sentences_that_stay_the_same_are_noticed():
    sentences = np.split(np.arange(100), 10)
    assert mixing.meetings(sentences, sentences, 100) == pytest.approx(99 / 9)


def test_sizes_of_groups():
    sizes = mixing.group_sizes(2000)
    assert (len(sizes), sizes.min() >= 100, sizes.max() <= 1000) == (2000, True, True)
    assert 300 < np.median(sizes) < 330  # log-uniform: the geometric mean of the bounds


def test_measured_from_the_sampler():
    found = mixing.measure_neighbours(mixing.group_sizes(60), 4096, n_epochs=1)
    assert 0.5 < found["distinct_groups"] < 1.1
    assert found["comebacks"] > 0
    assert 0.5 < mixing.measure_meetings(250, 4096, n_groups=4) < 250 / 32
