"""The order of cells inside a group: by a hash of their names, so that any interval is a random sample.

Neither the file's order nor anything that was measured has any influence on it. Two files with the same cells
in different orders therefore give the same groups, cell by cell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lazypert._internal.kernels import kernel
from lazypert._internal.partition import partition
from lazypert._internal.randomness import GOLDEN, mix
from lazypert._internal.texts import Texts

if TYPE_CHECKING:
    from numpy.typing import NDArray


_MIN_KEYS = 1024  # possible keys that are always few


def name_hashes(names: Any) -> NDArray[np.uint64]:
    """Return one 64-bit hash per cell name; equal names have equal hashes, on every machine.

    FNV-1a of the name's UTF-8 bytes, scrambled by SplitMix64. Stores keep these hashes, and splits follow from
    them: another function would be another format version.

    Parameters
    ----------
    names
        (n,) texts.

    References
    ----------
    Eastlake et al., "The FNV Non-Cryptographic Hash Algorithm", IETF draft-eastlake-fnv.
    """
    return text_hashes(Texts.of(names))


def text_hashes(texts: Texts) -> NDArray[np.uint64]:
    """Return one 64-bit hash per text; see `name_hashes`."""
    hashes = np.empty(len(texts), dtype=np.uint64)
    _hash_texts(texts.data, texts.bounds, hashes)
    return hashes


@kernel
def _hash_texts(data: Any, bounds: Any, hashes: Any) -> None:
    for i in range(len(hashes)):
        value = np.uint64(0xCBF29CE484222325)
        for k in range(bounds[i], bounds[i + 1]):
            value = (value ^ np.uint64(data[k])) * np.uint64(0x100000001B3)
        hashes[i] = mix(value)


def order_cells(keys: NDArray[np.integer], hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Sort cells by key, and within a key by hash.

    Cells that share both, because their names are equal, get different hashes first. Which of them gets which
    depends on the order in which they are given; nothing else does.

    Parameters
    ----------
    keys
        (n,) key of each cell, such as its group.
    hashes
        (n,) from `name_hashes`.

    Returns
    -------
    order
        (n,) int64 number of the cell at each position.
    hashes
        (n,) the hashes, distinct within each key.
    """
    order = _sorted(keys, hashes)
    is_repeat = np.diff(hashes[order]) == 0
    if is_repeat.any():
        is_repeat &= np.diff(keys[order]) == 0
    if is_repeat.any():
        hashes = hashes.copy()
        _separate(order, is_repeat, hashes)
        order = _sorted(keys, hashes)
    return order, hashes


def _sorted(keys: NDArray[np.integer], hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """``np.lexsort((hashes, keys))``, in half the time if the keys are in a small range."""
    first = int(keys.min(initial=0))
    n_possible = int(keys.max(initial=0)) - first + 1
    if n_possible > max(len(keys), _MIN_KEYS):
        return np.lexsort((hashes, keys))
    order = np.argsort(hashes, kind="stable")
    by_key, _ = partition(keys[order] - first, n_possible)
    return order[by_key]


@kernel
def repeat_hash(hash_of_first: Any, nth: Any) -> Any:
    """Return the hash of the `nth` cell after the first one of the same name and key; uint64 numbers or arrays."""
    return mix(hash_of_first + nth * GOLDEN)


@kernel
def _separate(order: Any, is_repeat: Any, hashes: Any) -> None:
    """Give the second and every later cell of the same name a hash of its own."""
    nth = np.uint64(0)
    for i in range(len(is_repeat)):
        nth = nth + np.uint64(1) if is_repeat[i] else np.uint64(0)
        if nth > 0:
            cell = order[i + 1]
            hashes[cell] = repeat_hash(hashes[cell], nth)
