"""The scale benchmark: everything that one does with a store of 10^6 to 10^8 cells, in seconds and peak memory."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lazypert as lp
from benchmarks.atlas import ROLES, atlas
from benchmarks.machine import machine, versions
from benchmarks.measure import warm
from benchmarks.processes import RunFailedError, log, run_worker
from benchmarks.scale_operations import OPERATIONS
from benchmarks.tables import Columns, machine_and_versions, notes, table, write_json
from lazypert._internal.memory import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

ORDERS = ("grouped", "source")

CONVERT = "convert"
"""Name of the conversion that makes the store; it is not an operation on a store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to measure; see ``python -m benchmarks scale --help``."""

    sizes: tuple[int, ...] = (1_000_000, 10_000_000, 100_000_000)
    orders: tuple[str, ...] = ("grouped",)
    operations: tuple[str, ...] = (CONVERT, *OPERATIONS)
    memory_limit: str = "1GiB"
    work: Path = Path("benchmarks/results")


def run(options: Options) -> dict[str, Any]:
    """Measure, write ``scale.json`` and ``scale.md`` to the work folder, and return the report."""
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "benchmark": "scale",
        "made": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
        "options": {name: value for name, value in asdict(options).items() if name != "work"},
        "failed": {},
        "disagreements": [],
        "runs": [],
    }
    for order in options.orders:
        for cells in options.sizes:
            if CONVERT in options.operations:
                _convert(work, cells, order, options.memory_limit, report)
            store = _store(work, cells, order, options.memory_limit)
            warm(store)
            for name in options.operations:
                if name == CONVERT:
                    continue
                path = atlas(work, cells=cells) if OPERATIONS[name].reads_h5ad else store
                _record("benchmarks._scale_worker", (name, str(path)), name, cells, order, report)
                write_json(report, work / "scale.json")
    text = markdown(report)
    (work / "scale.md").write_text(text)
    print(text)
    return report


def _path(work: Path, cells: int, order: str) -> Path:
    return work / f"atlas-{cells}-{order}.zarr"


def _convert(work: Path, cells: int, order: str, memory_limit: str, report: dict[str, Any]) -> None:
    source, store = atlas(work, cells=cells), _path(work, cells, order)
    warm(source)
    _record(
        "benchmarks._scale_convert_worker",
        (str(source), str(store), order, memory_limit),
        CONVERT,
        cells,
        order,
        report,
    )


def _store(work: Path, cells: int, order: str, memory_limit: str) -> Path:
    """Return the store of an atlas, which is made unless it is there."""
    store = _path(work, cells, order)
    if not store.exists():
        log(f"making {store.name}")
        lp.convert(atlas(work, cells=cells), store, order=order, memory_limit=memory_limit, progress=False, **ROLES)
    return store


def _record(worker: str, arguments: tuple[str, ...], name: str, cells: int, order: str, report: dict[str, Any]) -> None:
    """Run a worker, and add what it measured, or why it failed, to the report."""
    label = f"{cells:,} cells, {order} order, {name}"
    try:
        result = run_worker(worker, *arguments)
    except RunFailedError as error:
        report["failed"][label] = str(error).replace(str(_path(Path(), cells, order)), "the store")
        log(f"{label}: failed: {error}")
        return
    report["runs"].append({"operation": name, "cells": cells, "order": order, **result})
    log(f"{label}: {result['seconds']:.2f} s, {format_bytes(result['peak_over_imports_bytes'])}")


def markdown(report: dict[str, Any]) -> str:
    """Format a table for each order of cells, with two columns for each size."""
    options = report["options"]
    parts = ["# Scale", f"{report['made']}. {machine_and_versions(report)}"]
    for order in options["orders"]:
        found = {(run["operation"], run["cells"]): run for run in report["runs"] if run["order"] == order}
        rows = [
            {
                "operation": "lp.convert" if name == CONVERT else OPERATIONS[name].about,
                **{str(cells): found.get((name, cells)) for cells in options["sizes"]},
            }
            for name in options["operations"]
        ]
        columns: Columns = {}
        for cells in options["sizes"]:
            columns[f"{cells:,} cells"] = _show(cells, lambda run: f"{run['seconds']:.2f} s")
            columns[f"peak at {cells:,}"] = _show(cells, lambda run: format_bytes(run["peak_over_imports_bytes"]))
        parts += [f"## {order.capitalize()} order: seconds, and peak memory above the imports"]
        parts += [table(rows, ("operation",), columns)]
        parts += [
            f"Of {cells:,} cells, the file was read {run['times_read']:.2f} times; progress after "
            f"{run['first_progress_s']:.1f} s."
            for cells in options["sizes"]
            if (run := found.get((CONVERT, cells))) is not None
        ]
    if report["failed"]:
        parts.append(notes("failed", report["failed"]))
    return "\n\n".join(parts) + "\n"


def _show(cells: int, text: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], str]:
    def column(row: dict[str, Any]) -> str:
        run = row[str(cells)]
        return "-" if run is None else text(run)

    return column
