"""Sparse rows addressed by pointers, and the kernels that gather them into the arrays of a batch without the GIL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from lazypert._internal.kernels import kernel
from lazypert._internal.randomness import GOLDEN, mix
from lazypert.sparse.transforms import scale_log1p
from lazypert.sparse.transforms import total as sum_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.sparse.columns import ColumnSelection
    from lazypert.sparse.row_view import RowView


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTransform:
    """Steps that are applied to the values of a row, in this order.

    Attributes
    ----------
    columns
        Columns to select; None selects all.
    n_columns
        Width of the output.
    fraction, target_depth
        Keep each read with probability `fraction`, or with ``min(1, target_depth / reads of the row)``.
    target_sum
        Scale each row to this sum over *all* columns, then take ``log1p``. None leaves values unchanged.
    """

    columns: ColumnSelection | None
    n_columns: int
    fraction: float = 1.0
    target_depth: float | None = None
    target_sum: float | None = None

    @property
    def changes_values(self) -> bool:
        """Whether output values differ from stored ones."""
        return self.fraction < 1 or self.target_depth is not None or self.target_sum is not None


@dataclass(frozen=True, slots=True, eq=False)
class RowPointers:
    """Rows of one matrix, scattered over several row views, by their memory addresses.

    Attributes
    ----------
    index_address, value_address
        (n,) uint64 address of each row's column numbers and values.
    length
        (n,) int64 number of stored values of each row.
    total
        (n,) float64 sum of each row over all columns; NaN if it is the sum of the stored values.
    views
        Row views that own the memory, at least one, all with the same dtypes. Kept alive by this object.
    """

    index_address: NDArray[np.uint64]
    value_address: NDArray[np.uint64]
    length: NDArray[np.int64]
    total: NDArray[np.float64]
    views: Sequence[RowView]

    @classmethod
    def from_view(cls, view: RowView) -> RowPointers:
        """Pointers to all rows of a row view."""
        start = view.offsets.astype(np.uint64)
        return cls(
            np.uint64(view.indices.ctypes.data) + start * np.uint64(view.indices.itemsize),
            np.uint64(view.data.ctypes.data) + start * np.uint64(view.data.itemsize),
            view.lengths,
            _totals(view),
            [view],
        )

    @classmethod
    def gather(
        cls, tables: Sequence[RowPointers], table_index: NDArray[np.integer], row: NDArray[np.integer]
    ) -> RowPointers:
        """Pointers to row ``row[i]`` of ``tables[table_index[i]]``, for each `i`."""
        views = [view for table in tables for view in table.views]
        if len({(view.indices.dtype, view.data.dtype) for view in views}) > 1:
            raise TypeError("row views differ in dtype")  # only lazypert itself could have made such views
        position = np.cumsum([0, *map(len, tables)])[table_index] + row
        index_address, value_address, length, total = (
            np.concatenate([getattr(table, name) for table in tables])[position]
            for name in ("index_address", "value_address", "length", "total")
        )
        return cls(index_address, value_address, length, total, views)

    def __len__(self) -> int:
        return len(self.length)

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> RowPointers:
        return RowPointers(
            self.index_address[rows], self.value_address[rows], self.length[rows], self.total[rows], self.views
        )

    def to_dense(self, transform: RowTransform, keys: NDArray[np.uint64], out: NDArray[np.float32]) -> None:
        """Scatter the rows into `out`, (n, n_columns) float32.

        Parameters
        ----------
        keys
            (n,) uint64 random number of each row, which determines which reads are kept.
        """
        _dense(*self._arguments(), keys, *_arguments(transform), out)

    def count(self, transform: RowTransform) -> NDArray[np.int64]:
        """(n,) number of values that `pack` writes for each row."""
        if transform.columns is None:
            return self.length
        counts = np.empty(len(self), np.int64)
        like = self.views[0].indices[:0]
        _count(self.index_address, self.length, like, transform.columns.lookup, transform.n_columns, counts)
        return counts

    def pack(
        self,
        transform: RowTransform,
        keys: NDArray[np.uint64],
        indptr: NDArray[np.int32],
        indices: NDArray[Any],
        values: NDArray[Any],
    ) -> None:
        """Write the rows one after another, and fill the rest of `indices` and `values` with zeros.

        Parameters
        ----------
        keys
            As in `to_dense`.
        indptr
            (n + 1,) bounds of the rows: 0 and the cumulative sum of `count`.
        """
        _pack(*self._arguments(), keys, *_arguments(transform), indptr, indices, values)

    def _arguments(self) -> tuple[Any, ...]:
        like = self.views[0]
        return self.index_address, self.value_address, self.length, self.total, like.indices[:0], like.data[:0]


def _totals(view: RowView) -> NDArray[np.float64]:
    if view.totals is None:
        return np.full(len(view.offsets), np.nan)
    return np.where(np.isnan(view.totals), 0.0, view.totals)  # a row that contains a NaN has no total


def _arguments(transform: RowTransform) -> tuple[Any, ...]:
    return (
        np.empty(0, np.uint16) if transform.columns is None else transform.columns.lookup,
        transform.n_columns,
        transform.columns is None,
        transform.changes_values,
        float(transform.fraction),
        float(transform.target_depth or 0.0),
        float(transform.target_sum or 0.0),
    )


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(typing_context: Any, address: Any) -> Any:  # noqa: ARG001
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    return types.voidptr(types.uint64), generate


@kernel
def _array_at(address: Any, length: Any, like: Any) -> Any:
    return carray(_pointer(address), (length,), like.dtype)


@kernel
def _transform(values: Any, total: Any, key: Any, fraction: Any, target_depth: Any, target_sum: Any, out: Any) -> None:
    """Write the transformed values of one row to `out`."""
    if np.isnan(total):
        total = sum_of(values)
    probability = fraction
    if target_depth > 0.0:
        probability = min(1.0, target_depth / total) if total > 0.0 else 1.0
    if probability < 1.0:
        total = 0.0
        threshold = np.uint64(probability * 9007199254740992.0)  # of 2^53 equally likely numbers
        for k in range(len(values)):
            reads = 0
            for _ in range(np.int64(values[k])):  # one Bernoulli trial per read: exactly binomial
                key += GOLDEN
                reads += (mix(key) >> np.uint64(11)) < threshold
            out[k] = reads
            total += reads
    else:
        for k in range(len(values)):
            out[k] = values[k]
    if target_sum > 0.0:
        row = out[: len(values)]
        scale_log1p(row, target_sum / total if total > 0.0 else 0.0, row)


@kernel
def _dense(
    index_address: Any, value_address: Any, length: Any, total: Any, index_like: Any, value_like: Any, keys: Any,
    lookup: Any, n_columns: Any, all_columns: Any, changes: Any, fraction: Any, target_depth: Any, target_sum: Any,
    out: Any,
) -> None:  # fmt: skip
    width, mask = np.uint64(n_columns), np.uint64(len(lookup) - 1)
    transformed = np.empty(length.max() if changes and len(length) else 0, np.float32)
    # Columns that are not selected go to one element beyond the row, which is faster than a branch per value.
    padded_row = np.zeros(0 if all_columns else n_columns + 1, np.float32)
    for i in range(len(length)):
        indices = _array_at(index_address[i], length[i], index_like)
        values = _array_at(value_address[i], length[i], value_like)
        if changes:
            _transform(values, total[i], keys[i], fraction, target_depth, target_sum, transformed)
        if all_columns:
            row = out[i]
            row[:] = 0
            for k in range(length[i]):
                col = np.uint64(indices[k])
                if col < width:  # a damaged store must not make this write out of bounds
                    row[col] = transformed[k] if changes else values[k]
        else:
            padded_row[:] = 0
            for k in range(length[i]):
                padded_row[np.uint64(lookup[np.uint64(indices[k]) & mask])] = transformed[k] if changes else values[k]
            out[i, :] = padded_row[:n_columns]


@kernel
def _count(index_address: Any, length: Any, index_like: Any, lookup: Any, n_columns: Any, counts: Any) -> None:
    mask = np.uint64(len(lookup) - 1)
    for i in range(len(length)):
        indices = _array_at(index_address[i], length[i], index_like)
        count = 0
        for k in range(length[i]):
            count += lookup[np.uint64(indices[k]) & mask] < n_columns
        counts[i] = count


@kernel
def _pack(
    index_address: Any, value_address: Any, length: Any, total: Any, index_like: Any, value_like: Any, keys: Any,
    lookup: Any, n_columns: Any, all_columns: Any, changes: Any, fraction: Any, target_depth: Any, target_sum: Any,
    indptr: Any, out_indices: Any, out_values: Any,
) -> None:  # fmt: skip
    mask = np.uint64(len(lookup) - 1)
    longest = length.max() if len(length) else 0
    transformed = np.empty(longest if changes else 0, np.float32)
    selected_indices = np.empty(0 if all_columns else longest + 1, out_indices.dtype)
    selected_values = np.empty(0 if all_columns else longest + 1, out_values.dtype)
    for i in range(len(length)):
        indices = _array_at(index_address[i], length[i], index_like)
        values = _array_at(value_address[i], length[i], value_like)
        row_indices, row_values = out_indices[indptr[i] : indptr[i + 1]], out_values[indptr[i] : indptr[i + 1]]
        if changes:
            _transform(values, total[i], keys[i], fraction, target_depth, target_sum, transformed)
        if all_columns:
            for k in range(len(row_indices)):
                row_indices[k] = indices[k]
            if changes:
                for k in range(len(row_values)):
                    row_values[k] = transformed[k]
            else:
                for k in range(len(row_values)):
                    row_values[k] = values[k]
            continue
        n_selected = 0
        for k in range(length[i]):
            column = lookup[np.uint64(indices[k]) & mask]
            selected_indices[n_selected] = column
            selected_values[n_selected] = transformed[k] if changes else values[k]
            n_selected += column < n_columns  # overwritten unless selected (branchless compaction)
        row_indices[:] = selected_indices[: len(row_indices)]
        row_values[:] = selected_values[: len(row_values)]
    end = indptr[len(length)]
    out_indices[end:] = 0
    out_values[end:] = 0
