"""Target genes, and the sums of their expression, equal a naive search by name."""

import numpy as np
import pytest
from scipy import sparse

from lazypert.screen.targets import target_genes, target_sums
from tests.support.screens import CONTROL, make_cells


@pytest.mark.parametrize(
    ("genes", "expected"),
    [
        (["B", "A"], {"A": 1, "B": 0, "A+B": -1, CONTROL: -1}),
        (["A", "C", "A"], {"A": 0, "B": -1, "A+B": -1, CONTROL: -1}),
        ([CONTROL, "B"], {"A": -1, "B": 1, "A+B": -1, CONTROL: -1}),
        ([], {"A": -1, "B": -1, "A+B": -1, CONTROL: -1}),
    ],
    ids=["by name", "first of several", "the control has none", "no genes"],
)
def test_targets_are_found_by_name(genes, expected):
    groups = make_cells(perturbation=["A", "B", "A+B", CONTROL]).groups
    columns = target_genes(groups, np.array(genes, dtype=np.str_))
    assert dict(zip(groups.labels["perturbation"].tolist(), columns.tolist(), strict=True)) == expected


def test_without_a_control_label_every_perturbation_may_have_a_target():
    groups = make_cells(perturbation=["A", CONTROL], control=None).groups
    assert target_genes(groups, np.array([CONTROL, "A"])).tolist() == [1, 0]


@pytest.mark.parametrize("seed", range(5))
def test_sums_equal_those_of_the_dense_matrix(seed):
    rng = np.random.default_rng(seed)
    dense = rng.poisson(0.7, (30, 8)).astype("f4")
    targets = np.array([6, 2, 5])  # columns of the targets
    own = np.where(rng.random(30) < 0.5, targets[rng.integers(0, 3, 30)], -1)
    stratum = np.where(own < 0, rng.integers(-1, 2, 30), -1)
    slot = np.full(8, -1)
    slot[targets] = np.arange(3)
    values, sums = np.full(30, np.nan, "f4"), np.ones((2, 3))
    rows = sparse.csr_matrix(dense)
    target_sums(rows.indptr, rows.indices, rows.data, own, stratum, slot, values, sums)
    np.testing.assert_array_equal(values, np.where(own < 0, np.nan, dense[np.arange(30), own]))
    np.testing.assert_allclose(sums, [1 + dense[stratum == s][:, targets].sum(axis=0) for s in (0, 1)])
