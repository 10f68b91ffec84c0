"""Row pointers of compressed sparse matrices: checking them, and cutting matrices into source blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.converter import BlockSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray


def blocks_by_nnz(matrix: str, indptr: NDArray[np.int64], limit: int) -> list[BlockSpec]:
    """Cut rows into ranges of at most `limit` values, but at least one row."""
    specs, start, end = [], 0, len(indptr) - 1
    while start < end:
        stop = int(np.searchsorted(indptr, indptr[start] + limit, side="right")) - 1
        stop = min(end, max(stop, start + 1))
        specs.append(BlockSpec(matrix, start, stop))
        start = stop
    return specs


def indptr_fault(indptr: NDArray[Any], n_rows: int, nnz: int) -> tuple[str, str] | None:
    """Describe what is wrong with row pointers, as (got, expected); None if they are valid."""
    if len(indptr) != n_rows + 1:
        return f"has {len(indptr):,} elements", f"{n_rows + 1:,}"
    if indptr[0] != 0:
        return f"starts at {indptr[0]}", "0"
    decreases = indptr[1:] < indptr[:-1]
    if decreases.any():
        return f"decreases at element {int(np.argmax(decreases)) + 1}", "no decrease"
    if indptr[-1] != nnz:
        return f"ends at {indptr[-1]:,}", f"{nnz:,}, the number of stored values"
    return None


def row_pointers(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """(n + 1,) row pointers of rows of the given lengths."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
