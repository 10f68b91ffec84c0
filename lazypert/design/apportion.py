"""Cutting runs at exact positions, in exact and fair proportions."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from lazypert._internal.randomness import generator
from lazypert.design.split_names import SPLITS
from lazypert.screen.rows import Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lazypert.screen.groups import Groups


def exact(fraction: float) -> Fraction:
    """Return the fraction as written: 0.1 is one tenth, not the nearest float."""
    return Fraction(str(fraction))


def cut_runs(
    groups: Groups,
    is_divided: NDArray[np.bool_],
    fractions: list[Fraction],
    undivided: dict[str, NDArray[np.bool_]],
    seed: int,
) -> list[Rows]:
    """Divide runs among the splits.

    Parameters
    ----------
    groups
        Groups whose cells are in random order inside each run.
    is_divided
        (n_runs,) whether a run is cut at the cumulative `fractions`.
    fractions
        For each of `SPLITS`, the fraction of the cells in it and in the splits before it.
    undivided
        By split name, (n_runs,) whether the split gets all of a run.
    seed
        Determines where runs are cut.

    Returns
    -------
    Rows of each of `SPLITS`. Of ``n`` cells in divided runs, the first ``k`` splits together get
    ``floor(n * fractions[k - 1])``.
    """
    sizes = np.where(is_divided, groups.sizes, 0)
    rng = generator(seed)
    # Random order of groups, and of the runs (batches) within each group, so that no two stay together.
    _, group = np.unique(groups.ids, return_inverse=True)
    run_order = np.lexsort((rng.random(len(sizes)), rng.permutation(len(sizes))[group]))
    cuts = np.zeros((len(fractions) + 1, len(sizes)), dtype=np.int64)
    upper = sizes
    for k in reversed(range(len(fractions))):  # each cut lies below the next one, so that splits nest
        count = int(sizes.sum()) * fractions[k].numerator // fractions[k].denominator
        upper = cuts[k + 1] = apportion(upper, count, run_order, int(rng.integers(2**63)))
    first = (rng.random(len(sizes)) * sizes).astype(np.int64)
    splits = []
    for k, name in enumerate(SPLITS):
        begin, length = first + cuts[k], cuts[k + 1] - cuts[k]
        if name in undivided:
            begin = np.where(undivided[name], 0, begin)
            length = np.where(undivided[name], groups.sizes, length)
        splits.append(_cyclic_rows(groups, begin, length))
    return splits


def apportion(sizes: NDArray[np.int64], count: int, run_order: NDArray[np.int64], start: int) -> NDArray[np.int64]:
    """Apportion `count` cells to runs in proportion to their sizes.

    Systematic sampling: equally spaced points on a circle of all cells, beginning at a random cell.
    Every cell is equally likely to be selected, and any consecutive runs in `run_order` together get
    their share, rounded up or down.
    """
    total = int(sizes.sum())
    if total == 0:
        return np.zeros_like(sizes)
    ends = start % total + np.cumsum(np.concatenate([[0], sizes[run_order]]))
    out = np.empty_like(sizes)
    out[run_order] = np.diff(floor_product(ends, Fraction(count, total)))
    return out


def floor_product(totals: NDArray[np.int64], fraction: Fraction) -> NDArray[np.int64]:
    """``floor(totals * fraction)`` in Python integers: 64-bit products overflow for fractions such as 1/3."""
    products: NDArray[np.object_] = totals.astype(object) * fraction.numerator // fraction.denominator
    return products.astype(np.int64)


def _cyclic_rows(groups: Groups, begin: NDArray[np.int64], length: NDArray[np.int64]) -> Rows:
    """Rows ``begin`` to ``begin + length`` of each run, wrapping around at its end."""
    sizes = np.maximum(groups.sizes, 1)
    first = begin % sizes
    wrapped = np.maximum(first + length - sizes, 0)
    starts = np.stack([groups.start, groups.start + first], axis=1).ravel()
    stops = np.stack([groups.start + wrapped, groups.start + first + length - wrapped], axis=1).ravel()
    return Rows(starts, stops, groups.row_order)


def subsample(rows: Rows, fraction: float) -> Rows:
    """Keep the first cells of every interval, ``ceil(n * fraction)`` cells in total."""
    kept = -floor_product(-np.cumsum(rows.stops - rows.starts), exact(fraction))
    return Rows(rows.starts, rows.starts + np.diff(kept, prepend=0), rows.row_order)
