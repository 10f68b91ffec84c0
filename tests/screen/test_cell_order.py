"""Cells are ordered by name alone, so that any interval of a group is a random sample of it."""

import numpy as np
import pandas as pd
import pytest

from lazypert.screen.cell_order import name_hashes, order_cells

GOLDEN = 0xED84AA402AD38504  # of "cell0"
NAMES = [f"AAACCTGAG{i:04d}-1" for i in range(5000)]


def by_the_definition(name):
    """FNV-1a and SplitMix64's output function, in Python integers."""
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


def test_hashes_are_those_of_the_definition():
    names = ["AAACCTGAGAAACCAT-1", "cell0", "z\u00e9ro", "", "x" * 300]
    assert name_hashes(names).tolist() == [by_the_definition(name) for name in names]


def test_hashes_never_change():
    assert name_hashes(["cell0"]).tolist() == [GOLDEN]


@pytest.mark.parametrize(
    "kind",
    [list, lambda names: np.array(names), lambda names: pd.Index(names), lambda names: pd.array(names, dtype="string")],
    ids=["list", "numpy", "pandas", "pandas string"],
)
def test_hashes_depend_on_the_text_only(kind):
    assert name_hashes(kind(NAMES)).tolist() == name_hashes(np.array(NAMES, dtype=object)).tolist()


def test_cells_are_sorted_by_key_and_then_by_hash():
    keys = np.random.default_rng(0).integers(0, 5, 5000)
    hashes = name_hashes(NAMES)
    order, distinct = order_cells(keys, hashes)
    assert distinct is hashes
    assert order.tolist() == sorted(range(5000), key=lambda i: (keys[i], hashes[i]))


def test_the_order_has_nothing_to_do_with_the_numbers_in_names():
    order, _ = order_cells(np.zeros(5000, int), name_hashes(NAMES))
    assert abs(np.corrcoef(order, np.arange(5000))[0, 1]) < 0.05
    # The mean of any interval varies as that of a simple random sample.
    means = (order.reshape(-1, 50) / 5000).mean(axis=1)
    assert 0.7 < means.var() / (1 / 12 / 50) < 1.35


def test_equal_names_get_different_hashes_and_random_places():
    names = ["same"] * 2000 + NAMES[:2000]
    order, hashes = order_cells(np.zeros(4000, int), name_hashes(names))
    assert len(set(hashes.tolist())) == 4000
    assert hashes[2000:].tolist() == name_hashes(names)[2000:].tolist()
    place = np.argsort(order)[:2000]
    assert abs(place.mean() / 4000 - 0.5) < 0.02  # among the others, not next to one another
    assert abs(np.corrcoef(place, np.arange(2000))[0, 1]) < 0.08


def test_equal_names_in_different_groups_keep_their_hash():
    hashes = name_hashes(["a", "a", "b"])
    assert order_cells(np.array([0, 1, 1]), hashes)[1].tolist() == hashes.tolist()


def test_no_cells_have_no_order():
    order, hashes = order_cells(np.empty(0, int), name_hashes([]))
    assert (len(order), len(hashes)) == (0, 0)
