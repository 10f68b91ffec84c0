"""Dense rows of sparse ones, on the device."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.jit, static_argnames="n_columns")
def scatter_slices(indptr: jax.Array, indices: jax.Array, data: jax.Array, n_columns: int) -> jax.Array:
    """Scatter the slices of `SparseRows`: (slice, row, column) float32."""
    return jax.vmap(partial(_scatter, n_columns=n_columns))(indptr, indices, data)


def _scatter(indptr: jax.Array, indices: jax.Array, data: jax.Array, n_columns: int) -> jax.Array:
    n_rows = indptr.shape[0] - 1
    # Padding is scattered to a row that does not exist, and dropped.
    row = jnp.searchsorted(indptr, jnp.arange(data.shape[0], dtype=indptr.dtype), side="right") - 1
    dense = jnp.zeros((n_rows, n_columns), jnp.float32)
    return dense.at[row, indices.astype(jnp.int32)].add(data.astype(jnp.float32), mode="drop")
