"""What a loader yields: JAX pytrees of static shape."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@partial(jax.tree_util.register_dataclass, data_fields=["indptr", "indices", "data"], meta_fields=["n_columns"])
@dataclass(frozen=True, slots=True)
class SparseRows:
    """Compressed sparse rows, padded so that shapes repeat: a JAX pytree.

    The ``B`` rows lie in ``S`` parts of ``B / S`` rows: one for each device that a batch is spread over,
    by default one. Each part has room for ``C`` values.

    Attributes
    ----------
    indptr
        (S, B / S + 1) int32: values of row ``i`` of part ``s`` are ``indptr[s, i]`` to ``indptr[s, i + 1]``.
    indices
        (S, C) unsigned column of each value, uint16 where that holds all; 0 beyond the last row's.
    data
        (S, C) values as stored if they take up to four bytes, else float32; 0 beyond the last row's.
    n_columns
        Columns (static).
    """

    indptr: jax.Array
    indices: jax.Array
    data: jax.Array
    n_columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        parts, bounds = self.indptr.shape
        return parts * (bounds - 1), self.n_columns

    def to_dense(self) -> jax.Array:
        """(B, n_columns) float32. Meant for the device: call it inside `jax.jit`."""
        return _scatter_parts(self.indptr, self.indices, self.data, self.n_columns).reshape(self.shape)

    def to_scipy(self) -> csr_matrix:
        """Copy of the rows as a SciPy matrix in host memory."""
        from scipy.sparse import csr_matrix

        indptr, indices, data = (np.asarray(part) for part in (self.indptr, self.indices, self.data))
        bounds, used = np.diff(indptr, axis=1).ravel(), indptr[:, -1]
        columns, values = (
            np.concatenate([row[:n] for row, n in zip(part, used, strict=True)]) for part in (indices, data)
        )
        rows = np.concatenate([[0], np.cumsum(bounds)])
        out = csr_matrix((values, columns.astype(np.int32), rows), shape=self.shape)
        out.sort_indices()
        return out


@partial(jax.jit, static_argnames="n_columns")
def _scatter_parts(indptr: jax.Array, indices: jax.Array, data: jax.Array, n_columns: int) -> jax.Array:
    return jax.vmap(partial(_scatter, n_columns=n_columns))(indptr, indices, data)


def _scatter(indptr: jax.Array, indices: jax.Array, data: jax.Array, n_columns: int) -> jax.Array:
    n_rows = indptr.shape[0] - 1
    # What lies beyond the last row is sent to a row that does not exist, and dropped.
    row = jnp.searchsorted(indptr, jnp.arange(data.shape[0], dtype=indptr.dtype), side="right") - 1
    dense = jnp.zeros((n_rows, n_columns), jnp.float32)
    return dense.at[row, indices.astype(jnp.int32)].add(data.astype(jnp.float32), mode="drop")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "counts",
        "controls",
        "pert_code",
        "cell_type_code",
        "batch_code",
        "is_control",
        "is_padding",
        "row",
        "control_row",
        "pert_emb",
        "cell_type_onehot",
        "batch_onehot",
        "barcode",
        "obs",
    ],
    meta_fields=["sentence_size"],
)
@dataclass(frozen=True, slots=True, kw_only=True)
class PerturbationBatch:
    """Sentences of cells and their controls: a JAX pytree, of `jax.Array` or (asked for) NumPy arrays.

    With ``B = sentences_per_batch * sentence_size`` cells, ``K = n_basal_samples`` and ``G`` features:

    Attributes
    ----------
    counts
        (B, G) float32 features of the cells, or `SparseRows`; cells of one sentence lie side by side.
    controls
        (B, K, G) float32 features of each cell's matched controls; `SparseRows` of ``B * K`` rows, those
        of one cell side by side; or None when there are no controls.
    pert_code, cell_type_code, batch_code
        (B,) int32 label numbers, as in the source's categories; -1 for a missing label.
    is_control
        (B,) bool: the cell is itself a control.
    is_padding
        (B,) bool: the cell only fills up a short sentence or batch; leave it out of averages that
        must count each cell once.
    row
        (B,) int32 (int64 with JAX's 64-bit mode) store row of each cell.
    control_row
        (B, K) store row of each control.
    pert_emb
        (B, E) float32 one-hot, or the features given for each perturbation; if asked for.
    cell_type_onehot, batch_onehot
        (B, n_labels) float32; if asked for.
    barcode
        (B, W) uint8 cell names as UTF-8, padded with zeros; if asked for. See `barcodes`.
    obs
        obs columns asked for, by name: (B,) numbers as stored (as `jax.Array`, 64-bit ones become 32-bit
        without JAX's 64-bit mode); of labels int32 codes into ``loader.obs_labels[name]``; (B, W) uint8 texts.
    sentence_size
        Cells a sentence (static).
    """

    counts: jax.Array | SparseRows
    controls: jax.Array | SparseRows | None
    pert_code: jax.Array
    cell_type_code: jax.Array
    batch_code: jax.Array
    is_control: jax.Array
    is_padding: jax.Array
    row: jax.Array
    control_row: jax.Array | None = None
    pert_emb: jax.Array | None = None
    cell_type_onehot: jax.Array | None = None
    batch_onehot: jax.Array | None = None
    barcode: jax.Array | None = None
    obs: dict[str, Any]
    sentence_size: int

    def barcodes(self) -> list[str]:
        """Cell names as texts; empty when they were not asked for."""
        if self.barcode is None:
            return []
        return [bytes(row).rstrip(b"\0").decode() for row in np.asarray(self.barcode)]
