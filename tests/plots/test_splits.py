"""The figure of splits shows each split's share of every group, whatever the size of the screen."""

import numpy as np
import pytest

from lazypert.plots import SPLIT_COLOURS, plot_splits
from lazypert.screen.groups import Groups
from lazypert.screen.roles import Roles
from lazypert.splits.config import FewShotSplitterConfig, ZeroShotSplitterConfig
from lazypert.splits.splitters import FewShotSplitter, ZeroShotSplitter
from tests.support.figures import n_colours, texts


class Cells:
    """What a splitter needs of a source."""

    def __init__(self, groups):
        self.groups = groups


def screen_of(n_types, n_perts, *, seed=0, n_cells=4_000):
    rng = np.random.default_rng(seed)
    labels = {
        "cell_type": np.array([f"type{i:02d}" for i in range(n_types)]),
        "perturbation": np.array(["ctrl", *(f"p{i:04d}" for i in range(1, n_perts))]),
    }
    codes = {"cell_type": rng.integers(0, n_types, n_cells), "perturbation": rng.integers(0, n_perts, n_cells)}
    roles = Roles(pert_col="p", cell_type_col="c", control_pert="ctrl")
    hashes = rng.integers(0, 2**64, n_cells, dtype=np.uint64)
    return Groups.from_codes(codes, labels, roles, hashes)


def tiles_of(ax, split):
    """(n, 4, 2) corners of the tiles drawn in the colour of a split."""
    from matplotlib.colors import to_rgba

    (collection,) = (c for c in ax.collections if tuple(c.get_facecolor()[0]) == to_rgba(SPLIT_COLOURS[split]))
    return np.array([path.vertices[:4] for path in collection.get_paths()])


def test_split_bars_have_the_width_of_their_share(reference):
    split = FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=("BRCA1", "TP53"))).split(reference.source)
    figure = plot_splits(reference.source.groups, {"few-shot": split})
    widths = {name: np.ptp(tiles_of(figure.axes[1], name)[:, :, 0], axis=1).sum() for name in SPLIT_COLOURS}
    shares = {name: width / 0.92 * 50 for name, width in widths.items()}  # every group has 50 cells
    assert shares == pytest.approx({"train": 550, "valid": 50, "test": 300})
    assert "few-shot: train 550, valid 50, test 300" in texts(figure)
    assert texts(figure).count("50") == 18


@pytest.mark.parametrize("n_types", [1, 4, 30], ids="{}-types".format)
@pytest.mark.parametrize("n_perts", [2, 34, 1_000], ids="{}-perturbations".format)
def test_figures_of_any_screen_stay_small_and_say_what_is_hidden(n_types, n_perts):
    groups = screen_of(n_types, n_perts)
    smallest = groups.table().groupby("perturbation")["n_cells"].sum().drop("ctrl").idxmin()
    few = FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=(smallest,))).split(Cells(groups))
    figure = plot_splits(groups, {"few-shot": few})
    width, height = figure.get_size_inches()
    assert width <= 15
    assert height <= 14
    shown = [tick.get_text() for tick in figure.axes[-1].get_xticklabels()]
    assert shown[0] == "ctrl"
    assert smallest in shown, "held-out perturbations are always shown"
    assert len(shown) == min(n_perts, 40)
    all_text = " ".join(texts(figure))
    present = len(set(groups.table()["perturbation"]))
    assert (f"{present - 40:,} more" in all_text) == (present > 40)
    assert ("18 more" in all_text) == (n_types == 30)


def test_a_large_split_figure_is_drawn():
    groups = screen_of(30, 100)
    few = FewShotSplitter(FewShotSplitterConfig(held_out_perturbations=("p0001",))).split(Cells(groups))
    assert n_colours(plot_splits(groups, {"few-shot": few})) > 10


def test_groups_without_splits_are_drawn_and_empty_groups_stay_blank():
    groups = screen_of(3, 5, n_cells=12)
    figure = plot_splits(groups)
    assert len(figure.axes) == 1
    assert "blank: no cells" in " ".join(texts(figure))


def test_the_test_cells_of_a_zero_shot_split_are_all_in_the_held_out_row(reference):
    split = ZeroShotSplitter(ZeroShotSplitterConfig(held_out_cell_types=("Microglia",))).split(reference.source)
    figure = plot_splits(reference.source.groups, {"zero-shot": split})
    rows = [tick.get_text() for tick in figure.axes[1].get_yticklabels()]
    held_out = {rows[round(tile[:, 1].mean())] for tile in tiles_of(figure.axes[1], "test")}
    assert held_out == {"Microglia"}


def test_matplotlibs_settings_stay_as_they_are():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    plot_splits(screen_of(2, 3))
    assert dict(mpl.rcParams) == before
