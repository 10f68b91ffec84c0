"""From sparse rows in memory, wherever they lie, to the arrays of a batch. Kernels without the GIL."""

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
    """What is done to the values of a row, in this order.

    Attributes
    ----------
    columns
        Which columns to take; None takes all.
    n_columns
        Width of the output.
    fraction, target_depth
        Keep each read with this probability; or with ``min(1, target_depth / reads of the row)``.
    target_sum
        Scale each row to this sum over *all* columns, then take ``log1p``; None leaves values alone.
    """

    columns: ColumnSelection | None
    n_columns: int
    fraction: float = 1.0
    target_depth: float | None = None
    target_sum: float | None = None

    @property
    def changes_values(self) -> bool:
        """Whether values come out as others than they are stored."""
        return self.fraction < 1 or self.target_depth is not None or self.target_sum is not None


@dataclass(frozen=True, slots=True, eq=False)
class RowPointers:
    """Rows that lie in several blocks of one matrix, by their addresses.

    Attributes
    ----------
    index_at, value_at
        (n,) uint64 address of each row's column numbers and values.
    length
        (n,) int64 stored values of each row.
    total
        (n,) float64 sum of each row over all columns; NaN where that is the sum of what is stored.
    blocks
        Where the rows lie, at least one; all of the same dtypes. They stay alive as long as this.
    """

    index_at: NDArray[np.uint64]
    value_at: NDArray[np.uint64]
    length: NDArray[np.int64]
    total: NDArray[np.float64]
    blocks: Sequence[RowView]

    @classmethod
    def whole(cls, block: RowView) -> RowPointers:
        """All rows of one block."""
        start = block.offsets.astype(np.uint64)
        return cls(
            np.uint64(block.indices.ctypes.data) + start * np.uint64(block.indices.itemsize),
            np.uint64(block.data.ctypes.data) + start * np.uint64(block.data.itemsize),
            block.lengths,
            _totals(block),
            [block],
        )

    @classmethod
    def pick(cls, parts: Sequence[RowPointers], which: NDArray[np.integer], row: NDArray[np.integer]) -> RowPointers:
        """Rows by the number of the part they are in, and their number in it."""
        blocks = [block for part in parts for block in part.blocks]
        if len({(block.indices.dtype, block.data.dtype) for block in blocks}) > 1:
            raise TypeError("blocks differ in dtype")  # only we could have made such blocks
        of = np.cumsum([0, *map(len, parts)])[which] + row
        index_at, value_at, length, total = (
            np.concatenate([getattr(part, name) for part in parts])[of]
            for name in ("index_at", "value_at", "length", "total")
        )
        return cls(index_at, value_at, length, total, blocks)

    def __len__(self) -> int:
        return len(self.length)

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> RowPointers:
        return RowPointers(self.index_at[rows], self.value_at[rows], self.length[rows], self.total[rows], self.blocks)

    def to_dense(self, treatment: RowTransform, keys: NDArray[np.uint64], out: NDArray[np.float32]) -> None:
        """Fill `out`, (n, n_columns) float32, with the rows.

        Parameters
        ----------
        keys
            (n,) uint64 random number of each row, which decides what reads it keeps.
        """
        treated = _arguments(treatment)
        _dense(*self._arguments(), keys, *treated, out)

    def count(self, treatment: RowTransform) -> NDArray[np.int64]:
        """(n,) values of each row that `pack` will write."""
        if treatment.columns is None:
            return self.length
        counts = np.empty(len(self), np.int64)
        like = self.blocks[0].indices[:0]
        _count(self.index_at, self.length, like, treatment.columns.lookup, treatment.n_columns, counts)
        return counts

    def pack(
        self,
        treatment: RowTransform,
        keys: NDArray[np.uint64],
        indptr: NDArray[np.int32],
        indices: NDArray[Any],
        values: NDArray[Any],
    ) -> None:
        """Write the rows one after another; whatever `indices` and `values` hold beyond becomes 0.

        Parameters
        ----------
        indptr
            (n + 1,) the bounds of the rows, from the running sum of `count`.
        """
        _pack(*self._arguments(), keys, *_arguments(treatment), indptr, indices, values)

    def _arguments(self) -> tuple[Any, ...]:
        like = self.blocks[0]
        return self.index_at, self.value_at, self.length, self.total, like.indices[:0], like.data[:0]


def _totals(block: RowView) -> NDArray[np.float64]:
    if block.totals is None:
        return np.full(len(block.offsets), np.nan)
    return np.where(np.isnan(block.totals), 0.0, block.totals)  # of rows with a NaN: they have no total


