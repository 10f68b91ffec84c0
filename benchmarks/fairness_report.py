"""The fairness report as Markdown tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.tables import Columns, Result, machine_and_versions, notes, table

if TYPE_CHECKING:
    from collections.abc import Callable


def _number(key: str, pattern: str = ".2f") -> Callable[[Result], str]:
    return lambda row: "-" if row[key] is None else format(row[key], pattern)


SETTING = ("row", "batches", "cells", "datasets", "sentence", "memory", "strategy", "split")
STATISTICS: Columns = {
    "rms z": _number("rms_z"),
    "beyond 3": _number("beyond_3", ".2%"),
    "correlation": _number("correlation"),
    "controls served": _number("served", ".1%"),
    "worth of K": lambda row: "-" if row["k"] == 1 else f"{row['worth']:.1f} of {row['most_worth']:.3g}",
    "share variance": _number("share_variance"),
    "": lambda row: "OUTSIDE" if row["outside"] else "ok" if row["fits"] else "ok, pool does not fit",
}
LOADERS: Columns = {
    "rms z": _number("rms_z"),
    "beyond 3": _number("beyond_3", ".2%"),
    "correlation": _number("correlation"),
    "controls served": lambda row: f"{row['n_served']:,} ({row['served']:.0%} of independent draws)",
    "share variance": _number("share_variance"),
}
SAME: Columns = {
    "cells": lambda row: f"{row['cells']:,}",
    "with other controls": lambda row: f"{row['different']:,}",
}
NEIGHBOURS: Columns = {
    "distinct groups in 16 batches": _number("distinct_groups", ".0%"),
    "a group two batches later": lambda row: f"{row['comebacks']:.2f}x",
}
RANGES = (
    "Expected: rms z at most 1.15, and with random controls at least 0.9 (controls of the same batch differ less); "
    "correlation -0.1 to 0.1; at least 95 % of the controls that as many independent draws serve, where the pool fits; "
    "K controls of a cell worth at least 0.95 K, or all of a pool that has fewer; variance of batch shares at most "
    "1.15 times that of random samples. "
    "By chance, 0.27 % of the differences are beyond three standard errors."
)


def markdown(report: dict[str, Any]) -> str:
    """Format the tables and what is needed to understand them."""
    rows = [
        row
        | {"row": str(number), "batches": str(row["n_batches"]), "datasets": str(row["n_datasets"])}
        | {"sentence": str(row["sentence_size"]), "memory": row["memory_limit"]}
        for number, row in enumerate(report["rows"], start=1)
    ]
    loaders = [
        row | {"controls": row["strategy"], "workers": "-" if row["workers"] is None else str(row["workers"])}
        for row in report["loaders"]
    ]
    parts = ["# Fairness", _setting(report), "## Null screens", RANGES, table(rows, SETTING, STATISTICS)]
    parts += [_verdict(report)]
    parts += ["## Loaders, on the same null screen", table(loaders, ("loader", "controls", "workers"), LOADERS)]
    names = ("strategy", "hosts", "threads", "shuffle_size")
    same = [row | {name: str(row[name]) for name in names} for row in report["same_controls"]]
    parts += ["## Controls of every cell, compared with the first row of the strategy", table(same, names, SAME)]
    neighbours = [row | {"shuffle_size": f"{row['shuffle_size']:,}"} for row in report["neighbours"]]
    parts += ["## Neighbouring batches, relative to sentences in random order"]
    parts += [table(neighbours, ("screen", "shuffle_size"), NEIGHBOURS)]
    parts += ["## Two cells of a sentence together in the next epoch, relative to any two cells of their group"]
    parts += [_meetings(report)]
    parts += [notes(title, report[title]) for title in ("skipped", "failed") if report[title]]
    return "\n\n".join(parts) + "\n"


def _meetings(report: dict[str, Any]) -> str:
    rows = [row | {"shuffle_size": f"{row['shuffle_size']:,}"} for row in report["meetings"]]

    def column(size: str) -> Callable[[Result], str]:
        return lambda row: f"{row['again'][size]:.1f}x"

    return table(rows, ("shuffle_size",), {f"groups of {int(size):,}": column(size) for size in rows[0]["again"]})


def _verdict(report: dict[str, Any]) -> str:
    if not report["disagreements"]:
        return f"All {len(report['rows'])} rows are within their ranges."
    return "\n".join(["Not as expected:", "", *(f"- {line}" for line in report["disagreements"])])


def _setting(report: dict[str, Any]) -> str:
    lines = [f"{report['made']}; every figure is of one epoch.", "", machine_and_versions(report)]
    lines += [
        f"{name} runs in Python {found['python']} with "
        + ", ".join(f"{package} {version}" for package, version in found["versions"].items() if version)
        + "."
        for name, found in report["interpreters"].items()
    ]
    return "\n".join(lines)
