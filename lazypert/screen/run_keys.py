"""Keys that cells and runs are sorted by: cell type, perturbation, condition and dataset as one integer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lazypert.screen.conditions import Conditions


MAX_TABLE = 1 << 22
"""Possible keys up to which a table of all of them replaces sorting."""


def in_run_order(
    codes: Mapping[str, NDArray[Any] | None], condition: NDArray[np.int32] | None
) -> list[NDArray[Any] | None]:
    """Codes in the order in which they count for sorting; None stands for code 0 of every cell."""
    return [codes["cell_type"], codes["perturbation"], condition, codes["dataset"]]


def run_radices(labels: Mapping[str, Sequence[str] | NDArray[np.str_]], conditions: Conditions) -> list[int]:
    """Number of labels of each of `in_run_order`."""
    return [len(labels["cell_type"]), len(labels["perturbation"]), len(conditions), len(labels["dataset"])]


def encode(codes: Sequence[NDArray[Any] | None], sizes: Sequence[int], length: int | None = None) -> NDArray[np.int64]:
    """Mixed-radix key of the codes, in which a missing label sorts last."""
    key = np.zeros(next(len(c) for c in codes if c is not None) if length is None else length, dtype=np.int64)
    for code, size in zip(codes, sizes, strict=True):
        key *= size + 1
        if code is not None:
            key += np.where(code < 0, np.int64(size), code)  # a size may not fit into the dtype of the codes
    return key


def decode(key: NDArray[np.int64], sizes: Sequence[int]) -> list[NDArray[np.int32]]:
    """Codes from mixed-radix keys."""
    codes: list[NDArray[np.int32]] = []
    for size in reversed(sizes):
        key, code = np.divmod(key, size + 1)
        codes.append(np.where(code == size, -1, code).astype(np.int32))
    return codes[::-1]


def combinations_of(
    codes: Sequence[NDArray[np.integer]], sizes: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Distinct combinations of the codes of cells.

    Parameters
    ----------
    codes
        (n,) codes of each column, -1 where they are missing. There is at least one column.
    sizes
        Number of labels of each column.

    Returns
    -------
    combinations
        (n_combinations, n_columns) codes of the combinations that occur, in ascending order.
    number
        (n,) int32 combination of each cell.
    """
    key = np.zeros(len(codes[0]), dtype=np.int64)
    found = np.zeros((1, 0), dtype=np.int64)
    for code, size in zip(codes, sizes, strict=True):
        keys, key = _distinct(key * (size + 1) + code + 1, len(found) * (size + 1))
        earlier, own = np.divmod(keys, size + 1)
        found = np.column_stack([found[earlier], own - 1])
    return found, key.astype(np.int32)


def _distinct(keys: NDArray[np.int64], n_possible: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted distinct keys below `n_possible`, and the number of each key among them."""
    if n_possible > MAX_TABLE:
        return np.unique(keys, return_inverse=True)
    occurs = np.bincount(keys, minlength=n_possible) > 0  # no sorting of all cells
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[keys]
