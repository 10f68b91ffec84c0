"""Randomness that depends on what is asked, never on when, where or by how many it is asked.

Two kinds: `generator` seeds an ordinary NumPy generator from a tuple of words, and `hashed`
gives every (seed, cell, draw) its own number, so that draws for one cell need no others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def generator(*words: int) -> np.random.Generator:
    """Make a generator from non-negative words such as ``(seed, epoch, step)``."""
    return np.random.default_rng(np.random.SeedSequence(words))


def hashed(words: tuple[int, ...], counter: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Return one uniform 64-bit number for each counter: SplitMix64 keyed by `words`.

    Parameters
    ----------
    words
        Non-negative key, such as ``(seed, epoch)``.
    counter
        Any shape, any integer dtype.

    References
    ----------
    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    key = np.random.SeedSequence(words).generate_state(1, np.uint64)
    z = np.asarray(counter).astype(np.uint64) * _GOLDEN + key
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return (z ^ (z >> np.uint64(31))).reshape(np.shape(counter))


def distinct_draws(
    words: tuple[int, ...], counter: NDArray[np.integer], sizes: NDArray[np.integer], n_draws: int
) -> NDArray[np.int64]:
    """Draw `n_draws` numbers below ``sizes[i]`` for each counter, without repeats where there are enough.

    Floyd's algorithm, run over all counters at once. Each number below ``sizes[i]`` is equally
    likely (to one part in 2^64 / size); where ``sizes[i] < n_draws`` draws are with replacement.

    Returns
    -------
    (len(counter), n_draws) int64.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    counter = np.asarray(counter, dtype=np.uint64)
    out = np.empty((len(counter), n_draws), dtype=np.int64)
    enough = sizes >= n_draws
    for j in range(n_draws):
        # Floyd draws the j-th from the first (size - n_draws + j + 1) numbers, and takes the last
        # of these instead when the drawn one is taken already.
        last = np.where(enough, sizes - n_draws + j, sizes - 1)
        drawn = (hashed((*words, j), counter) % (last + 1).astype(np.uint64)).astype(np.int64)
        taken = enough & (out[:, :j] == drawn[:, None]).any(axis=1)
        out[:, j] = np.where(taken, last, drawn)
    return out
