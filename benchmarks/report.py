"""A report as JSON and as Markdown tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from benchmarks.rivals import RIVALS
from benchmarks.summary import BASELINES
from lazypert.memory import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Result = dict[str, Any]
Columns = dict[str, "Callable[[Result], str]"]

SPEED: Columns = {
    "seconds, median (min-max)": lambda r: "{median:.2f} ({min:.2f}-{max:.2f})".format(**r["seconds"]),
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


def write_json(report: dict[str, Any], path: Path) -> None:
    """Write the report; a run that is cut short leaves that of the rounds before."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=2) + "\n")
    partial.replace(path)


def markdown(report: dict[str, Any]) -> str:
    """Every table, and what is needed to understand them."""
    parts = ["# Conversion", _setting(report)]
    if report["results"]:
        parts += [_table(report["results"], SPEED), "## What it took", _table(report["results"], EFFORT)]
    for base in BASELINES:
        compared = [result for result in report["results"] if base in result["ratios"]]
        if compared:
            columns = {title: _ratio(base, key) for key, title in COMPARISON.items()}
            title = f"## Against {base}, run by run of the same round (below 1: less than {base} needs)"
            parts += [title, _table(compared, columns)]
    if report["scaling"]:
        parts += ["## Scaling of lazypert", _scaling(report["scaling"])]
    parts += [_notes(title, report[title]) for title in ("skipped", "failed") if report[title]]
    if report["disagreements"]:
        parts += ["## Stores that differ", "\n".join(f"- {line}" for line in report["disagreements"])]
    return "\n\n".join(parts) + "\n"


def _ratio(base: str, key: str) -> Callable[[Result], str]:
    def column(result: Result) -> str:
        found = result["ratios"][base].get(key)
        return "-" if found is None else f"{found:.3f}"

    return column


def _table(results: list[Result], columns: Columns) -> str:
    rows = [["screen", "rival", *columns]]
    rows += [[r["screen"], r["rival"], *(show(r) for show in columns.values())] for r in results]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    rule = [("-" * w) if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines.insert(1, f"| {' | '.join(rule)} |")
    return "\n".join(lines)


def _setting(report: dict[str, Any]) -> str:
    machine, versions = report["machine"], report["versions"]
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
            f"{machine['processor']}, {machine['cpus']} CPUs, {format_bytes(machine['memory'])}, {machine['system']}, "
            f"Python {machine['python']}, "
            + ", ".join(f"{name} {version}" for name, version in versions.items() if version)
            + ".",
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


def _notes(title: str, reasons: dict[str, str]) -> str:
    return "\n".join([f"## {title.capitalize()}", "", *(f"- {name}: {reason}" for name, reason in reasons.items())])
