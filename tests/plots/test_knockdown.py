"""The figure of knockdown quality control sorts perturbations and explains those that it leaves out."""

import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert.plots import plot_knockdown, sample_cell_residuals
from lazypert.quality import KnockdownResult
from tests.support.figures import n_colours, texts


def result_of(residual, reasons):
    n = len(residual)
    table = pd.DataFrame(
        {
            "perturbation": [f"p{i:04d}" for i in range(n)],
            "n_cells": 50,
            "residual_expression": residual,
            "n_kept": 0,
            "passed": [reason == "passed" for reason in reasons],
            "reason": reasons,
        }
    )
    return KnockdownResult(np.ones(50 * n, dtype=bool), table, 0)


def test_sampled_ratios_equal_those_of_the_matrix(reference):
    source = reference.source
    result = lp.OnTargetKnockdownFilter(lp.KnockdownFilterConfig(var_gene_col="gene_name")).run(source)
    ratios = sample_cell_residuals(source, result, var_gene_col="gene_name", cells=10_000)
    names = source.gene_labels("gene_name").tolist()
    dense = source.matrix.read_rows(np.arange(source.n_rows)).to_dense(np.float64)
    labels = source.get_pert_categories()[source.get_pert_codes()]
    assert sorted(ratios) == ["BRCA1", "EGFR", "KRAS", "MYC", "TP53"]
    for target, ratio in ratios.items():
        column = dense[:, names.index(target)]
        expected = column[labels == target] / column[labels == "non-targeting"].mean()
        np.testing.assert_allclose(np.sort(ratio), np.sort(expected))
    few = sample_cell_residuals(source, result, var_gene_col="gene_name", cells=7, perturbations=2)
    assert {len(ratio) for ratio in few.values()} == {7}
    assert len(few) == 2


def test_perturbations_are_sorted_and_named():
    result = result_of(
        [0.9, 0.1, np.nan, 5.0],
        [
            "residual expression too high (0.9)",
            "passed",
            "target gene not measured",
            "residual expression too high (5)",
        ],
    )
    figure = plot_knockdown(result, cell_residuals={"p0001": np.array([0.0, 0.2, 3.0])}, units="counts")
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["p0001", "p0000", "p0003"]
    shown = texts(figure)
    assert "On-target knockdown: 1 of 4 perturbations pass, with 0 of 200 cells" in shown
    assert "Not shown, target gene not measured: p0002." in shown
    assert "residual expression too high (2)" in shown
    assert "5.0" in shown, "a ratio beyond the edge is written beside its arrow"
    assert "67%" in shown
    assert n_colours(figure) > 20


@pytest.mark.parametrize("n", [0, 1, 40, 1_000])
def test_figures_of_any_number_of_perturbations_stay_small(n):
    residual = np.linspace(0, 1, n)
    reasons = ["passed" if r < 0.3 else "residual expression too high (x)" for r in residual]
    cells = {f"p{i:04d}": np.array([0.1, 0.7]) for i in range(0, n, 50)}
    figure = plot_knockdown(result_of(residual, reasons), cell_residuals=cells)
    assert len(figure.axes) == 1 + (n > 0)
    assert max(figure.get_size_inches()) < 10
    assert n_colours(figure) > 1
