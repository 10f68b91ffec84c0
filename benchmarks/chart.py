"""The picture of the report on conversion, and the bars that pictures are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from benchmarks.summary import LARGE

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

GIB = 1024**3
OWN = "lazypert"
COLOURS = ("#2a6f97", "#e09f3e")  # of the groups of bars: two at most
INK, PALE = "#222222", "#666666"


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the picture. The larger screen is left out: only lazypert converts it."""
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
        (panels[2], f"Store ({unit})", _values(results, "store_bytes", size)),
    ):
        bars(axes, rivals, screens, values)
        axes.set_title(title, loc="left", fontsize=11, color=INK, pad=2)
    label_rows(rivals, panels[0])
    groups = [f"from {screen} .h5ad" for screen in screens]
    caption = f"shorter is better; medians of {results[0]['runs']} runs, lines from least to most"
    finish(figure, path, title=_title(report), groups=groups, caption=caption)


def label_rows(rivals: list[str], *panels: Axes) -> None:
    """Name the rows of panels that share them, lazypert in bold, the first on top."""
    panels[0].set_yticks(range(len(rivals)), rivals)
    panels[0].invert_yaxis()
    for label in (label for axes in panels for label in axes.get_yticklabels()):
        label.set(fontsize=11, color=INK, fontweight="bold" if label.get_text() == OWN else "normal")


def finish(figure: Figure, path: Path, *, title: str, groups: list[str], caption: str) -> None:
    """Add what says how to read it, and write it."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, color=INK)
    if len(groups) > 1:
        handles = [Patch(color=colour, label=group) for colour, group in zip(COLOURS, groups, strict=False)]
        figure.legend(handles=handles, loc="outside lower left", ncols=len(groups), frameon=False, fontsize=10)
    figure.supxlabel(caption, x=0.99, ha="right", fontsize=9, color=PALE)
    figure.savefig(path, dpi=150, facecolor="white")


def _title(report: dict[str, Any]) -> str:
    screen = next(iter(report["screens"].values()))
    nonzeros = screen["nnz"] / screen["cells"]
    return f"Converting {screen['cells']:,} cells x {screen['genes']:,} genes, {nonzeros:,.0f} nonzeros a cell"


def _unit(results: list[dict[str, Any]]) -> tuple[str, int]:
    large = max(result["peak_bytes"]["max"] for result in results) >= GIB
    return ("GiB", GIB) if large else ("MiB", 1024**2)


def _values(results: list[dict[str, Any]], key: str, unit: int) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Least, median and most, by rival and screen."""
    found = {}
    for result in results:
        value = result[key]
        spread = value if isinstance(value, dict) else dict.fromkeys(("min", "median", "max"), value)
        found[result["rival"], result["screen"]] = tuple(spread[k] / unit for k in ("min", "median", "max"))
    return found


def bars(
    axes: Axes, rivals: list[str], groups: list[str], values: dict[tuple[str, str], tuple[float, float, float]]
) -> None:
    """Draw one bar a rival and group, as long as the median; a line spans least to most, where they differ."""
    height = 0.8 / len(groups)
    longest = max(most for _, _, most in values.values())
    for number, group in enumerate(groups):
        shift = (number - (len(groups) - 1) / 2) * height
        for row, rival in enumerate(rivals):
            if (rival, group) not in values:
                continue
            least, middle, most = values[rival, group]
            y = row + shift
            axes.barh(y, middle, 0.92 * height, color=COLOURS[number])
            if most - least > 0.01 * longest:
                axes.plot([least, most], [y, y], color=INK, linewidth=1)
            end = max(middle, most) + 0.015 * longest
            axes.text(end, y, _short(middle), va="center", fontsize=9, color=INK)
    axes.set_xlim(0, 1.25 * longest)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", colors=PALE, labelsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(PALE)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
