"""Screens with donors and plates, and the controls that cells may be matched with, from the labels alone."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tests.support.screens import CONTROL, random_cells

KEYS = ("donor", "plate", "batch")


def random_keyed_cells(n, seed, *, missing=0.1, **options):
    """Cells with random labels, also of a donor and a plate, some of which are missing."""
    cells, rng = random_cells(n, seed, missing=missing, **options), np.random.default_rng(seed + 1)
    for name, labels in (("donor", ["x", "y", "z"]), ("plate", [1.0, 2.0, 3.5, 4.0])):
        drawn = np.array(labels, dtype=object)[rng.integers(0, len(labels), n)]
        drawn[rng.random(n) < missing] = None
        cells.frame[name] = pd.Series(drawn.tolist(), dtype=object if name == "donor" else float)
    return cells


def matched_pool(frame, row, keys, allowed=None):
    """Number of keys that a row shares with its controls, and the set of these controls.

    Compares texts and numbers one by one: no codes, no sorting.
    """
    columns = {name: frame[name].tolist() for name in ("perturbation", "cell_type", "dataset", *keys)}
    pool = set(range(len(frame)) if allowed is None else np.asarray(allowed).tolist())
    pool = {i for i in pool if columns["perturbation"][i] == CONTROL}
    for axis in ("cell_type", "dataset"):
        pool = {i for i in pool if columns[axis][i] == columns[axis][row]}
    for n in range(len(keys), 0, -1):
        own = [columns[key][row] for key in keys[:n]]
        if any(map(pd.isna, own)):
            continue
        alike = {i for i in pool if [columns[key][i] for key in keys[:n]] == own}
        if alike:
            return n, alike
    return 0, pool
