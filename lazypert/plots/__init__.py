"""Figures of results: groups and splits, knockdown quality control, downsampling.

Every function takes results and returns a `matplotlib.figure.Figure` that is independent of pyplot's global
state: save it with ``figure.savefig("name.png")``, or let a notebook show it. matplotlib is imported only when
a figure is drawn.
"""

from lazypert.plots.downsampling import DownsamplingSweep, downsampling_sweep, plot_downsampling
from lazypert.plots.knockdown import REASON_COLOURS, plot_knockdown, sample_cell_residuals
from lazypert.plots.splits import SPLIT_COLOURS, plot_splits

__all__ = [
    # splits
    "SPLIT_COLOURS",
    "plot_splits",
    # knockdown
    "REASON_COLOURS",
    "plot_knockdown",
    "sample_cell_residuals",
    # downsampling
    "DownsamplingSweep",
    "downsampling_sweep",
    "plot_downsampling",
]
