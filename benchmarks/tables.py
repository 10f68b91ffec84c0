"""Reports as files: JSON, and the Markdown that they share."""

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
    """Write the report; a run that is cut short leaves that of the rounds before."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=2) + "\n")
    partial.replace(path)


def table(results: list[Result], names: tuple[str, ...], columns: Columns) -> str:
    """One row a result: what it is of, by its keys `names`, then the columns."""
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


def where_from(report: dict[str, Any]) -> str:
    """Machine and versions."""
    machine, versions = report["machine"], report["versions"]
    return (
        f"{machine['processor']}, {machine['cpus']} CPUs, {format_bytes(machine['memory'])}, {machine['system']}, "
        f"Python {machine['python']}, "
        + ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        + "."
    )


def notes(title: str, reasons: dict[str, str]) -> str:
    """A section that says why something is not there."""
    return "\n".join([f"## {title.capitalize()}", "", *(f"- {name}: {reason}" for name, reason in reasons.items())])


def spread(value: dict[str, float], pattern: str) -> str:
    """The median, and the least and the most behind it."""
    return f"{{median:{pattern}}} ({{min:{pattern}}}-{{max:{pattern}}})".format(**value)
