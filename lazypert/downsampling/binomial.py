"""Exact binomial sampling in JAX for arrays of read counts, most of which are small.

`jax.random.binomial` draws new random numbers for the whole array on every iteration of two loops, whatever
the counts are, and takes a hundred times as long as one draw on a cells-by-genes block. Here one
random number serves every entry with a small mean, and only the few large entries enter a rejection
loop, gathered into short runs first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# The rejection sampler's constants hold from a mean of 10; below it, inversion takes at most about 40 steps.
_LARGE_MEAN = 10.0
# Entries sampled together: the loop's arrays stay in a core's cache (measured: 2x over the whole array).
_BLOCK = 65_536
# Large entries gathered together. In a screen they are a few in a thousand.
_LARGE_BLOCK = 1_024


@jax.jit
def sample_binomial(key: jax.Array, n: jax.Array, p: jax.Array) -> jax.Array:
    """Draw the number of successes of `n` trials of probability `p`, entry by entry.

    Entries with a mean of ``n min(p, 1 - p) < 10`` are found by inverting the distribution function,
    the others by Hörmann's transformed rejection (BTRS). Both are exact up to rounding in the
    dtype: with float32 the distribution function is accurate to 1e-6, for `n` up to 2**24.

    Parameters
    ----------
    key
        A JAX key, typed or raw; scalar.
    n
        (...), float32 or float64: trials, whole numbers from 0 to 2**24 (2**53 in float64). Other
        values, including NaN, give an unspecified result: the caller masks them.
    p
        Broadcastable to `n` without enlarging it, of the dtype of `n`: probabilities in [0, 1].

    Returns
    -------
    jax.Array
        (...), the shape and dtype of `n`: whole numbers from 0 to `n`. ``p == 0`` gives 0 and
        ``p == 1`` gives `n`, always.

    References
    ----------
    W. Hörmann, "The generation of binomial random variates", J. Stat. Comput. Simul. 46 (1993), 101-110.

    Examples
    --------
    >>> n = jnp.array([0.0, 3.0, 5000.0])
    >>> sample_binomial(jax.random.key(0), n, jnp.ones(3)).tolist()
    [0.0, 3.0, 5000.0]
    """
    if n.size == 0:
        return n
    block = min(_BLOCK, n.size)
    n_blocks = -(-n.size // block)

    def in_blocks(values: jax.Array) -> jax.Array:
        flat = jnp.broadcast_to(values, n.shape).reshape(-1)
        return jnp.pad(flat, (0, n_blocks * block - n.size)).reshape(n_blocks, block)

    keys = jax.random.split(key, n_blocks + 1)
    drawn: jax.Array = lax.map(
        lambda args: _sample_block(*args),
        (keys[1:], in_blocks(n), in_blocks(p), in_blocks(uniform_like(keys[0], n))),
    )
    return drawn.reshape(-1)[: n.size].reshape(n.shape)


def _sample_block(key: jax.Array, n: jax.Array, p: jax.Array, uniform: jax.Array) -> jax.Array:
    # Both samplers need p <= 1/2; failures are counted above it. 1 - p is exact there.
    flipped = p > 0.5
    q = jnp.where(flipped, 1 - p, p)
    large = n * q >= _LARGE_MEAN
    few = _invert(jnp.where(large, 0, n), q, uniform)
    drawn = _fill_large(key, few, large, n, q)
    return jnp.where(flipped, n - drawn, drawn)


def uniform_like(key: jax.Array, like: jax.Array) -> jax.Array:
    """Draw numbers in (0, 1] with the shape and dtype of `like`, as fine near 0 as the dtype allows.

    `jax.random.uniform` steps by 2**-23 everywhere, which makes an event of probability 1e-4 wrong by
    one part in a thousand.
    """
    n_bits = np.finfo(like.dtype).bits
    bits = jax.random.bits(key, like.shape, jnp.uint32 if n_bits == 32 else jnp.uint64)
    return (bits.astype(like.dtype) + 0.5) * 2.0**-n_bits


def _invert(n: jax.Array, q: jax.Array, uniform: jax.Array) -> jax.Array:
    """Return the smallest k with ``P(K > k) <= uniform``, for means below `_LARGE_MEAN`.

    The upper tail is compared, not the distribution function: rare events correspond to `uniform`
    near 0, where floats are most closely spaced.
    """
    odds = q / (1 - q)
    log_none = n * jnp.log1p(-q)
    # Rounding can leave a tail of about 1e-7 after the last term; a search in it must be cut short.
    least_term = float(np.finfo(n.dtype).eps) / 100

    def goes_on(j: jax.Array, term: jax.Array, tail: jax.Array) -> jax.Array:
        return (uniform < tail) & (j < n) & (term > least_term)

    def step(
        state: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        j, k, term, tail = state
        k = k + goes_on(j, term, tail).astype(k.dtype)
        term = term * ((n - j) / (j + 1) * odds)
        return j + 1, k, term, tail - term

    start = (jnp.zeros((), n.dtype), jnp.zeros_like(n), jnp.exp(log_none), -jnp.expm1(log_none))
    return lax.while_loop(lambda state: jnp.any(goes_on(state[0], *state[2:])), step, start)[1]


def _fill_large(key: jax.Array, drawn: jax.Array, large: jax.Array, n: jax.Array, q: jax.Array) -> jax.Array:
    """Return `drawn` with the entries marked in `large` sampled by rejection, a block at a time."""
    rank = jnp.cumsum(large, dtype=jnp.int32)
    size = min(_LARGE_BLOCK, large.size)

    def step(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        done, turn, out = state
        # Past the last large entry this is large.size: read as harmless padding, and not written.
        index = jnp.searchsorted(rank, done + 1 + jnp.arange(size, dtype=jnp.int32))
        turn, sampled = _reject(
            key,
            turn,
            n.at[index].get(mode="fill", fill_value=100.0),
            q.at[index].get(mode="fill", fill_value=0.5),
        )
        return done + size, turn, out.at[index].set(sampled, mode="drop")

    zero = jnp.zeros((), jnp.int32)
    return lax.while_loop(lambda state: state[0] < rank[-1], step, (zero, zero, drawn))[2]


def _reject(key: jax.Array, turn: jax.Array, n: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sample by transformed rejection with squeeze (BTRS); needs ``n q >= 10`` and ``q <= 1/2``.

    `turn` numbers the random draws made with `key`; the number of the next one is returned beside the sample.
    """
    spread = jnp.sqrt(n * q * (1 - q))
    b = 1.15 + 2.53 * spread
    a = -0.0873 + 0.0248 * b + 0.01 * q
    alpha = (2.83 + 5.1 / b) * spread
    squeeze = 0.92 - 4.2 / b
    mode = jnp.floor((n + 1) * q)
    # Offsets are counted from the mode, so that floats keep their fraction bits for large n.
    shift = n * q + 0.5 - mode

    def step(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        turn, offset, accepted = state
        # Both in one draw: each random call in a loop costs a third of a second to compile.
        v, centred = uniform_like(jax.random.fold_in(key, turn), jnp.broadcast_to(n, (2, *n.shape)))
        u = centred - 0.5
        edge = 0.5 - jnp.abs(u)
        proposal = jnp.floor((2 * a / edge + b) * u + shift)
        possible = (proposal >= -mode) & (proposal <= n - mode)
        ratio = _log_pmf_ratio(n, q, mode, jnp.where(possible, proposal, 0))
        surely = (edge >= 0.07) & (v <= squeeze)
        accept = surely | (possible & (jnp.log(v * alpha / (a / (edge * edge) + b)) <= ratio))
        offset = jnp.where(accepted, offset, proposal)
        return turn + 1, offset, accepted | accept

    start = (turn, jnp.zeros_like(n), jnp.zeros(n.shape, bool))
    turn, offset, _ = lax.while_loop(lambda state: ~jnp.all(state[2]), step, start)
    return turn, mode + offset


def _log_pmf_ratio(n: jax.Array, q: jax.Array, mode: jax.Array, offset: jax.Array) -> jax.Array:
    """Return ``log P(K = mode + offset) - log P(K = mode)``.

    By ``k! = sqrt(2 pi) (k + 1)^(k + 1/2) e^(-(k + 1) + c(k))``, arranged so that no term grows with
    `n`: a difference of two log factorials loses all of float32's digits at n = 1e5.
    """
    k, rest = mode + offset, n - mode
    correction = (
        _stirling_correction(mode) + _stirling_correction(rest) - _stirling_correction(k) - _stirling_correction(n - k)
    )
    return (
        correction
        - (k + 0.5) * jnp.log1p(offset / (mode + 1))
        - (n - k + 0.5) * jnp.log1p(-offset / (rest + 1))
        + offset * jnp.log(q * (rest + 1) / ((1 - q) * (mode + 1)))
    )


def _stirling_correction(k: jax.Array) -> jax.Array:
    # Accurate to 4e-6 from k = 1 and to 3e-4 at k = 0, which the means seen here reach once in 20,000 draws.
    square = 1 / ((k + 1) * (k + 1))
    return (1 / 12 - (1 / 360 - square / 1260) * square) / (k + 1)
