"""The loading report as Markdown tables."""

from __future__ import annotations

from typing import Any

from benchmarks.load_summary import CACHES, OWN
from benchmarks.loaders import LIMIT, RIVALS, annbatch, limit
from benchmarks.loaders.base import CHUNKS
from benchmarks.tables import Columns, Result, machine_and_versions, notes, spread, table
from lazypert._internal.memory import format_bytes

WHAT = ("endpoint", "rival")


def _faster(result: Result) -> str:
    found = result["lazypert_is_faster_by"]
    # The limit has its own endpoint, with one ratio per endpoint of lazypert, in its own table.
    return "-" if result["rival"] in (OWN, LIMIT) or not found else f"{found[result['endpoint']]:.2f}x"


SPEED: Columns = {
    "cells/s, median (min-max)": lambda r: spread(r["cells_per_s"], ",.0f"),
    "lazypert is faster by": _faster,
    "first batch": lambda r: f"{r['first_batch_seconds']['median']:.2f} s",
    "peak memory": lambda r: format_bytes(r["peak_bytes"]["median"]),
    "over imports": lambda r: format_bytes(r["peak_over_imports_bytes"]["median"]),
}
EFFORT: Columns = {
    "measured": lambda r: f"{r['measured_seconds']:.1f} s",
    "cells": lambda r: f"{r['cells']:,.0f}",
    "padding": lambda r: "-" if r["padding_share"] is None else f"{r['padding_share']:.1%}",
    "CPU user": lambda r: f"{r['cpu_user_s']:.2f} s",
    "CPU system": lambda r: f"{r['cpu_system_s']:.2f} s",
    "read per cell": lambda r: format_bytes(r["rchar_per_cell"]),
    "from disk per cell": lambda r: format_bytes(r["read_bytes_per_cell"]),
    "imports": lambda r: f"{r['import_seconds']:.2f} s",
}
OVERLAP: Columns = {
    "load alone": lambda r: f"{r['load_seconds']:.2f} s",
    "steps alone": lambda r: f"{r['step_seconds']:.2f} s",
    "both": lambda r: f"{r['both_seconds']:.2f} s",
    "both / longer": lambda r: spread(r["ratio"], ".3f"),
    "the cores allow": lambda r: f"{r['floor']:.3f}",
}


def markdown(report: dict[str, Any]) -> str:
    """Format the tables and what is needed to understand them."""
    parts = ["# Loading", _setting(report)]
    for cache in CACHES:
        results = [result for result in report["results"] if result["cache"] == cache]
        if results:
            parts += [f"## {cache.capitalize()} page cache", table(results, WHAT, SPEED)]
            parts += ["Resources used:", table(results, WHAT, EFFORT)]
    parts += [text for result in report["results"] if result["endpoint"] == CHUNKS for text in _against_limit(result)]
    if report["overlap"]:
        title = "## Loading during model steps as long as loading a batch (device: uses no CPU core; compute: one)"
        parts += [title, table(report["overlap"], ("endpoint", "kind"), OVERLAP)]
    if report["sweep"]:
        columns: Columns = {"cells/s": lambda trial: f"{trial['cells_per_s']:,.0f}"}
        parts += [f"## Sweep of annbatch's ClassSampler (csr), which selected {' and '.join(report['best'].values())}"]
        parts += [table(report["sweep"], ("setting",), columns)]
    parts += [notes(title, report[title]) for title in ("skipped", "failed") if report[title]]
    if report["disagreements"]:
        parts += ["## Batches with wrong contents"]
        parts += ["\n".join(f"- {line}" for line in report["disagreements"])]
    return "\n\n".join(parts) + "\n"


def _against_limit(result: Result) -> list[str]:
    found = result["lazypert_is_faster_by"]
    if not found:
        return []
    columns: Columns = {"lazypert's cells/s over the limit's": lambda row: f"{row['share']:.3f}"}
    rows = [{"endpoint": endpoint, "share": share} for endpoint, share in found.items()]
    return [f"## Against the limit ({limit.describe(result['notes'])})", table(rows, ("endpoint",), columns)]


def _setting(report: dict[str, Any]) -> str:
    options = report["options"]
    screens = [
        f"- {name}: {s['cells']:,} cells x {s['genes']:,} genes, {s['nnz']:,} nonzeros, {s['groups']:,} groups "
        f"(median {s['median_group']:,.0f} cells), {format_bytes(s['bytes'])}"
        for name, s in report["screens"].items()
    ]
    rounds = len({run["round"] for run in report["runs"]})
    others = [
        f"- {name} runs in Python {found['python']} with "
        + ", ".join(f"{package} {version}" for package, version in found["versions"].items() if version)
        for name, found in report["interpreters"].items()
    ]
    return "\n".join(
        [
            f"{rounds} round(s), {report['made']}; sentences of {options['sentence_size']} cells, "
            f"{options['sentences_per_batch']} per batch; {options['seconds']:g} s after the first batch "
            f"({options['slow_seconds']:g} s and one round for slow rivals).",
            "",
            machine_and_versions(report),
            "",
            *others,
            *screens,
            "",
            *(_rival(name, report) for name in dict.fromkeys(run["rival"] for run in report["runs"])),
        ]
    )


def _rival(name: str, report: dict[str, Any]) -> str:
    rival = RIVALS[name]
    run_notes = next(run["notes"] for run in report["runs"] if run["rival"] == name)
    more = f" ({annbatch.describe(run_notes)})" if "codecs" in run_notes else ""
    return f"- {name}: reads {rival.reads}; {rival.about}{more}"
