"""Row pointers of compressed sparse matrices: checking them, and cutting matrices into source blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert.converter import BlockSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray


POINTERS_AT_ONCE = 1 << 20
"""Row pointers that are held at once: there may be as many as cells."""


def blocks_by_nnz(matrix: str, indptr: NDArray[np.int64], limit: int) -> list[BlockSpec]:
    """Cut rows into ranges of at most `limit` values, but at least one row."""
    return blocks_of_parts(matrix, [indptr], limit)


def blocks_of_parts(matrix: str, parts: Iterable[NDArray[np.int64]], limit: int) -> list[BlockSpec]:
    """Cut rows as `blocks_by_nnz` does.

    Parameters
    ----------
    parts
        The row pointers in parts, each of which begins with the last element of the one before.
    """
    specs: list[BlockSpec] = []
    start = row = base = 0  # first row of the block and of the part, and the number of values before the block
    for pointers in parts:
        end = row + len(pointers) - 1
        while True:
            stop = max(start + 1, row + int(np.searchsorted(pointers, base + limit, side="right")) - 1)
            if stop >= end:  # it may go on in the next part
                break
            specs.append(BlockSpec(matrix, start, stop))
            start, base = stop, int(pointers[stop - row])
        row = end
    return [*specs, BlockSpec(matrix, start, row)] if start < row else specs


def read_in_parts(read: Callable[[int, int], NDArray[Any]], length: int) -> Iterator[NDArray[Any]]:
    """Yield row pointers in parts, each of which begins with the last element of the one before."""
    for start in range(0, max(1, length - 1), POINTERS_AT_ONCE):
        yield read(start, min(length, start + POINTERS_AT_ONCE + 1))


def indptr_fault(indptr: NDArray[Any], n_rows: int, nnz: int) -> tuple[str, str] | None:
    """Describe what is wrong with row pointers, as (got, expected); None if they are valid."""
    return length_fault(len(indptr), n_rows) or part_fault(indptr, 0, n_rows, nnz)


def length_fault(length: int, n_rows: int) -> tuple[str, str] | None:
    """Describe a wrong number of row pointers; see `indptr_fault`."""
    return None if length == n_rows + 1 else (f"has {length:,} elements", f"{n_rows + 1:,}")


def part_fault(pointers: NDArray[Any], first: int, n_rows: int, nnz: int) -> tuple[str, str] | None:
    """Describe what is wrong with the row pointers from element `first`; see `indptr_fault`."""
    if first == 0 and pointers[0] != 0:
        return f"starts at {pointers[0]}", "0"
    decreases = pointers[1:] < pointers[:-1]
    if decreases.any():
        return f"decreases at element {first + int(np.argmax(decreases)) + 1}", "no decrease"
    if first + len(pointers) == n_rows + 1 and pointers[-1] != nnz:
        return f"ends at {pointers[-1]:,}", f"{nnz:,}, the number of stored values"
    return None


def row_pointers(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """(n + 1,) row pointers of rows of the given lengths."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
