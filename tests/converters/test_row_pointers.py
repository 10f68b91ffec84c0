"""Row pointers are checked, built from lengths, and cut into source blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazypert_converters import _row_pointers
from lazypert_converters._row_pointers import (
    blocks_by_nnz,
    blocks_of_parts,
    indptr_fault,
    read_in_parts,
    row_pointers,
)


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 100))
def test_source_blocks_cover_all_rows_and_are_as_long_as_the_limit_allows(lengths, limit):
    indptr = row_pointers(np.array(lengths, dtype="i8"))
    specs = blocks_by_nnz("X", indptr, limit)
    assert [row for spec in specs for row in range(spec.start, spec.stop)] == list(range(len(lengths)))
    for spec in specs:
        assert spec.matrix == "X"
        assert sum(lengths[spec.start : spec.stop]) <= limit or spec.stop == spec.start + 1
        if spec.stop < len(lengths):
            assert sum(lengths[spec.start : spec.stop + 1]) > limit


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 30), st.integers(1, 7))
def test_row_pointers_that_are_read_in_parts_give_the_same_blocks(lengths, limit, size):
    indptr = row_pointers(np.array(lengths, dtype="i8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_row_pointers, "POINTERS_AT_ONCE", size)
        parts = list(read_in_parts(lambda start, stop: indptr[start:stop], len(indptr)))
    assert all(len(part) <= size + 1 for part in parts)
    assert blocks_of_parts("X", parts, limit) == blocks_by_nnz("X", indptr, limit)


def test_row_pointers_are_int64_and_start_at_zero():
    indptr = row_pointers(np.array([2, 0, 3], dtype="u1"))
    assert indptr.dtype == np.int64
    assert indptr.tolist() == [0, 2, 2, 5]


@pytest.mark.parametrize(
    ("indptr", "fault"),
    [
        ([0, 2, 2, 5], None),
        ([0, 2, 5], ("has 3 elements", "4")),
        ([1, 2, 2, 5], ("starts at 1", "0")),
        ([0, 2, 1, 5], ("decreases at element 2", "no decrease")),
        ([0, 2, 2, 4], ("ends at 4", "5, the number of stored values")),
    ],
)
def test_faults_of_row_pointers_are_described(indptr, fault):
    assert indptr_fault(np.array(indptr, dtype="u8"), 3, 5) == fault
