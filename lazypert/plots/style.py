"""What all figures share: colours, fonts, an empty figure, and short labels."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from lazypert.errors import LazypertError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart; it also survives printing in grey.
BLUE, ORANGE, VERMILLION, SKY, GREEN, GREY = "#0072B2", "#E69F00", "#D55E00", "#56B4E9", "#009E73", "#8C8C8C"
PURPLE = "#CC79A7"

MAX_PERTURBATIONS = 40
"""Default for the maximum number of perturbations that a figure names."""

_STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "figure.titlesize": 10,
}


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure of a size in inches.

    Raises
    ------
    LazypertError
        When matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure as MatplotlibFigure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise LazypertError(
            'Figures need matplotlib, which is not installed. Install it: pip install "lazypert[plot]"'
        ) from error
    return MatplotlibFigure(figsize=(width, height), dpi=160, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.07))


def style_context() -> AbstractContextManager[None]:
    """Context in which artists get lazypert's fonts and sizes; global settings are unchanged."""
    try:
        from matplotlib import rc_context
    except ImportError:
        return nullcontext()  # `new_figure` raises the error
    return rc_context(_STYLE)


def format_count(n: int) -> str:
    """Format a number in at most five characters up to 999 million: ``9999``, ``12k``, ``3.4M``."""
    if n < 10_000:
        return str(n)
    return f"{n / 1_000:.0f}k" if n < 1_000_000 else f"{n / 1_000_000:.1f}M"


def shorten(label: str, length: int = 20) -> str:
    """Cut a label to a length, with an ellipsis if it was longer."""
    return label if len(label) <= length else f"{label[: length - 1]}…"
