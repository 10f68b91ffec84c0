"""The conversion benchmark: every rival on every screen, in rounds, each run in its own process."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import report as reports
from benchmarks import screens
from benchmarks.machine import machine, versions
from benchmarks.measure import warm
from benchmarks.processes import RunFailedError, log, run_worker
from benchmarks.rivals import RIVALS
from benchmarks.screens import Screen
from benchmarks.summary import LARGE, OWN, PLAIN, disagreements, scaling, summarise
from benchmarks.tables import write_json

GZIP = "gzip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to measure; see ``python -m benchmarks convert --help``."""

    cells: int = 100_000
    genes: int = 18_000
    nnz: float = 3_500
    factor: int = 5
    runs: int = 3
    rivals: tuple[str, ...] = tuple(RIVALS)
    screens: tuple[str, ...] = (PLAIN, GZIP)
    scaling: bool = False
    memory_limit: str = "512MiB"
    work: Path = Path("benchmarks/results")


def run(options: Options) -> dict[str, Any]:
    """Measure, write ``convert.json``, ``.md`` and ``.png`` to the work folder, and return the report."""
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    rivals = list(dict.fromkeys((*options.rivals, OWN) if options.scaling else options.rivals))
    report: dict[str, Any] = {
        "benchmark": "convert",
        "made": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
        "options": {name: value for name, value in asdict(options).items() if name != "work"},
        "skipped": {name: reason for name in rivals if (reason := RIVALS[name].missing())},
        "failed": {},
        "runs": [],
    }
    available = _screens(options, work)
    report["screens"] = {
        s.name: {k: getattr(s, k) for k in ("cells", "genes", "nnz", "bytes")} for s in available.values()
    }
    able = _warmed_up([name for name in rivals if name not in report["skipped"]], options, work, report["failed"])
    for number in range(options.runs):
        for screen, rival in _jobs(options, able, number):
            _run_job(rival, available[screen], number, options, work, report)
        _summarise(report)
        write_json(report, work / "convert.json")
    _publish(report, work)
    return report


def _jobs(options: Options, able: list[str], number: int) -> list[tuple[str, str]]:
    """Jobs of a round: all rivals on one screen in succession, so that noise affects all of them equally."""
    rivals = [name for name in options.rivals if name in able]
    # Rotate the order: the first run after a pause has an advantage.
    first = number % max(1, len(rivals))
    jobs = [(screen, rival) for screen in options.screens for rival in rivals[first:] + rivals[:first]]
    if options.scaling and OWN in able:
        jobs += [job for job in ((PLAIN, OWN), (LARGE, OWN)) if job not in jobs]
    return jobs


def _screens(options: Options, work: Path) -> dict[str, Screen]:
    """Make or find the screens that the options ask for."""
    log("making or finding the screens")
    plain = screens.plain(work, cells=options.cells, genes=options.genes, nnz=options.nnz)
    made = {PLAIN: Screen.of(PLAIN, plain)}
    if GZIP in options.screens:
        made[GZIP] = Screen.of(GZIP, screens.compressed(plain))
    if options.scaling:
        made[LARGE] = Screen.of(LARGE, screens.repeated(plain, options.factor))
    os.sync()  # otherwise new files would be written to the disk during the first runs
    return made


def _warmed_up(names: list[str], options: Options, work: Path, failed: dict[str, str]) -> list[str]:
    """Let each rival convert a tiny screen, to cache compiled code and to find those that fail."""
    tiny = Screen.of("warm-up", screens.plain(work, cells=256, genes=200, nnz=40))
    for name in names:
        log(f"warm-up  {name}")
        try:
            _measure(name, tiny, options, work)
        except RunFailedError as error:
            failed[name] = str(error)
    return [name for name in names if name not in failed]


def _run_job(rival: str, screen: Screen, number: int, options: Options, work: Path, report: dict[str, Any]) -> None:
    """Do one run and record its result or failure."""
    label = f"round {number + 1}/{options.runs}  {screen.name}  {rival}"
    try:
        result = _measure(rival, screen, options, work)
    except RunFailedError as error:
        report["failed"][f"{rival} on {screen.name}, round {number + 1}"] = str(error)
        log(f"{label}: failed: {error}")
        return
    report["runs"].append({"rival": rival, "screen": screen.name, "round": number, **result})
    log(f"{label}: {result['seconds']:.2f} s")


def _measure(rival: str, screen: Screen, options: Options, work: Path) -> dict[str, Any]:
    """Convert in a fresh interpreter with a warm page cache, into a temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=work))
    arguments = [rival, str(screen.path), str(folder / "store.zarr"), options.memory_limit]
    try:
        warm(screen.path)
        return run_worker("benchmarks._worker", *arguments)
    except RunFailedError as error:
        raise RunFailedError(str(error).replace(str(work), options.work.name)) from None
    finally:
        shutil.rmtree(folder)


def _summarise(report: dict[str, Any]) -> None:
    report["results"] = summarise(report["runs"])
    report["scaling"] = scaling(report["runs"])
    report["disagreements"] = disagreements(report["runs"], report["screens"])


def _publish(report: dict[str, Any], work: Path) -> None:
    """Write and print the tables, and draw the chart."""
    text = reports.markdown(report)
    (work / "convert.md").write_text(text)
    print(text)
    try:
        from benchmarks.chart import draw
    except ImportError as error:
        log(f"no convert.png: {error}")
    else:
        draw(report, work / "convert.png")
