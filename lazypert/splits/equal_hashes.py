"""Hashes that occur more than once among many, found part by part: in memory that does not grow with their number."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from lazypert.screen.cell_order import repeat_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    ReadHashes: TypeAlias = "Callable[[], Iterator[NDArray[np.uint64]]]"

_HASHES_AT_ONCE = 8_388_608
"""Hashes that are sorted at once: 64 MiB. All of them are read once for each part."""


class EqualHashes(NamedTuple):
    """What occurs more than once.

    Attributes
    ----------
    equal
        (k,) hashes that occur more than once, in any order.
    later, first
        (m,) hashes that stand for a second or later cell of a name, sorted, and those of the first cells of the same
        names.
    """

    equal: NDArray[np.uint64]
    later: NDArray[np.uint64]
    first: NDArray[np.uint64]


def find_equal_hashes(read: ReadHashes, n_hashes: int, *, have_later: bool) -> EqualHashes:
    """Find the hashes that occur more than once.

    Parameters
    ----------
    read
        Iterates over all hashes, and again when it is called again.
    n_hashes
        Their number.
    have_later
        Whether second and later cells of a name have other hashes, which follow from that of the first one: see
        `lazypert.screen.cell_order.repeat_hash`.
    """
    n_parts = max(1, -(-n_hashes // _HASHES_AT_ONCE))
    equal, later, first = ([np.empty(0, np.uint64)] for _ in range(3))
    for part in range(n_parts):
        hashes = _gather(read, part, n_parts)
        equal.append(np.unique(hashes[1:][hashes[1:] == hashes[:-1]]))
        for some in read() if have_later else ():
            second = repeat_hash(some, np.uint64(1))
            chosen = np.flatnonzero(_part_of(second, n_parts) == part)
            chosen = chosen[np.argsort(second[chosen])]  # looking up sorted values is several times as fast
            chosen = chosen[find_in(hashes, second[chosen])[0]]
            later.append(second[chosen])
            first.append(some[chosen])
    followed = _follow(read, np.unique(np.concatenate(first)))
    all_later = np.concatenate([*later, followed[0]])
    all_later, index = np.unique(all_later, return_index=True)
    return EqualHashes(np.concatenate(equal), all_later, np.concatenate([*first, followed[1]])[index])


def _gather(read: ReadHashes, part: int, n_parts: int) -> NDArray[np.uint64]:
    """Sorted hashes of one part."""
    found = (hashes[_part_of(hashes, n_parts) == part] for hashes in read())
    gathered = np.concatenate([np.empty(0, np.uint64), *found])
    gathered.sort()
    return gathered


def _part_of(hashes: NDArray[np.uint64], n_parts: int) -> NDArray[np.uint64]:
    return ((hashes >> np.uint64(32)) * np.uint64(n_parts)) >> np.uint64(32)


def _follow(read: ReadHashes, alive: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Third and later hashes of names that have a second one, and the first hashes of these names."""
    laters, firsts, nth = [alive[:0]], [alive[:0]], 2
    while len(alive):  # in steps that double, because one name may occur a million times
        width = nth
        first = np.repeat(alive, width)
        later = repeat_hash(first, np.tile(np.arange(nth, nth + width, dtype=np.uint64), len(alive)))
        exists = np.logical_and.accumulate(_occur(read, later).reshape(len(alive), width), axis=1)
        laters.append(later[exists.ravel()])
        firsts.append(first[exists.ravel()])
        alive, nth = alive[exists[:, -1]], nth + width
    return np.concatenate(laters), np.concatenate(firsts)


def _occur(read: ReadHashes, wanted: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """(n,) whether each of some hashes occurs."""
    known, place = np.unique(wanted, return_inverse=True)
    occurs = np.zeros(len(known), bool)
    for hashes in read():
        found, position = find_in(known, hashes)
        occurs[position[found]] = True
    return occurs[place]


def find_in(known: NDArray[np.uint64], values: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether and where each value is in a sorted array."""
    if not len(known):
        return np.zeros(len(values), bool), np.zeros(len(values), np.int64)
    position = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return known[position] == values, position
