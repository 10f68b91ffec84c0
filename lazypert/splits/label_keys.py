"""64-bit keys of labels: what is chosen at random is a function of the text of a label, not of its code.

Codes change when another label is added to a screen; keys don't.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.kernels import kernel
from lazypert._internal.randomness import GOLDEN, counter_hash, mix
from lazypert.screen.cell_order import name_hashes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups

_LABELS = 303  # stream of random numbers


def group_keys(groups: Groups) -> NDArray[np.uint64]:
    """(n_runs,) key of the cell type, perturbation and covariates of each run; arbitrary where one is missing."""
    keys = np.zeros(len(groups.start), dtype=np.uint64)
    for axis in ("cell_type", "perturbation"):
        keys = combine_keys(keys, np.append(name_hashes(groups.labels[axis]), np.uint64(0))[groups.codes[axis]])
    for labels in groups.conditions.labels.values():
        keys = combine_keys(keys, name_hashes(labels)[groups.condition])
    return keys


def combine_keys(keys: NDArray[np.uint64], more: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """(n,) key of each pair of keys."""
    out = np.empty(len(keys), dtype=np.uint64)
    _combine(keys, more, out)
    return out


@kernel
def _combine(keys: Any, more: Any, out: Any) -> None:
    for i in range(len(keys)):
        out[i] = mix(keys[i] * GOLDEN + more[i])


def rank_labels(labels: Sequence[tuple[str, ...]], seed: int) -> NDArray[np.int64]:
    """(n,) numbers of labels in a random order that depends on their text and the seed only.

    Parameters
    ----------
    labels
        Sorted, with the same number of texts in each.
    """
    keys = np.zeros(len(labels), dtype=np.uint64)
    for texts in zip(*labels, strict=True):
        keys = combine_keys(keys, name_hashes(texts))
    return np.argsort(counter_hash((seed, _LABELS), keys), kind="stable")
