"""Batches of static shape. They are JAX pytrees, but need JAX only where it is used."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.fork import forkable_lock

if TYPE_CHECKING:
    import jax
    from scipy.sparse import csr_matrix

_STATIC = {"static": True}
"""Metadata of fields that JAX treats as constants."""

_pytrees: set[type] = set()
_REGISTRATION = forkable_lock()


def _register(cls: type) -> None:
    """Make a class a JAX pytree, once JAX is imported: NumPy batches should not have to wait for its import."""
    if "jax" not in sys.modules or cls in _pytrees:
        return
    from jax import tree_util

    with _REGISTRATION:
        if cls not in _pytrees:
            tree_util.register_dataclass(cls)
            _pytrees.add(cls)


@dataclass(frozen=True, slots=True, repr=False)
class SparseRows:
    """Compressed sparse rows, padded to a static shape: a JAX pytree.

    The ``B`` rows are divided into ``S`` slices of ``B / S`` rows, one for each device that the batch is
    spread over (by default one). Each slice has a capacity of ``C`` values.

    Attributes
    ----------
    indptr
        (S, B / S + 1) int32: the values of row ``i`` of slice ``s`` are ``indptr[s, i]`` to
        ``indptr[s, i + 1]``.
    indices
        (S, C) unsigned column number of each value, uint16 if they all fit; 0 after the last row.
    data
        (S, C) values: as stored if they take at most four bytes, otherwise float32; 0 after the last row.
        Stored counts are unsigned: differences of them wrap around, so convert them to floats first.
    n_columns
        Number of columns (static).
    """

    indptr: jax.Array
    indices: jax.Array
    data: jax.Array
    n_columns: int = field(metadata=_STATIC)

    def __post_init__(self) -> None:
        _register(type(self))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""
        n_slices, n_bounds = self.indptr.shape
        return n_slices * (n_bounds - 1), self.n_columns

    def to_dense(self) -> jax.Array:
        """(B, n_columns) float32. Intended for the device: call it inside `jax.jit`."""
        from lazypert.loading.scatter import scatter_slices

        return scatter_slices(self.indptr, self.indices, self.data, self.n_columns).reshape(self.shape)

    def to_scipy(self) -> csr_matrix:
        """Copy of the rows as a SciPy matrix in host memory, float32, or float64 for stored 32-bit integers.

        The dtype is a float, because differences of unsigned integers wrap around.
        """
        from scipy.sparse import csr_matrix

        indptr, indices, data = (np.asarray(array) for array in (self.indptr, self.indices, self.data))
        lengths, n_values = np.diff(indptr, axis=1).ravel(), indptr[:, -1]
        columns, values = (
            np.concatenate([row[:n] for row, n in zip(array, n_values, strict=True)]) for array in (indices, data)
        )
        values = values.astype(np.result_type(values.dtype, np.float32), copy=False)
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        out = csr_matrix((values, columns.astype(np.int32), bounds), shape=self.shape)
        out.sort_indices()
        return out

    def __repr__(self) -> str:
        arrays = ", ".join(f"{name} {_describe(getattr(self, name))}" for name in ("indptr", "indices", "data"))
        return f"SparseRows(n_columns={self.n_columns}: {arrays})"


def _describe(value: Any) -> str:
    """Dtype and shape, such as ``float32[28,200]``; the repr of anything else."""
    if isinstance(value, SparseRows) or not (hasattr(value, "dtype") and hasattr(value, "shape")):
        return repr(value)
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PerturbationBatch:
    """Sentences of cells and their controls: a JAX pytree of `jax.Array`, or of NumPy arrays on request.

    With ``B = sentences_per_batch * sentence_size`` cells, ``K = n_basal_samples`` and ``G`` features:

    Attributes
    ----------
    counts
        (B, G) float32 features of the cells, or `SparseRows`. The cells of a sentence are adjacent.
    controls
        (B, K, G) float32 features of each cell's matched controls; or `SparseRows` of ``B * K`` rows, with
        the controls of a cell adjacent; or None without controls.
    pert_code, cell_type_code, batch_code, dataset_code
        (B,) int32 codes of labels, as in the source's categories; -1 for a missing label. All cells of a sentence
        are of one dataset.
    condition_code
        (B,) int32 number of each cell's condition, a row of ``loader.conditions``; None without covariates. All cells
        of a sentence are of one condition.
    is_control
        (B,) bool: the cell is itself a control.
    is_padding
        (B,) bool: the cell was resampled to fill a short sentence or batch. Leave it out of averages that
        must count each cell once.
    row
        (B,) int32 store row of each cell; int64 as `jax.Array` in JAX's 64-bit mode.
    control_row
        (B, K) store row of each control, or None without controls.
    pert_emb
        (B, E) float32 one-hot vectors, or the features given for each perturbation; None unless requested.
    cell_type_onehot, batch_onehot
        (B, n_labels) float32; None unless requested.
    barcode
        (B, W) uint8 cell names as UTF-8, padded with zeros; None unless requested. See `barcodes`.
    obs
        Requested obs columns by name. Numbers are (B,) as stored (as `jax.Array`, 64-bit ones become
        32-bit outside JAX's 64-bit mode), labels are (B,) int32 codes into ``loader.obs_labels[name]``,
        and strings are (B, W) uint8.
    sentence_size
        Cells per sentence (static).
    """

    counts: jax.Array | SparseRows
    controls: jax.Array | SparseRows | None
    pert_code: jax.Array
    cell_type_code: jax.Array
    batch_code: jax.Array
    dataset_code: jax.Array
    is_control: jax.Array
    is_padding: jax.Array
    row: jax.Array
    condition_code: jax.Array | None = None
    control_row: jax.Array | None = None
    pert_emb: jax.Array | None = None
    cell_type_onehot: jax.Array | None = None
    batch_onehot: jax.Array | None = None
    barcode: jax.Array | None = None
    obs: dict[str, Any]
    sentence_size: int = field(metadata=_STATIC)

    def __post_init__(self) -> None:
        _register(type(self))

    def barcodes(self) -> list[str]:
        """Cell names as strings; empty unless ``extras`` had ``"barcode"``."""
        if self.barcode is None:
            return []
        return [bytes(row).rstrip(b"\0").decode() for row in np.asarray(self.barcode)]

    def __repr__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "obs"}
        values |= {f"obs[{name!r}]": self.obs[name] for name in list(self.obs)[:3]}
        items = [f"{name} {_describe(value)}" for name, value in values.items() if value is not None]
        items += ["..."] * (len(self.obs) > 3)
        # Lines break only between items.
        text = ", ".join(item.replace(" ", "\N{NO-BREAK SPACE}") for item in items)
        text = textwrap.fill(text, 116, initial_indent="    ", subsequent_indent="    ")
        return "PerturbationBatch(\n" + text.replace("\N{NO-BREAK SPACE}", " ") + "\n)"