def _arguments(treatment: RowTransform) -> tuple[Any, ...]:
    return (
        np.empty(0, np.uint16) if treatment.columns is None else treatment.columns.lookup,
        treatment.n_columns,
        treatment.columns is None,
        treatment.changes_values,
        float(treatment.fraction),
        float(treatment.target_depth or 0.0),
        float(treatment.target_sum or 0.0),
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
def _treat(values: Any, total: Any, key: Any, fraction: Any, target_depth: Any, target_sum: Any, out: Any) -> None:
    """Values of one row, treated, into `out`."""
    if np.isnan(total):
        total = sum_of(values)
    keep = fraction
    if target_depth > 0.0:
        keep = min(1.0, target_depth / total) if total > 0.0 else 1.0
    if keep < 1.0:
        total = 0.0
        below = np.uint64(keep * 9007199254740992.0)  # of 2^53 equally likely numbers
        for k in range(len(values)):
            kept = 0
            for _ in range(np.int64(values[k])):  # every read by itself: exactly binomial
                key += GOLDEN
                kept += (mix(key) >> np.uint64(11)) < below
            out[k] = kept
            total += kept
    else:
        for k in range(len(values)):
            out[k] = values[k]
    if target_sum > 0.0:
        kept = out[: len(values)]
        scale_log1p(kept, target_sum / total if total > 0.0 else 0.0, kept)


@kernel
def _dense(
    index_at: Any, value_at: Any, length: Any, total: Any, index_like: Any, value_like: Any, keys: Any,
    lookup: Any, n_columns: Any, all_columns: Any, changes: Any, fraction: Any, target_depth: Any, target_sum: Any,
    out: Any,
) -> None:  # fmt: skip
    width, mask = np.uint64(n_columns), np.uint64(len(lookup) - 1)
    work = np.empty(length.max() if changes and len(length) else 0, np.float32)
    # Left-out columns are written too, beyond the row's end: that is faster than to ask each time.
    longer = np.zeros(0 if all_columns else n_columns + 1, np.float32)
    for i in range(len(length)):
        indices = _array_at(index_at[i], length[i], index_like)
        values = _array_at(value_at[i], length[i], value_like)
        if changes:
            _treat(values, total[i], keys[i], fraction, target_depth, target_sum, work)
        if all_columns:
            row = out[i]
            row[:] = 0
            for k in range(length[i]):
                col = np.uint64(indices[k])
                if col < width:  # keeps a store of wrong content from writing elsewhere
                    row[col] = work[k] if changes else values[k]
        else:
            longer[:] = 0
            for k in range(length[i]):
                longer[np.uint64(lookup[np.uint64(indices[k]) & mask])] = work[k] if changes else values[k]
            out[i, :] = longer[:n_columns]


@kernel
def _count(index_at: Any, length: Any, index_like: Any, lookup: Any, n_columns: Any, counts: Any) -> None:
    mask = np.uint64(len(lookup) - 1)
    for i in range(len(length)):
        indices = _array_at(index_at[i], length[i], index_like)
        count = 0
        for k in range(length[i]):
            count += lookup[np.uint64(indices[k]) & mask] < n_columns
        counts[i] = count


@kernel
def _pack(
    index_at: Any, value_at: Any, length: Any, total: Any, index_like: Any, value_like: Any, keys: Any,
    lookup: Any, n_columns: Any, all_columns: Any, changes: Any, fraction: Any, target_depth: Any, target_sum: Any,
    indptr: Any, out_indices: Any, out_values: Any,
) -> None:  # fmt: skip
    mask = np.uint64(len(lookup) - 1)
    longest = length.max() if len(length) else 0
    work = np.empty(longest if changes else 0, np.float32)
    kept_indices = np.empty(0 if all_columns else longest + 1, out_indices.dtype)
    kept_values = np.empty(0 if all_columns else longest + 1, out_values.dtype)
    for i in range(len(length)):
        indices = _array_at(index_at[i], length[i], index_like)
        values = _array_at(value_at[i], length[i], value_like)
        into_indices, into_values = out_indices[indptr[i] : indptr[i + 1]], out_values[indptr[i] : indptr[i + 1]]
        if changes:
            _treat(values, total[i], keys[i], fraction, target_depth, target_sum, work)
        if all_columns:
            for k in range(len(into_indices)):
                into_indices[k] = indices[k]
            if changes:
                for k in range(len(into_values)):
                    into_values[k] = work[k]
            else:
                for k in range(len(into_values)):
                    into_values[k] = values[k]
            continue
        at = 0
        for k in range(length[i]):
            into = lookup[np.uint64(indices[k]) & mask]
            kept_indices[at] = into
            kept_values[at] = work[k] if changes else values[k]
            at += into < n_columns  # else the next one takes its place
        into_indices[:] = kept_indices[: len(into_indices)]
        into_values[:] = kept_values[: len(into_values)]
    end = indptr[len(length)]
    out_indices[end:] = 0
    out_values[end:] = 0
