"""Reports as JSON files, and Markdown tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lazypert._internal.memory import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Result = dict[str, Any]
Columns = dict[str, "Callable[[Result], str]"]


def write_json(report: dict[str, Any], path: Path) -> None:
    """Write the report atomically, so that an interrupted benchmark leaves the previous rounds' report."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=2) + "\n")
    partial.replace(path)


def table(results: list[Result], names: tuple[str, ...], columns: Columns) -> str:
    """Format one row per result: the values of the keys `names`, then the columns."""
    rows = [[*names, *columns]]
    rows += [[*(r[name] for name in names), *(show(r) for show in columns.values())] for r in results]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = len(names)
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    rule = [("-" * w) if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines.insert(1, f"| {' | '.join(rule)} |")
    return "\n".join(lines)


def machine_and_versions(report: dict[str, Any]) -> str:
    """Describe the machine and the versions behind a report."""
    machine, versions = report["machine"], report["versions"]
    return (
        f"{machine['processor']}, {machine['cpus']} CPUs, {format_bytes(machine['memory'])}, {machine['system']}, "
        f"Python {machine['python']}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        + "."
    )


def notes(title: str, reasons: dict[str, str]) -> str:
    """Format a section with one reason per rival or run."""
    return "\n".join([f"## {title.capitalize()}", "", *(f"- {name}: {reason}" for name, reason in reasons.items())])


def spread(value: dict[str, float], pattern: str) -> str:
    """Format a median with its minimum and maximum."""
    return f"{{median:{pattern}}} ({{min:{pattern}}}-{{max:{pattern}}})".format(**value)
