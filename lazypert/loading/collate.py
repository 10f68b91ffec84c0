"""Collation: from the rows of a block to a batch on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.errors import ConfigError
from lazypert.loading.batch import PerturbationBatch, SparseRows
from lazypert.loading.row_pointers import RowPointers, RowTransform

if TYPE_CHECKING:
    import jax
    from numpy.typing import NDArray

    from lazypert.loading.block_reader import Block
    from lazypert.loading.buffer_pool import BufferPool
    from lazypert.loading.cell_metadata import CellMetadata
    from lazypert.loading.config import ArrayKind, Layout

# A sparse batch has the capacity of an average one plus a margin; larger batches grow it geometrically, in whole
# units. Nearly all batches therefore have the same shape, and jit compiles once.
_CAPACITY_MARGIN, _CAPACITY_GROWTH, _CAPACITY_UNIT = 1.15, 1.25, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class CollateConfig:
    """Options of `Collator`.

    Parameters
    ----------
    batch_size, sentence_size, n_basal_samples
        Cells per batch, cells per sentence, and controls per cell.
    layout, to, sharding
        As in `LoaderConfig`.
    nnz_per_cell
        Expected number of values per cell.
    is_zero_copy
        Whether a batch shows rows as they are stored, so that rows whose offsets were given by
        `Collator.padded_layout` need not be copied.
    """

    batch_size: int
    sentence_size: int
    n_basal_samples: int
    layout: Layout
    to: ArrayKind
    sharding: jax.sharding.Sharding | None = None
    nnz_per_cell: float
    is_zero_copy: bool


class Collator:
    """Collates batches from blocks. Thread-safe.

    Parameters
    ----------
    config
        Sizes and format of a batch.
    transform
        Steps applied to sparse rows. Embeddings are left unchanged.
    metadata
        Provides one-hot vectors and features of labels.
    buffers
        Allocates the arrays of a batch.
    """

    def __init__(
        self, config: CollateConfig, transform: RowTransform, metadata: CellMetadata, buffers: BufferPool
    ) -> None:
        self._config, self._transform, self._metadata, self._buffers = config, transform, metadata, buffers
        self._n_slices = 1
        if config.to == "jax":
            from lazypert.loading import jax_arrays

            self._jax = jax_arrays
            if config.sharding is not None:
                self._n_slices = jax_arrays.count_slices(config.sharding, config.batch_size)
        self._rows_per_slice = config.batch_size // self._n_slices
        if config.layout == "csr" and config.sharding is not None and not config.sharding.is_fully_addressable:
            # Each process would choose the capacity of its rows independently.
            raise ConfigError(
                "layout: got 'csr' with a sharding over several processes, expected 'dense'. "
                "The shapes of sparse rows would differ between processes."
            )

    def batch(self, block: Block, number: int) -> PerturbationBatch:
        """Collate batch `number` of a block."""
        size, n = self._config.batch_size, self._config.n_basal_samples
        cells, controls = slice(number * size, (number + 1) * size), slice(number * size * n, (number + 1) * size * n)
        basal = self._features(block.controls, block.control_keys, controls) if n else None
        if isinstance(basal, np.ndarray):
            basal = basal.reshape(size, n, -1)
        metadata = {name: values[cells] for name, values in block.metadata.items()}
        large = {"counts": self._features(block.cells, block.cell_keys, cells, may_share=True), "controls": basal}
        small: dict[str, Any] = {name: values[cells] for name, values in block.columns.items()}
        if "barcode" in metadata:
            small["barcode"] = metadata.pop("barcode")
        small["obs"] = metadata
        if self._metadata.axis_vectors:
            small |= self._metadata.label_vectors(small)
        if self._config.to == "jax":
            fields = self._jax.put_on_device(large, small, self._config.sharding)
        else:
            fields = large | small
        return PerturbationBatch(**fields, sentence_size=self._config.sentence_size)

    def _features(self, rows: Any, keys: NDArray[np.uint64], selection: slice, *, may_share: bool = False) -> Any:
        """Features of rows of a block; with `may_share`, all rows of one row view, in its order, are not copied."""
        if not isinstance(rows, RowPointers):
            return np.ascontiguousarray(rows[selection])
        if self._config.layout == "csr":
            view = self._zero_copy(rows, selection) if may_share else None
            return self._pack(rows[selection], keys[selection]) if view is None else view
        out = self._buffers.take((selection.stop - selection.start, self._transform.n_columns), np.float32)
        rows[selection].to_dense(self._transform, keys[selection], out)
        return out

    def padded_layout(self, lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
        """Offsets that let batches show rows without a copy: slices that have equal capacity within a batch."""
        ends = np.cumsum(lengths.reshape(-1, self._n_slices, self._rows_per_slice), axis=2)
        n_values = ends[:, :, -1].max(axis=1)
        capacity = np.array([self._capacity(self._rows_per_slice, n) for n in n_values.tolist()])
        per_slice = np.repeat(capacity, self._n_slices)
        slice_start = (np.cumsum(per_slice) - per_slice).reshape(-1, self._n_slices, 1)
        return (ends - lengths.reshape(ends.shape) + slice_start).ravel(), int(per_slice.sum())

    def _zero_copy(self, rows: RowPointers, selection: slice) -> SparseRows | None:
        """Rows in place, if they lie at the offsets of `padded_layout`; None for other rows."""
        view = rows.views[0]
        if not self._config.is_zero_copy or len(rows.views) > 1 or len(view.offsets) != len(rows):
            return None
        lengths = view.lengths[selection].reshape(self._n_slices, self._rows_per_slice)
        indptr = np.zeros((self._n_slices, self._rows_per_slice + 1), np.int32)
        np.cumsum(lengths, axis=1, out=indptr[:, 1:])
        capacity = self._capacity(self._rows_per_slice, int(indptr[:, -1].max()))
        start = int(view.offsets[selection.start])
        stop = start + self._n_slices * capacity
        next_start = view.offsets[selection.stop] if selection.stop < len(rows) else len(view.data)
        slice_starts = view.offsets[selection].reshape(lengths.shape)[:, 0]
        if stop != next_start or (slice_starts != np.arange(start, stop, capacity)).any():
            return None
        indices, data = (array[start:stop].reshape(self._n_slices, capacity) for array in (view.indices, view.data))
        for number, end in enumerate(indptr[:, -1].tolist()):
            indices[number, end:] = 0
            data[number, end:] = 0
        return _sparse_rows(indptr, indices, data, self._transform.n_columns)

    def _pack(self, rows: RowPointers, keys: NDArray[np.uint64]) -> SparseRows:
        """Copy rows into new memory."""
        n_slices, transform = self._n_slices, self._transform
        per_slice = len(rows) // n_slices
        counts = rows.count(transform).reshape(n_slices, per_slice)
        indptr = np.zeros((n_slices, per_slice + 1), np.int32)
        np.cumsum(counts, axis=1, out=indptr[:, 1:])
        capacity = self._capacity(per_slice, int(indptr[:, -1].max()))
        view = rows.views[0]
        indices = self._buffers.take((n_slices, capacity), view.indices.dtype)
        # Outside JAX's 64-bit mode, a device would keep only the lower half of 64-bit integers.
        as_stored = view.data.dtype.itemsize <= 4 and not transform.changes_values
        data = self._buffers.take((n_slices, capacity), view.data.dtype if as_stored else np.float32)
        for number in range(n_slices):
            of_slice = slice(number * per_slice, (number + 1) * per_slice)
            rows[of_slice].pack(transform, keys[of_slice], indptr[number], indices[number], data[number])
        return _sparse_rows(indptr, indices, data, transform.n_columns)

    def _capacity(self, n_rows: int, n_values: int) -> int:
        """Capacity for `n_values` values of `n_rows` rows."""
        capacity = n_rows * min(self._config.nnz_per_cell * _CAPACITY_MARGIN, self._transform.n_columns)
        while capacity < n_values:
            capacity *= _CAPACITY_GROWTH
        return -(-int(capacity + 1) // _CAPACITY_UNIT) * _CAPACITY_UNIT


def _sparse_rows(indptr: Any, indices: Any, data: Any, n_columns: int) -> SparseRows:
    return SparseRows(indptr, indices, data, n_columns)  # holds NumPy arrays until the batch is on the device
