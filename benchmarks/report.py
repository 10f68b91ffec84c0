"""The conversion report as Markdown tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.rivals import RIVALS
from benchmarks.summary import BASELINES
from benchmarks.tables import Columns, Result, machine_and_versions, notes, spread, table
from lazypert._internal.memory import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

WHAT = ("screen", "rival")
SPEED: Columns = {
    "seconds, median (min-max)": lambda r: spread(r["seconds"], ".2f"),
    "cells/s": lambda r: f"{r['cells_per_s']:,.0f}",
    "nonzeros/s": lambda r: f"{r['nnz_per_s'] / 1e6:,.1f} M",
    "peak memory": lambda r: format_bytes(r["peak_bytes"]["median"]),
    "over imports": lambda r: format_bytes(r["peak_over_imports_bytes"]["median"]),
    "store": lambda r: format_bytes(r["store_bytes"]),
}
EFFORT: Columns = {
    "CPU user": lambda r: f"{r['cpu_user_s']:.2f} s",
    "CPU system": lambda r: f"{r['cpu_system_s']:.2f} s",
    "bytes read": lambda r: format_bytes(r["rchar"]),
    "bytes written": lambda r: format_bytes(r["wchar"]),
    "from disk": lambda r: format_bytes(r["read_bytes"]),
    "to disk": lambda r: format_bytes(r["write_bytes"]),
    "flush after": lambda r: f"{r['flush_seconds']:.2f} s",
    "files": lambda r: f"{r['store_files']:,.0f}",
}
COMPARISON = {
    "seconds": "time",
    "peak_bytes": "peak memory",
    "peak_over_imports_bytes": "over imports",
    "store_bytes": "store",
}


def markdown(report: dict[str, Any]) -> str:
    """Format the tables and what is needed to understand them."""
    parts = ["# Conversion", _setting(report)]
    if report["results"]:
        parts += [table(report["results"], WHAT, SPEED), "## Resources used", table(report["results"], WHAT, EFFORT)]
    for base in BASELINES:
        compared = [result for result in report["results"] if base in result["ratios"]]
        if compared:
            columns = {title: _ratio(base, key) for key, title in COMPARISON.items()}
            title = f"## Compared with {base}: median ratio of runs in the same round (below 1: less than {base})"
            parts += [title, table(compared, WHAT, columns)]
    if report["scaling"]:
        parts += ["## Scaling of lazypert", _scaling(report["scaling"])]
    parts += [notes(title, report[title]) for title in ("skipped", "failed") if report[title]]
    if report["disagreements"]:
        parts += ["## Stores that differ", "\n".join(f"- {line}" for line in report["disagreements"])]
    return "\n\n".join(parts) + "\n"


def _ratio(base: str, key: str) -> Callable[[Result], str]:
    def column(result: Result) -> str:
        found = result["ratios"][base].get(key)
        return "-" if found is None else f"{found:.3f}"

    return column


def _setting(report: dict[str, Any]) -> str:
    screens = [
        f"- {name}: {s['cells']:,} cells x {s['genes']:,} genes, {s['nnz']:,} nonzeros, {format_bytes(s['bytes'])}"
        for name, s in report["screens"].items()
    ]
    rivals = [f"- {name}: {RIVALS[name].about}" for name in dict.fromkeys(run["rival"] for run in report["runs"])]
    rounds = len({run["round"] for run in report["runs"]})
    return "\n".join(
        [
            f"{rounds} round(s), {report['made']}, lazypert's memory limit {report['options']['memory_limit']}.",
            "",
            machine_and_versions(report),
            "",
            *screens,
            "",
            *rivals,
        ]
    )


def _scaling(found: dict[str, float]) -> str:
    return (
        f"{found['cells_ratio']:g} times the cells: {found['time_ratio']:.2f} times the seconds "
        f"({found['time_over_linear']:.2f} of linear), {found['peak_ratio']:.2f} times the peak memory "
        f"({found['peak_over_imports_ratio']:.2f} over the imports), {found['store_ratio']:.2f} times the store."
    )
