"""From a block to a batch on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lazypert.errors import ConfigError
from lazypert.loading.batch import PerturbationBatch, SparseRows
from lazypert.loading.row_pointers import RowPointers, RowTransform

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.loading.block_reader import Block
    from lazypert.loading.buffer_pool import BufferPool
    from lazypert.loading.cell_metadata import CellMetadata


class Collator:
    """Makes batches of blocks. Called from several threads at once.

    Parameters
    ----------
    annotations
        What else to say of the cells.
    treatment
        What to do to sparse rows; blocks of embeddings are left as they are.
    sparse
        Give `SparseRows`, not dense arrays.
    nnz_per_cell
        Stored values of an average cell.
    batch_size, sentence_size, n_basal_samples
        Cells of a batch and of a sentence, and controls of a cell.
    on_device
        Give `jax.Array`, not NumPy arrays.
    sharding
        Over which devices; None for the default one.
    buffers
        Where memory comes from.
    is_ready_made
        Whether rows as they were read are what a batch shows, so that none need be copied where they
        were placed by `place_padded`.
    """

    def __init__(
        self,
        annotations: CellMetadata,
        treatment: RowTransform,
        *,
        sparse: bool,
        nnz_per_cell: float,
        batch_size: int,
        sentence_size: int,
        n_basal_samples: int,
        on_device: bool,
        sharding: jax.sharding.Sharding | None,
        buffers: BufferPool,
        is_ready_made: bool,
    ) -> None:
        self._annotations, self._treatment = annotations, treatment
        self._sparse, self._nnz_per_cell, self._buffers = sparse, nnz_per_cell, buffers
        self._batch_size, self._sentence_size, self._n_controls = batch_size, sentence_size, n_basal_samples
        self._on_device, self._sharding, self._is_ready_made = on_device, sharding, is_ready_made
        self._parts = _count_parts(sharding, batch_size)
        if sparse and sharding is not None and not sharding.is_fully_addressable:
            # How much room rows need, each process would say by its own.
            raise ConfigError(
                "layout: got 'csr' with a sharding over several processes, whose parts of a batch would differ in "
                "shape; expected 'dense'."
            )

    def batch(self, block: Block, number: int) -> PerturbationBatch:
        """Make batch `number` of a block."""
        size, n = self._batch_size, self._n_controls
        cells, controls = slice(number * size, (number + 1) * size), slice(number * size * n, (number + 1) * size * n)
        basal = self._features(block.controls, block.control_keys, controls) if n else None
        if isinstance(basal, np.ndarray):
            basal = basal.reshape(size, n, -1)
        notes = {name: values[cells] for name, values in block.annotations.items()}
        large = {"counts": self._features(block.cells, block.cell_keys, cells), "controls": basal}
        small: dict[str, Any] = {name: values[cells] for name, values in block.columns.items()}
        if "barcode" in notes:
            small["barcode"] = notes.pop("barcode")
        small["obs"] = notes
        if self._annotations.of_axes:
            small |= self._annotations.of_runs(block.run[cells])
        fields = self._placed(large, small) if self._on_device else large | small
        return PerturbationBatch(**fields, sentence_size=self._sentence_size)

    def _features(self, rows: Any, keys: NDArray[np.uint64], which: slice) -> Any:
        if not isinstance(rows, RowPointers):
            return np.ascontiguousarray(rows[which])
        if self._sparse:
            padded = self._padded(rows, which)
            return self._pack(rows[which], keys[which]) if padded is None else padded
        out = self._buffers.take((which.stop - which.start, self._treatment.n_columns), np.float32)
        rows[which].to_dense(self._treatment, keys[which], out)
        return out

    def place_padded(self, lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
        """Where rows of a block go so that each batch is ready made: parts with the same room for each."""
        per_part = self._batch_size // self._parts
        ends = np.cumsum(lengths.reshape(-1, per_part), axis=1)
        room = self._room(per_part, int(ends[:, -1].max()))
        part = np.arange(len(ends))[:, None] * room
        return (ends - lengths.reshape(ends.shape) + part).ravel(), len(ends) * room

    def _padded(self, rows: RowPointers, which: slice) -> SparseRows | None:
        """A batch of a block that was placed by `place_padded`, where it lies; None for other blocks."""
        placed, per_part = rows.blocks[0], self._batch_size // self._parts
        n_parts = len(rows) // per_part
        if not self._is_ready_made or len(rows.blocks) > 1 or len(placed.offsets) != len(rows) or not n_parts:
            return None
        room = self._room(per_part, int(placed.lengths.reshape(n_parts, per_part).sum(axis=1).max()))
        if len(placed.data) != n_parts * room or (placed.offsets[::per_part] != np.arange(n_parts) * room).any():
            return None
        parts = slice(which.start // per_part, which.stop // per_part)
        indptr = np.zeros((self._parts, per_part + 1), np.int32)
        np.cumsum(placed.lengths[which].reshape(self._parts, per_part), axis=1, out=indptr[:, 1:])
        indices, data = placed.indices.reshape(n_parts, room)[parts], placed.data.reshape(n_parts, room)[parts]
        for part, end in enumerate(indptr[:, -1].tolist()):
            indices[part, end:] = 0
            data[part, end:] = 0
        return _sparse_rows(indptr, indices, data, self._treatment.n_columns)

    def _pack(self, rows: RowPointers, keys: NDArray[np.uint64]) -> SparseRows:
        parts, treatment = self._parts, self._treatment
        per_part = len(rows) // parts
        counts = rows.count(treatment).reshape(parts, per_part)
        indptr = np.zeros((parts, per_part + 1), np.int32)
        np.cumsum(counts, axis=1, out=indptr[:, 1:])
        room = self._room(per_part, int(indptr[:, -1].max()))
        like = rows.blocks[0]
        indices = self._buffers.take((parts, room), like.indices.dtype)
        # Without JAX's 64-bit mode a device would take the lower half of longer integers for the whole.
        as_stored = like.data.dtype.itemsize <= 4 and not treatment.changes_values
        data = self._buffers.take((parts, room), like.data.dtype if as_stored else np.float32)
        for part in range(parts):
            some = slice(part * per_part, (part + 1) * per_part)
            rows[some].pack(treatment, keys[some], indptr[part], indices[part], data[part])
        return _sparse_rows(indptr, indices, data, treatment.n_columns)

    def _room(self, n_rows: int, needed: int) -> int:
        """Values to make room for: one of few sizes, of which the first mostly does."""
        room = n_rows * min(self._nnz_per_cell * 1.15, self._treatment.n_columns)
        while room < needed:
            room *= 1.25
        return -(-int(room + 1) // 1024) * 1024

    def _placed(self, large: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
        """The same on the device; memory that the host shares with it is not copied."""
        place = self._sharding
        if place is None:
            # A compiled function takes its arguments to the device in a fifth of the time of device_put.
            return jax.device_put(large) | _to_default_device(small)
        if place.is_fully_addressable:
            return jax.device_put(large | small, place)
        local: Any = jax.make_array_from_process_local_data
        return jax.tree.map(lambda part: local(place, part), large | small)


@jax.jit
def _to_default_device(tree: Any) -> Any:
    return tree


def _count_parts(sharding: jax.sharding.Sharding | None, n_rows: int) -> int:
    """Parts of this process's batch that lie on different devices."""
    if sharding is None:
        return 1
    n_processes = 1 if sharding.is_fully_addressable else jax.process_count()
    try:
        (each,) = sharding.shard_shape((n_rows * n_processes,))
    except ValueError as error:
        raise ConfigError(
            f"sharding: got {sharding!r}, which cannot divide a batch of {n_rows * n_processes} cells: {error}. "
            "Expected one whose first axis divides sentence_size * sentences_per_batch."
        ) from error
    return max(1, n_rows // each)


def _sparse_rows(indptr: Any, indices: Any, data: Any, n_columns: int) -> SparseRows:
    return SparseRows(indptr, indices, data, n_columns)  # of NumPy arrays, until the batch is on the device
