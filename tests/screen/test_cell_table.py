"""Batch codes and hashes of several screens continue from one screen to the next."""

import numpy as np
import pytest

from lazypert.screen.cell_table import CellArrays, ConcatCells, code_dtype


def tables():
    first = CellArrays(np.array([0, -1, 1], dtype="i1"), np.array([5, 6, 7], dtype=np.uint64))
    second = CellArrays(None, np.array([1, 2], dtype=np.uint64))
    labels = [np.array(["a", "c"]), np.array(["all"])]
    return ConcatCells([first, second], [3, 2], labels, np.array(["a", "all", "c"]))


def test_batches_are_renumbered_under_the_union_of_their_labels():
    assert tables().batch_codes().tolist() == [0, -1, 2, 1, 1]


def test_hashes_are_read_from_the_screen_of_each_row():
    assert tables().hashes(np.array([4, 0, 3, 2, 0])).tolist() == [2, 5, 1, 7, 5]


@pytest.mark.parametrize(("n_labels", "expected"), [(0, "i1"), (128, "i1"), (129, "i2"), (32769, "i4")])
def test_codes_get_the_smallest_dtype(n_labels, expected):
    assert code_dtype(n_labels) == expected
    assert np.iinfo(code_dtype(n_labels)).max >= n_labels - 1
