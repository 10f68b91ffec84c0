"""Target expression equals sums over a dense matrix, whether streamed or taken from recorded cell statistics."""

import numpy as np
import pytest

from lazypert.quality import KnockdownFilterConfig, OnTargetKnockdownFilter
from lazypert.quality.contexts import Contexts
from lazypert.quality.control_strata import ControlStrata
from lazypert.quality.target_expression import TargetExpression, gather_target_expression
from lazypert.screen.targets import target_genes
from lazypert.store.matrix import Matrix
from tests.support.screens import CONTROL, holey_screen, in_store_order, make_cells, source_of

GENES = ["A", "x", "B", "y"]
MATCHES = ["all", "cell_type", "batch"]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A source with recorded cell statistics, and its cells in store order."""
    screen = holey_screen(200, genes=GENES)
    source = source_of(screen, tmp_path_factory.mktemp("targets"))
    return source, in_store_order(source, screen)


def strata_of(groups, match):
    """The strata, and the stratum of each row."""
    strata = ControlStrata.of(groups, match, Contexts.of(groups, ()))
    rows = np.arange(groups.n_obs)
    return strata, strata.of_cells(groups.run_of_rows(rows), groups.batch_of(rows))


def gather(source, match, layer=None):
    groups = source.groups
    strata, of_row = strata_of(groups, match)
    columns = target_genes(groups, source.gene_labels(None))
    return gather_target_expression(source, groups, columns, strata, layer), of_row


def check(source, adata, match, layer=None):
    """Compare with sums over a dense matrix."""
    found, of_row = gather(source, match, layer)
    dense = (adata.X if layer is None else adata.layers[layer]).toarray().astype(np.float64)
    label = adata.obs["perturbation"].astype(object).to_numpy()
    own = [dense[i, GENES.index(name)] if name in ("A", "B") else np.nan for i, name in enumerate(label)]
    np.testing.assert_array_equal(found.own, own)
    for code, name in enumerate(source.get_pert_categories()):
        for number in range(len(found.control_sum)):
            cells = (label == CONTROL) & (of_row == number)
            expected = (dense[cells, GENES.index(name)].sum(), cells.sum()) if name in ("A", "B") else (0, 0)
            assert (found.control_sum[number, code], found.control_cells[number, code]) == expected


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "streamed"])
def test_it_equals_sums_over_a_dense_matrix(case, match, recorded, monkeypatch):
    source, adata = case
    n_reads, read = [], Matrix.read
    monkeypatch.setattr(Matrix, "read", lambda *args: [n_reads.append(1), read(*args)][1])
    if not recorded:
        monkeypatch.setitem(vars(source.store), "cell_stats", None)
    check(source, adata, match)
    assert bool(n_reads) is not recorded


def test_layers_are_streamed(case):
    check(*case, "cell_type", layer="twice")


@pytest.mark.parametrize("values", [7, 60, 1000])
def test_the_block_size_does_not_matter(case, values, monkeypatch):
    source, adata = case
    monkeypatch.setitem(vars(source.store), "cell_stats", None)
    config = KnockdownFilterConfig(min_cells=1, residual_expression=1, control_match="batch")
    in_one_block = OnTargetKnockdownFilter(config).run(source)
    monkeypatch.setattr("lazypert.quality.target_expression._BLOCK_VALUES", values)
    check(source, adata, "batch")
    in_blocks = OnTargetKnockdownFilter(config).run(source)
    assert in_blocks.table.equals(in_one_block.table)
    assert (in_blocks.mask == in_one_block.mask).all()


def test_strata_share_a_cell_type_and_a_batch():
    groups = make_cells(
        perturbation=[CONTROL] * 6, cell_type=["T", "T", "U", "U", "T", None], batch=["b", "c", "b", "b", "b", "b"]
    ).groups
    assert set(strata_of(groups, "all")[1]) == {0}
    by_type, by_batch = (strata_of(groups, match)[1] for match in ("cell_type", "batch"))
    assert by_type[0] == by_type[1] == by_type[4]
    assert len(set(by_type)) == 3
    assert by_batch[0] == by_batch[4] != by_batch[1]
    assert by_batch[2] == by_batch[3] != by_batch[0]
    assert len(set(by_batch)) == 4


def test_a_stratum_without_controls_gets_the_mean_of_its_cell_type():
    groups = make_cells(perturbation=[CONTROL, "A", CONTROL], cell_type=["T", "T", "U"], batch=["b", "c", "b"]).groups
    strata, of_row = strata_of(groups, "batch")
    sums, cells = np.zeros((3, 2)), np.zeros((3, 2), dtype=np.int64)
    sums[of_row[0]], cells[of_row[0]] = (8, 2), (2, 0)
    means = TargetExpression(np.empty(0), sums, cells).control_means(strata.wider)
    assert means[of_row[0], 0] == means[of_row[1], 0] == 4
    assert np.isnan(means[of_row[2], 0])
