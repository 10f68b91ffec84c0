"""Reading a store through a server on loopback: seconds, requests and bytes of each operation.

The server waits before each answer, as object storage does, and runs in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lazypert as lp
from benchmarks import screens
from benchmarks.loaders.base import BATCH, CELL_TYPE, CONTROL, PERTURBATION

if TYPE_CHECKING:
    from collections.abc import Callable

_SERVE = """
import json, sys
from benchmarks.range_server import RangeServer
server = RangeServer(sys.argv[1], latency=float(sys.argv[2]))
print(server.url, flush=True)
for _ in sys.stdin:
    with server.lock:
        print(json.dumps([len(server.requests), sum(r.n_bytes for r in server.requests)]), flush=True)
        server.requests.clear()
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure; see ``python -m benchmarks remote --help``."""

    cells: int = 80_000
    genes: int = 18_000
    nnz: float = 3_468
    latency: float = 0.05
    work: Path = Path("benchmarks/results")


def run(options: Options) -> dict[str, Any]:
    """Measure, write ``remote.json`` and ``remote.md`` to the work folder, and return the report."""
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    path = screens.plain(work, cells=options.cells, genes=options.genes, nnz=options.nnz)
    roles = {"pert_col": PERTURBATION, "cell_type_col": CELL_TYPE, "batch_col": BATCH, "control_pert": CONTROL}
    with tempfile.TemporaryDirectory(dir=work) as folder:
        store = lp.convert(path, Path(folder) / "remote.zarr", **roles)
        command = [sys.executable, "-c", _SERVE, str(store), str(options.latency)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parents[1]) as server:
            try:
                rows, equal = _measure(store, server, Path(folder) / "cache", roles)
            finally:
                server.kill()
    report = {"benchmark": "remote", "rows": rows, "failed": {}, "disagreements": [] if equal else ["mean per gene"]}
    (work / "remote.json").write_text(json.dumps(report, indent=1))
    lines = ["| operation | seconds | cells/s | requests | MB |", "|---|---|---|---|---|"]
    for row in rows:
        speed = f"{row['cells'] / row['seconds']:,.0f}" if row["cells"] else ""
        megabytes = f"{row['bytes'] / 1e6:,.1f}"
        lines.append(f"| {row['name']} | {row['seconds']:.2f} | {speed} | {row['requests']} | {megabytes} |")
    (work / "remote.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return report


def _measure(store: Path, server: Any, cache: Path, roles: dict[str, str]) -> tuple[list[dict[str, Any]], bool]:
    url = server.stdout.readline().strip()
    rows: list[dict[str, Any]] = []

    def measure(name: str, work: Callable[[], Any], *, counts_cells: bool = False) -> Any:
        _counted(server)
        start = time.perf_counter()
        found = work()
        seconds = time.perf_counter() - start
        requests, n_bytes = _counted(server)
        cells = found if counts_cells else 0
        rows.append({"name": name, "seconds": seconds, "requests": requests, "bytes": n_bytes, "cells": cells})
        return found

    _epoch(_loader(str(store), roles))  # compiles, and loads the screen into the page cache
    lp.open(url)
    ds = measure("open", lambda: lp.open(url))
    measure("first table", ds.pert.table)
    name = str(ds.pert.groups.labels["perturbation"][0])
    measure("table of a selection", lambda: ds.pert.select(perturbation=name).pert.table())
    mean = measure("mean per gene", lambda: _mean(ds))
    expected = measure("mean per gene, local", lambda: _mean(lp.open(store)))
    for name, where, folder in (
        ("", url, None),
        (", empty cache", url, cache),
        (", warm cache", url, cache),
        (", local", str(store), None),
    ):
        loader = measure(f"set-up{name}", lambda where=where, folder=folder: _loader(where, roles, folder))
        measure(f"epoch{name}", lambda loader=loader: _epoch(loader), counts_cells=True)
        measure(f"next epoch{name}", lambda loader=loader: _epoch(loader), counts_cells=True)
    return rows, bool((mean == expected).all())


def _mean(ds: Any) -> Any:
    """(n_genes,) mean of each gene over all cells."""
    return ds.pert.aggregate(by=(), stats="mean", of="counts")["mean"].compute()


def _counted(server: Any) -> tuple[int, int]:
    """Number of requests since the last call, and their bytes."""
    server.stdin.write("\n")
    server.stdin.flush()
    requests, n_bytes = json.loads(server.stdout.readline())
    return requests, n_bytes


def _loader(store: str, roles: dict[str, str], cache: Path | None = None) -> Any:
    """Loader of all cells as sparse rows, without controls."""
    config = lp.PerturbationPipelineConfig(**roles, train_frac=1.0, valid_frac=0.0, cache_dir=cache)
    result = lp.PerturbationPipeline(config).setup(store)
    return result.loader("train", n_basal_samples=0, layout="csr", to="numpy")


def _epoch(loader: Any) -> int:
    """Load an epoch, and return the number of cells without padding."""
    return int(sum(int((~batch.is_padding).sum()) for batch in loader))
