"""The chart of the conversion report, and the bars that both charts share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from benchmarks.summary import LARGE, OWN

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

GIB = 1024**3
COLOURS = ("#2a6f97", "#e09f3e")  # one per group of bars, at most two
INK, PALE = "#222222", "#666666"


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the chart, without the larger screen, which only lazypert converts."""
    results = [result for result in report["results"] if result["screen"] != LARGE]
    if not results:
        return
    rivals = list(dict.fromkeys(result["rival"] for result in results))
    screens = list(dict.fromkeys(result["screen"] for result in results))
    figure = Figure(figsize=(11, 1.6 + 0.32 * len(rivals) * (len(screens) + 0.8)), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    panels = figure.subplots(1, 3, sharey=True)
    unit, size = _unit(results)
    for axes, title, values in (
        (panels[0], "Time (s)", _values(results, "seconds", 1)),
        (panels[1], f"Peak memory ({unit})", _values(results, "peak_bytes", size)),
        (panels[2], f"Store size ({unit})", _values(results, "store_bytes", size)),
    ):
        bars(axes, rivals, screens, values)
        axes.set_title(title, loc="left", fontsize=11, color=INK, pad=2)
    label_rows(rivals, panels[0])
    groups = [f"from {screen} .h5ad" for screen in screens]
    caption = f"shorter is better; median of {results[0]['runs']} runs, line from minimum to maximum"
    finish(figure, path, title=_title(report), groups=groups, caption=caption)


def label_rows(rivals: list[str], *panels: Axes) -> None:
    """Label the rows that panels share: first on top, lazypert in bold."""
    panels[0].set_yticks(range(len(rivals)), rivals)
    panels[0].invert_yaxis()
    for label in (label for axes in panels for label in axes.get_yticklabels()):
        label.set(fontsize=11, color=INK, fontweight="bold" if label.get_text() == OWN else "normal")


def finish(figure: Figure, path: Path, *, title: str, groups: list[str], caption: str) -> None:
    """Add title, legend and caption, and write the chart."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, color=INK)
    if len(groups) > 1:
        handles = [Patch(color=colour, label=group) for colour, group in zip(COLOURS, groups, strict=False)]
        figure.legend(handles=handles, loc="outside lower left", ncols=len(groups), frameon=False, fontsize=10)
    figure.supxlabel(caption, x=0.99, ha="right", fontsize=9, color=PALE)
    figure.savefig(path, dpi=150, facecolor="white")


def _title(report: dict[str, Any]) -> str:
    screen = next(iter(report["screens"].values()))
    nonzeros = screen["nnz"] / screen["cells"]
    return f"Converting {screen['cells']:,} cells x {screen['genes']:,} genes, {nonzeros:,.0f} nonzeros per cell"


def _unit(results: list[dict[str, Any]]) -> tuple[str, int]:
    large = max(result["peak_bytes"]["max"] for result in results) >= GIB
    return ("GiB", GIB) if large else ("MiB", 1024**2)


def _values(results: list[dict[str, Any]], key: str, unit: int) -> dict[tuple[str, str], tuple[float, float, float]]:
    """(minimum, median, maximum), by rival and screen."""
    found = {}
    for result in results:
        value = result[key]
        spread = value if isinstance(value, dict) else dict.fromkeys(("min", "median", "max"), value)
        found[result["rival"], result["screen"]] = tuple(spread[k] / unit for k in ("min", "median", "max"))
    return found


def bars(
    axes: Axes, rivals: list[str], groups: list[str], values: dict[tuple[str, str], tuple[float, float, float]]
) -> None:
    """Draw one bar per rival and group: its length is the median, and a line spans minimum to maximum."""
    height = 0.8 / len(groups)
    longest = max(maximum for _, _, maximum in values.values())
    for number, group in enumerate(groups):
        shift = (number - (len(groups) - 1) / 2) * height
        for row, rival in enumerate(rivals):
            if (rival, group) not in values:
                continue
            low, middle, high = values[rival, group]
            y = row + shift
            axes.barh(y, middle, 0.92 * height, color=COLOURS[number])
            if high - low > 0.01 * longest:
                axes.plot([low, high], [y, y], color=INK, linewidth=1)
            end = max(middle, high) + 0.015 * longest
            axes.text(end, y, _rounded(middle), va="center", fontsize=9, color=INK)
    axes.set_xlim(0, 1.25 * longest)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", colors=PALE, labelsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(PALE)


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
