"""Reproducible random numbers that depend neither on the order of requests nor on threads.

`generator` seeds an ordinary NumPy generator from several integers. `counter_hash` gives counter-based
random numbers: each is a function of its key and counter alone, so drawing for one cell requires no
numbers of other cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.kernels import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""Increment of SplitMix64: 2^64 divided by the golden ratio."""


def generator(*words: int) -> np.random.Generator:
    """Return a generator seeded with non-negative integers such as ``(seed, epoch, step)``."""
    return np.random.default_rng(np.random.SeedSequence(words))


def counter_hash(words: tuple[int, ...], counter: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Return one uniform 64-bit number per counter: SplitMix64, keyed by `words`.

    Parameters
    ----------
    words
        Key of non-negative integers, such as ``(seed, epoch)``.
    counter
        Any shape, any integer dtype.

    References
    ----------
    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    key = np.random.SeedSequence(words).generate_state(1, np.uint64)
    out = np.asarray(counter).astype(np.uint64).ravel()
    _mix_all(out, key[0])
    return out.reshape(np.shape(counter))


def counter_uniform(words: tuple[int, ...], counter: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return one uniform float64 in [0, 1) per counter; see `counter_hash`."""
    return (counter_hash(words, counter) >> np.uint64(11)).astype(np.float64) / 2**53


def permute_index(
    words: tuple[int, ...], which: NDArray[np.integer], index: NDArray[np.integer], size: NDArray[np.integer]
) -> NDArray[np.int64]:
    """Evaluate random permutations at single elements.

    `words` keys a family of permutations of ``range(size)``; the result is element `index` of
    permutation number `which`. Small permutations are shuffled. Large ones are never stored: a Feistel network
    over the next power of four is applied until the value is below `size` (cycle walking).

    Parameters
    ----------
    words
        Key of non-negative integers.
    which, index, size
        Integers with broadcastable shapes, and ``0 <= index < size``. Where `size` is 0, the result is -1.

    Returns
    -------
    int64 of the broadcast shape.

    References
    ----------
    Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002.
    """
    shape = np.broadcast_shapes(np.shape(which), np.shape(index), np.shape(size))
    keys = np.broadcast_to(counter_hash(words, np.asarray(which)), shape).ravel()
    numbers, sizes = (np.broadcast_to(np.asarray(a, dtype=np.int64), shape).ravel() for a in (index, size))
    out = np.empty(len(keys), dtype=np.int64)
    is_shuffled = (keys[1:] != keys[:-1]) & (sizes[1:] <= _MAX_SHUFFLED)
    n_shuffled = sizes[1:][is_shuffled].sum()
    if n_shuffled <= _FEW_SHUFFLED * len(keys):
        _permute(keys, numbers, sizes, out)
    else:  # elements of one permutation are far apart
        order = np.argsort(keys, kind="stable")
        permuted = np.empty_like(out)
        _permute(keys[order], numbers[order], sizes[order], permuted)
        out[order] = permuted
    return out.reshape(shape)


_MAX_SHUFFLED = 1024  # largest permutation that is shuffled rather than computed
_FEW_SHUFFLED = 8  # numbers that are shuffled for each that is wanted, which take as long as to sort


@kernel
def _permute(keys: Any, numbers: Any, sizes: Any, out: Any) -> None:
    shuffled, shuffled_key, shuffled_size = np.empty(_MAX_SHUFFLED, np.int64), np.uint64(0), np.int64(-1)
    for i in range(len(out)):
        key, size = keys[i], sizes[i]
        if size <= 1:
            out[i] = size - 1
        elif size <= _MAX_SHUFFLED:
            if key != shuffled_key or size != shuffled_size:  # neighbours mostly share a permutation
                _shuffle(key, shuffled[:size])
                shuffled_key, shuffled_size = key, size
            out[i] = shuffled[numbers[i]]
        else:
            out[i] = _feistel(key, numbers[i], size)


@kernel
def mix(z: Any) -> Any:
    """Scramble 64 bits: the output function of SplitMix64, for kernels that add `GOLDEN` themselves."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel
def _mix_all(out: Any, key: Any) -> None:
    for i in range(len(out)):
        out[i] = mix(out[i] * GOLDEN + key)


@kernel
def _shuffle(key: Any, out: Any) -> None:
    for i in range(len(out)):  # Fisher-Yates, inside-out
        key += GOLDEN
        j = np.int64(mix(key) % np.uint64(i + 1))
        out[i] = out[j]
        out[j] = i


@kernel
def _feistel(key: Any, number: Any, size: Any) -> Any:
    half = np.uint64(1)
    while (np.int64(1) << np.int64(half + half)) < size:
        half += np.uint64(1)
    mask, value = (np.uint64(1) << half) - np.uint64(1), np.uint64(number)
    while True:
        left, right = value >> half, value & mask
        for feistel_round in range(4):
            left, right = right, left ^ (mix(key + right + (np.uint64(feistel_round + 1) << np.uint64(56))) & mask)
        value = (left << half) | right
        if np.int64(value) < size:
            return np.int64(value)


def draw_distinct(
    words: tuple[int, ...], counter: NDArray[np.integer], sizes: NDArray[np.integer], n_draws: int
) -> NDArray[np.int64]:
    """Draw `n_draws` distinct numbers below ``sizes[i]`` for each counter.

    Floyd's algorithm, vectorised over the counters. Each number below ``sizes[i]`` is equally likely
    (up to size / 2^64). Where ``sizes[i] < n_draws``, numbers are drawn with replacement.

    Returns
    -------
    (len(counter), n_draws) int64.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    counter = np.asarray(counter, dtype=np.uint64)
    out = np.empty((len(counter), n_draws), dtype=np.int64)
    enough = sizes >= n_draws
    for j in range(n_draws):
        # Floyd's j-th draw is from the first (size - n_draws + j + 1) numbers. If that number is
        # already taken, the last of these replaces it.
        last = np.where(enough, sizes - n_draws + j, sizes - 1)
        drawn = (counter_hash((*words, j), counter) % (last + 1).astype(np.uint64)).astype(np.int64)
        taken = enough & (out[:, :j] == drawn[:, None]).any(axis=1)
        out[:, j] = np.where(taken, last, drawn)
    return out
