"""Screens that describe the same cells differently, and splits as dictionaries by cell name."""

import numpy as np
from hypothesis import strategies as st

from lazypert.splits.names import SPLITS
from lazypert.splits.split_result import SplitResult
from tests.support.screens import CONTROL, make_cells


@st.composite
def screens(draw, max_cells=60):
    """Columns of a small screen, in which labels may be missing."""
    n, rng = draw(st.integers(8, max_cells)), np.random.default_rng(draw(st.integers(0, 10_000)))

    def pick(*labels, missing=0.1):
        values = np.array(labels, dtype=object)[rng.integers(0, len(labels), n)]
        values[rng.random(n) < missing] = None
        return values

    perturbation = pick("A", "B", "C", "D", CONTROL, CONTROL)
    perturbation[0] = CONTROL
    return {
        "names": np.array([f"c{i}-{rng.integers(1000)}" for i in range(n)], dtype=object),
        "perturbation": perturbation,
        "cell_type": pick("T", "U", "V"),
        "batch": pick("b1", "b2"),
        "donor": pick("x", "y", "z", "w"),
    }


def cells_of(screen, order=None, **changes):
    """Cells of a screen, in another order or with other columns."""
    columns = screen | changes
    order = np.arange(len(columns["names"])) if order is None else order
    axes = {axis: columns[axis][order] for axis in ("perturbation", "cell_type", "batch", "dataset") if axis in columns}
    others = {name: columns[name][order] for name in columns if name not in (*axes, "names")}
    return make_cells(names=columns["names"][order], obs=others, **axes)


def by_name(cells, split):
    """Split of each cell by name; cells in no split are left out."""
    found = [(str(cells.names[row]), name) for name in SPLITS for row in np.asarray(split[name])]
    assert len(found) == len(dict(found)), "a cell is in two splits"
    return dict(found)


def assert_same_for_all_openings(screen, splitter):
    """A rule gives the same split whatever the order, the batches, the files and the other labels of a screen."""
    n = len(screen["names"])
    rng = np.random.default_rng(n)
    cells = cells_of(screen)
    expected = by_name(cells, splitter.split(cells))
    variants = [
        {"order": rng.permutation(n)},
        {"order": rng.permutation(n), "dataset": np.array(["d1", "d2"], dtype=object)[rng.integers(0, 2, n)]},
    ]
    for variant in variants:
        other = cells_of(screen, **variant)
        assert by_name(other, splitter.split(other)) == expected
    return expected


def empty_split(groups):
    nothing = groups.rows(np.zeros(len(groups.start), dtype=bool))
    return SplitResult(nothing, nothing, nothing, groups)
