"""Batches in JAX: dtypes, shardings and the transfer to devices.

Only what needs JAX imports this module, because loading batches as NumPy arrays should not wait for its import.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from lazypert.errors import ConfigError


def row_dtype() -> type[np.signedinteger[Any]]:
    """Dtype of row numbers: a device keeps only the lower half of 64-bit integers outside JAX's 64-bit mode."""
    return np.int64 if jax.config.jax_enable_x64 else np.int32  # type: ignore[attr-defined]


def put_on_device(
    large: dict[str, Any], small: dict[str, Any], sharding: jax.sharding.Sharding | None
) -> dict[str, Any]:
    """Arrays on the device; memory that the device can share with the host is not copied."""
    if sharding is None:
        # Small arrays are transferred five times as fast by a compiled function as by device_put.
        return jax.device_put(large) | _to_default_device(small)
    if sharding.is_fully_addressable:
        return jax.device_put(large | small, sharding)
    from_local: Any = jax.make_array_from_process_local_data
    return jax.tree.map(lambda array: from_local(sharding, array), large | small)


@jax.jit
def _to_default_device(tree: Any) -> Any:
    return tree


def count_slices(sharding: jax.sharding.Sharding, n_rows: int) -> int:
    """Number of devices that this process's rows of a batch are spread over."""
    n_processes = 1 if sharding.is_fully_addressable else jax.process_count()
    try:
        (rows_per_device,) = sharding.shard_shape((n_rows * n_processes,))
    except ValueError as error:
        raise ConfigError(
            f"sharding: got {sharding!r}, which cannot divide a batch of {n_rows * n_processes} cells: {error}, "
            "expected one whose first axis divides sentence_size * sentences_per_batch."
        ) from error
    return max(1, n_rows // rows_per_device)
