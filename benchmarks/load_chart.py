"""The chart of the loading report: cells per second, one panel per form of batch and page cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from benchmarks.chart import INK, PALE, bars, finish, label_rows
from benchmarks.load_summary import CACHES, WARM
from benchmarks.loaders import RIVALS
from benchmarks.loaders.base import CHUNKS, FORMS, WITH_CONTROLS

if TYPE_CHECKING:
    from pathlib import Path

TITLES = {"csr": "Sparse", "dense": "Dense, all genes", "hvg": "Dense, variable genes"}
PLAIN, CONTROLS = "cells only", "cells and matched controls"


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the chart; a dashed line across a panel marks the limit, if it was measured."""
    results = [result for result in report["results"] if result["endpoint"] != CHUNKS]
    if not results:
        return
    rivals = [name for name in RIVALS if any(result["rival"] == name for result in results)]
    caches = [cache for cache in CACHES if any(result["cache"] == cache for result in results)]
    measured = {result["endpoint"] for result in results}
    forms = [form for form in FORMS if measured & {form, form + WITH_CONTROLS}]
    groups = [
        name for name, tail in ((PLAIN, ""), (CONTROLS, WITH_CONTROLS)) if measured & {form + tail for form in FORMS}
    ]
    limits = [result["cells_per_s"]["median"] for result in report["results"] if result["endpoint"] == CHUNKS]
    height = (0.5 + 0.32 * len(rivals) * (len(groups) + 0.8)) * len(caches) + 1.1
    figure = Figure(figsize=(2.5 + 3.2 * len(forms), height), layout="constrained")
    panels = figure.subplots(len(caches), len(forms), sharey=True, squeeze=False)
    for row, cache in zip(panels, caches, strict=True):
        for axes, form in zip(row, forms, strict=True):
            values = _values(results, cache, form)
            axes.set_title(f"{TITLES[form]} ({cache})", loc="left", fontsize=11, color=INK, pad=2)
            if values:
                bars(axes, rivals, groups, values)
            for limit in limits if cache == WARM else []:
                axes.set_xlim(0, max(axes.get_xlim()[1], 1.05 * limit))
                axes.axvline(limit, color=PALE, linewidth=1, linestyle="--")
            axes.xaxis.set_major_formatter("{x:,.0f}")
    label_rows(rivals, *panels[:, 0])
    caption = "cells per second, longer is better; medians, lines from minimum to maximum"
    caption += "; dashed: the limit" * bool(limits)
    finish(figure, path, title=_title(report), groups=groups, caption=caption)


def _values(results: list[dict[str, Any]], cache: str, form: str) -> dict[tuple[str, str], tuple[float, float, float]]:
    found = {}
    for result in results:
        if result["cache"] == cache and result["endpoint"].removesuffix(WITH_CONTROLS) == form:
            speed = result["cells_per_s"]
            group = CONTROLS if result["endpoint"].endswith(WITH_CONTROLS) else PLAIN
            found[result["rival"], group] = speed["min"], speed["median"], speed["max"]
    return found


def _title(report: dict[str, Any]) -> str:
    screen = report["screens"]["the screen"]
    return (
        f"Loading {screen['cells']:,} cells x {screen['genes']:,} genes in {screen['groups']:,} groups, "
        f"{screen['nnz'] / screen['cells']:,.0f} nonzeros per cell"
    )
