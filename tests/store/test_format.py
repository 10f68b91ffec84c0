"""Grids, the merging of facts, the dtype in which matrices are shown, and roles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazypert.screen.roles import Roles
from lazypert.sparse.value_stats import ValueStats, value_stats
from lazypert.store.format import MATRIX_CHUNK, MATRIX_SHARD, Grid, dense_dtype


@pytest.mark.parametrize("make", [Grid.matrix, Grid.column], ids=["matrix", "column"])
@pytest.mark.parametrize("length", [0, 1, 2, 65_535, 65_536, 65_537, 1_048_577, 8_388_608, 8_388_609, 3 * 10**9])
def test_shards_tile_the_array_and_hold_whole_chunks(make, length):
    grid = make(length)
    assert grid.shard % grid.chunk == 0
    assert 1 <= grid.chunk <= grid.shard
    spans = [grid.span(k) for k in range(grid.n_shards)]
    assert [a for a, _ in spans] == [0, *(b for _, b in spans[:-1])][: len(spans)]
    assert (spans[-1][1] if spans else 0) == length
    assert all(stop > start for start, stop in spans)


def test_a_long_matrix_has_the_chunks_and_shards_of_the_format():
    grid = Grid.matrix(10**9)
    assert (grid.chunk, grid.shard) == (MATRIX_CHUNK, MATRIX_SHARD)
    assert 32_768 <= grid.chunk <= 131_072
    assert grid.shard == 8_388_608


values = st.lists(
    st.one_of(st.integers(-3, 70_000).map(float), st.sampled_from([0.5, 0.1, np.nan, 2.0**40])), max_size=8
)


@given(values, values)
@settings(max_examples=80, deadline=None)
def test_merged_facts_are_the_facts_of_all_values(left, right):
    together = value_stats(np.array(left + right, dtype="f8"))
    merged = value_stats(np.array(left, dtype="f8")).merge(value_stats(np.array(right, dtype="f8")))
    assert merged == together


def test_facts_of_nothing_are_neutral():
    facts = value_stats(np.array([-2.5]))
    assert facts.merge(ValueStats()) == ValueStats().merge(facts) == facts


@pytest.mark.parametrize(
    ("stored", "extreme", "shown"),
    [
        ("u2", 65_535, "f4"),
        ("u4", 2**24, "f4"),
        ("u4", 2**24 + 1, "f8"),
        ("i4", -(2**24) - 1, "f8"),
        ("f4", 0.5, "f4"),
        ("f8", 0.1, "f8"),
    ],
)
def test_matrices_are_shown_in_an_exact_float(stored, extreme, shown):
    found = dense_dtype(np.dtype(stored), max(0, extreme), min(0, extreme))
    assert found == shown
    if np.dtype(stored).kind != "f":
        assert int(np.array(extreme).astype(found)) == extreme


def test_roles_survive_json_and_keep_their_sort_order():
    roles = Roles(pert_col="p", cell_type_col="c", batch_col="b", dataset_col="d", control_pert="x")
    assert Roles.from_json(roles.to_json()) == roles
    assert roles.columns() == {"cell_type": "c", "perturbation": "p", "dataset": "d", "batch": "b"}
