"""Cells by name: all name hashes are read once, a part at a time, and no index of names is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lazypert.errors import ConfigError, LabelNotFoundError, quoted
from lazypert.screen.cell_order import name_hashes, repeat_hash
from lazypert.store.format import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from lazypert.store.store import Store

_AT_ONCE = 1_048_576  # cells


def find_cells(store: Store, names: Sequence[str]) -> NDArray[np.int64]:
    """Find the rows of cells by name.

    Names are compared by their 64-bit hashes: a name that the store does not have is taken for one of 10^8 cells with
    a probability of 10^-11. Takes about 100 bytes per name, whatever the number of cells.

    Parameters
    ----------
    names
        (n,) names, in any order; a name may be given more than once.

    Returns
    -------
    (n,) store row of each name.

    Raises
    ------
    LabelNotFoundError
        If a name does not occur.
    ConfigError
        If several cells have one of the names.
    """
    number, unique = pd.factorize(np.asarray(names, dtype=object))
    first = name_hashes(unique)
    # A second cell of the same name and labels has the hash that follows from that of the first one.
    hashes = np.concatenate([first, repeat_hash(first, np.uint64(1))])
    order = np.argsort(hashes)
    row, n_found = np.full(len(unique), -1), np.zeros(len(unique), np.int64)
    for rows, place in _matches(store, hashes[order]):
        found = order[place] % max(1, len(unique))
        row[found] = rows
        np.add.at(n_found, found, 1)
    absent, repeated = np.flatnonzero(n_found == 0), np.flatnonzero(n_found > 1)
    if len(absent):
        example = quoted(str(store.open_strings("obs/_index").read(0, 1)[0])) if store.n_obs else "none"
        raise LabelNotFoundError(
            f"names: got {len(absent):,} of {len(unique):,} names that no cell of the store has, such as "
            f"{quoted(str(unique[absent[0]]))}; expected names such as {example}."
        )
    if len(repeated):
        raise ConfigError(
            f"names: got {quoted(str(unique[repeated[0]]))}, which several cells of the store have, expected names of "
            "one cell each. Select cells by their labels, or convert with names that differ."
        )
    return row[number].astype(np.int64)


def _matches(store: Store, known: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows of cells with one of some sorted hashes, ascending, and the place of the hash of each."""
    is_prefix = np.zeros(1 << 16, dtype=bool)  # tells most cells apart, much faster than a search
    is_prefix[known >> np.uint64(48)] = True
    for start in range(0, store.n_obs, _AT_ONCE):
        hashes = _read_hashes(store, start, min(store.n_obs, start + _AT_ONCE))
        near = np.flatnonzero(is_prefix[hashes >> np.uint64(48)])
        place = np.searchsorted(known, hashes[near])
        is_known = known[np.minimum(place, len(known) - 1)] == hashes[near]
        yield start + near[is_known], place[is_known]


def _read_hashes(store: Store, start: int, stop: int) -> NDArray[np.uint64]:
    if store.format_version < 3:
        return name_hashes(store.open_strings("obs/_index").read(start, stop))
    return store.open_array(f"{TABLES}/name_hash").read(start, stop)
