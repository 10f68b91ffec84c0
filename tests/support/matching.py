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
    is_allowed = np.ones(len(frame), bool) if allowed is None else np.isin(np.arange(len(frame)), allowed)
    pool = set(np.flatnonzero(is_allowed & (frame["perturbation"] == CONTROL)))
    for axis in ("cell_type", "dataset"):
        pool = {i for i in pool if frame[axis][i] == frame[axis][row]}
    for n in range(len(keys), 0, -1):
        own = [frame[key][row] for key in keys[:n]]
        alike = {
            i for i in pool if all(pd.notna(a) and frame[key][i] == a for key, a in zip(keys[:n], own, strict=True))
        }
        if alike:
            return n, alike
    return 0, pool
