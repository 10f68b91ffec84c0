from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import lazypert as lp
from lazypert.design.splits import FewShotSplitter, FewShotSplitterConfig, ZeroShotSplitter, ZeroShotSplitterConfig
from lazypert.errors import ConfigError, LazypertError, NotCountsError
from lazypert.plots import (
    SPLIT_COLOURS,
    downsampling_sweep,
    plot_downsampling,
    plot_knockdown,
    plot_splits,
    sample_cell_residuals,
)
from lazypert.quality import KnockdownResult
from lazypert.screen.groups import Groups
from lazypert.screen.roles import Roles
from lazypert.simulate import reference_screen


class Cells:
    """The least that a splitter asks of a source."""

    def __init__(self, groups):
        self.groups = groups


def screen_of(n_types, n_perts, *, seed=0, n_cells=4_000):
    rng = np.random.default_rng(seed)
    labels = [
        np.array([f"type{i:02d}" for i in range(n_types)]),
        np.array(["ctrl", *(f"p{i:04d}" for i in range(1, n_perts))]),
    ]
    codes = [rng.integers(0, n_types, n_cells), rng.integers(0, n_perts, n_cells), None, None]
    roles = Roles(pert_col="p", cell_type_col="c", control_pert="ctrl")
    return Groups.from_codes(codes, [*labels, labels[0][:1], labels[0][:1]], roles, n_cells).shuffled(seed)


def qc_of(residual, reasons):
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


def n_colours(figure):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return len(np.unique(np.ascontiguousarray(canvas.buffer_rgba()).view(np.uint32)))


def texts(figure):
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def tiles_of(ax, split):
    """(n, 4, 2) corners of the tiles that are drawn in the colour of a split."""
    from matplotlib.colors import to_rgba

    (found,) = (c for c in ax.collections if tuple(c.get_facecolor()[0]) == to_rgba(SPLIT_COLOURS[split]))
    return np.array([path.vertices[:4] for path in found.get_paths()])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plots")
    store = lp.convert(
        reference_screen(folder / "screen.h5ad"),
        folder / "screen.zarr",
        pert_col="perturbation",
        control_pert="non-targeting",
        cell_type_col="cell_type",
        batch_col="batch",
    )
    return lp.open(store).pert.source()


# -- splits -----------------------------------------------------------------------------------------


def test_split_bars_have_the_width_of_their_share(source):
    split = FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=("BRCA1", "TP53"))).split(source)
    figure = plot_splits(source.groups, {"few-shot": split})
    widths = {name: np.ptp(tiles_of(figure.axes[1], name)[:, :, 0], axis=1).sum() for name in SPLIT_COLOURS}
    shares = {name: width / 0.92 * 50 for name, width in widths.items()}  # every group has 50 cells
    assert shares == pytest.approx({"train": 550, "valid": 50, "test": 300})
    assert "few-shot: train 550, valid 50, test 300" in texts(figure)
    assert texts(figure).count("50") == 18


@pytest.mark.parametrize("n_types", [1, 4, 30], ids="{}-types".format)
@pytest.mark.parametrize("n_perts", [2, 34, 1_000], ids="{}-perturbations".format)
def test_splits_of_any_size_stay_bounded_and_say_what_is_hidden(n_types, n_perts):
    groups = screen_of(n_types, n_perts)
    smallest = groups.table().groupby("perturbation")["n_cells"].sum().drop("ctrl").idxmin()
    few = FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=(smallest,))).split(Cells(groups))
    figure = plot_splits(groups, {"few-shot": few})
    width, height = figure.get_size_inches()
    assert width <= 15
    assert height <= 14
    shown = [tick.get_text() for tick in figure.axes[-1].get_xticklabels()]
    assert shown[0] == "ctrl"
    assert smallest in shown, "what is held out is always shown"
    assert len(shown) == min(n_perts, 40)
    said = " ".join(texts(figure))
    present = len(set(groups.table()["perturbation"]))
    assert (f"{present - 40:,} more" in said) == (present > 40)
    assert ("18 more" in said) == (n_types == 30)


