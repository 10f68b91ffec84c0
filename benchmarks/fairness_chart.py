"""The chart of the fairness report: differences on a null screen beside what chance allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.chart import COLOURS, INK, PALE
from benchmarks.fairness_settings import RANDOM
from benchmarks.summary import OWN

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

LIMIT, BIN = 8.0, 0.4  # differences further out are counted in the outermost bins
BY_CHANCE = 0.0027  # beyond three standard errors


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the chart: a histogram of each loader with random controls, and two figures of every run."""
    found = report["loaders"]
    shown = {row["loader"]: row for row in reversed(found) if row["strategy"] == RANDOM}
    shown = {name: shown[name] for name in dict.fromkeys(row["loader"] for row in found)}  # the first run of each
    height = 2.3 + 0.9 + 0.32 * len(found)
    figure = Figure(figsize=(10, height), layout="constrained")
    figure.get_layout_engine().set(hspace=0.08, wspace=0.08, w_pad=0.1, h_pad=0.08)
    upper, lower = figure.subfigures(2, 1, height_ratios=(2.3, 0.9 + 0.32 * len(found)))
    for axes, row in zip(upper.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown.values(), strict=True):
        _histogram(axes, row)
    left, right = lower.subplots(1, 2, sharey=True)
    _bars(left, found, "beyond_3", chance=BY_CHANCE, pattern=".2%")
    left.set_title("Differences beyond 3 standard errors", loc="left", fontsize=11, color=INK)
    _bars(right, found, "served", chance=1, pattern=".0%")
    right.set_title("Different controls served / expected", loc="left", fontsize=11, color=INK)
    left.set_yticks(range(len(found)), [_name(row) for row in found])
    left.invert_yaxis()
    for label in left.get_yticklabels():
        is_own = label.get_text().startswith(OWN)
        label.set(fontsize=10, color=INK, fontweight="bold" if is_own else "normal")
    figure.suptitle(
        "A screen without any effect: mean of a perturbation's cells minus mean of their controls",
        x=0.01,
        ha="left",
        fontsize=13,
        color=INK,
    )
    caption = f"dashed: by chance; one epoch, {len(found[0]['z']):,} differences (perturbation x gene)"
    figure.supxlabel(caption, x=0.99, ha="right", fontsize=9, color=PALE)
    figure.savefig(path, dpi=150, facecolor="white")


def _colour(row: dict[str, Any]) -> str:
    return COLOURS[0] if row["loader"] == OWN else COLOURS[1]


def _name(row: dict[str, Any]) -> str:
    return f"{row['loader']}{_workers(row)}, {row['strategy']} controls"


def _workers(row: dict[str, Any]) -> str:
    return "" if row["workers"] is None else f", {row['workers'] or 'no'} workers"


def _histogram(axes: Axes, row: dict[str, Any]) -> None:
    edges = np.arange(-LIMIT, LIMIT + BIN / 2, BIN)
    z = np.clip(row["z"], edges[0] + BIN / 2, edges[-1] - BIN / 2)
    density = np.histogram(z, edges)[0] / len(z) / BIN
    axes.stairs(density, edges, fill=True, color=_colour(row))
    x = np.linspace(-LIMIT, LIMIT, 321)
    axes.plot(x, np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), color=INK, linestyle="--", linewidth=1.2)
    axes.set_title(
        row["loader"], loc="left", fontsize=11, color=INK, fontweight="bold" if row["loader"] == OWN else None
    )
    axes.text(0.98, 0.95, f"rms {row['rms_z']:.2f}", transform=axes.transAxes, ha="right", va="top", color=INK)
    axes.set_xlim(-LIMIT, LIMIT)
    axes.set_xticks([-6, -3, 0, 3, 6])
    axes.set_yticks([])
    axes.set_xlabel("difference in standard errors", fontsize=9, color=PALE)
    _plain(axes)


def _bars(axes: Axes, found: list[dict[str, Any]], key: str, *, chance: float, pattern: str) -> None:
    longest = max([chance, *(row[key] for row in found)])
    for place, row in enumerate(found):
        axes.barh(place, row[key], 0.7, color=_colour(row))
        # Next to the line if the bar ends there.
        end = max(row[key], chance) if row[key] > 0.8 * chance or chance < 0.1 * longest else row[key]
        axes.text(end + 0.015 * longest, place, format(row[key], pattern), va="center", fontsize=9, color=INK)
    axes.axvline(chance, color=INK, linestyle="--", linewidth=1.2)
    axes.set_xlim(0, 1.15 * longest)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.tick_params(axis="y", length=0)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.tick_params(axis="x", colors=PALE, labelsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(PALE)
