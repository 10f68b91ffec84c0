"""Keys that cells and runs are sorted by: cell type, perturbation, condition and dataset as one integer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lazypert.screen.conditions import Conditions


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