def test_a_large_split_figure_is_drawn():
    groups = screen_of(30, 100)
    few = FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=("p0001",))).split(Cells(groups))
    assert n_colours(plot_splits(groups, {"few-shot": few})) > 10


def test_groups_alone_can_be_drawn_and_empty_groups_stay_blank():
    groups = screen_of(3, 5, n_cells=12)
    figure = plot_splits(groups)
    assert len(figure.axes) == 1
    assert "blank: no cells" in " ".join(texts(figure))


def test_cells_of_a_zero_shot_split_all_fall_in_the_held_out_row(source):
    split = ZeroShotSplitter(ZeroShotSplitterConfig(held_out_cell_types=("Microglia",))).split(source)
    figure = plot_splits(source.groups, {"zero-shot": split})
    rows = [tick.get_text() for tick in figure.axes[1].get_yticklabels()]
    held = {rows[round(tile[:, 1].mean())] for tile in tiles_of(figure.axes[1], "test")}
    assert held == {"Microglia"}


# -- knockdown --------------------------------------------------------------------------------------


def test_sampled_cells_are_those_of_the_matrix(source):
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


def test_knockdown_figure_sorts_and_names_perturbations():
    result = qc_of(
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
    said = texts(figure)
    assert "On-target knockdown: 1 of 4 perturbations pass, with 0 of 200 cells" in said
    assert "Not shown, target gene not measured: p0002." in said
    assert "residual expression too high (2)" in said
    assert "5.0" in said, "a ratio beyond the edge is written out"
    assert "67%" in said
    assert n_colours(figure) > 20


@pytest.mark.parametrize("n", [0, 1, 40, 1_000])
def test_knockdown_of_any_number_of_perturbations(n):
    residual = np.linspace(0, 1, n)
    reasons = ["passed" if r < 0.3 else "residual expression too high (x)" for r in residual]
    cells = {f"p{i:04d}": np.array([0.1, 0.7]) for i in range(0, n, 50)}
    figure = plot_knockdown(qc_of(residual, reasons), cell_residuals=cells)
    assert len(figure.axes) == 1 + (n > 0)
    assert max(figure.get_size_inches()) < 10
    assert n_colours(figure) > 1


# -- downsampling -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_sweep_measures_binomial_thinning():
    import jax

    # The reference screen's shape: JAX has compiled for it already, where test_demo has run.
    counts = np.random.default_rng(0).poisson(6, (150, 200)).astype(np.float32)
    sweep = downsampling_sweep(counts, (1.0, 0.5, 0.1), key=jax.random.key(0))
    assert sweep.total == counts.sum()
    np.testing.assert_allclose(sweep.reads / sweep.total, [1, 0.5, 0.1], atol=0.02)
    assert sweep.reads[0] == sweep.total
    assert (sweep.genes[0] == (counts > 0).sum(axis=1)).all()
    assert (np.diff(sweep.genes, axis=0) <= 0).mean() > 0.99
    assert (sweep.observed_variance[0] == 0).all()
    np.testing.assert_allclose(sweep.observed_variance[1:], sweep.expected_variance[1:], rtol=0.35)
    figure = plot_downsampling(sweep)
    assert len(figure.axes) == 3
    assert n_colours(figure) > 20
    without_thinning = replace(
        sweep, observed_variance=0 * sweep.observed_variance, expected_variance=0 * sweep.expected_variance
    )
    assert n_colours(plot_downsampling(without_thinning)) > 1


def test_sweep_refuses_what_is_no_count():
    import jax

    with pytest.raises(NotCountsError):
        downsampling_sweep(np.full((2, 3), 0.5, np.float32), (0.5,), key=jax.random.key(0))
    with pytest.raises(ConfigError, match="expected some of both"):
        downsampling_sweep(np.zeros((0, 3), np.float32), (0.5,), key=jax.random.key(0))


# -- matplotlib -------------------------------------------------------------------------------------


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(LazypertError, match=r'pip install "lazypert\[plot\]"'):
        plot_splits(screen_of(1, 3))


def test_no_global_state_is_touched():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    plot_splits(screen_of(2, 3))
    assert dict(mpl.rcParams) == before
